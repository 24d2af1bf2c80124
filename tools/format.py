#!/usr/bin/env python3
"""Lays out the C++ sources: clang-format (.clang-format), and comments of more than 110 columns wrapped.

  tools/format.py [FILE...]            changes files in place (default: all)
  tools/format.py --check [FILE...]    names those that would change; exit status 1 if there are any

clang-format alone would refill comments, which breaks lists and examples; here only what is too long moves on,
into the next line of the same paragraph. Lines of examples (indented in the comment) stay for a person to break.
"""
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(os.path.realpath(__file__)).parent.parent
COLUMNS = 110
DIRECTORIES = ("bench", "client", "core", "kernels", "proto", "runtime", "server", "tests", "tools")
SUFFIXES = (".h", ".cc", ".inc", ".cu")
PROSE = re.compile(r"^(\s*// )(\S.*)$")
# A comment line that starts something of its own: a list item, a heading, an error code with its meaning.
STARTS = re.compile(r"^\s*// ([-*] |\d+\. |[A-Z_]{3,}:|----)")


def wrap(text):
    """`text` with its comment lines of more than COLUMNS columns wrapped."""
    lines, i = text.split("\n"), 0
    while i < len(lines):
        prose = PROSE.match(lines[i])
        cut = lines[i].rfind(" ", 0, COLUMNS + 1)
        if len(lines[i]) > COLUMNS and prose and cut >= len(prose.group(1)):
            start = prose.group(1)
            rest, lines[i] = lines[i][cut + 1:], lines[i][:cut]
            following = lines[i + 1] if i + 1 < len(lines) else ""
            same = PROSE.match(following)
            if same and same.group(1) == start and not STARTS.match(following):
                lines[i + 1] = start + rest + " " + same.group(2)
            else:
                lines.insert(i + 1, start + rest)
        i += 1
    return "\n".join(lines)


def main(args):
    if "-h" in args or "--help" in args:
        print(__doc__)
        return 0
    check = "--check" in args
    files = [pathlib.Path(a).resolve() for a in args if a != "--check"]
    os.chdir(ROOT)
    if not files:
        files = sorted(p for d in DIRECTORIES for p in pathlib.Path(d).rglob("*")
                       if p.suffix in SUFFIXES and "testdata" not in p.parts)
    before = {path: path.read_text(encoding="utf-8") for path in files}
    changed = {path for path in files if wrap(before[path]) != before[path]}
    if check:
        run = subprocess.run(["clang-format", "--dry-run", *map(str, files)], stderr=subprocess.PIPE, check=True)
        changed |= {pathlib.Path(line.split(":")[0]) for line in run.stderr.decode().splitlines()
                    if line.endswith("[-Wclang-format-violations]")}
    else:
        for path in changed:
            path.write_text(wrap(before[path]), encoding="utf-8")
        subprocess.run(["clang-format", "-i", *map(str, files)], check=True)
        changed = {path for path in files if path.read_text(encoding="utf-8") != before[path]}
    for path in sorted(changed):
        print(path)
    if check and changed:
        print("fix: tools/format.py")
    print(f"{len(files)} files, {len(changed)} {'to change' if check else 'changed'}")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
