#!/usr/bin/env python3
"""The rules of the tree that no compiler checks. Reads the sources; by hand: python3 tests/architecture_test.py"""
import os
import pathlib
import re
import unittest

ROOT = pathlib.Path(os.path.realpath(__file__)).parent.parent

# Who may include whose headers. Bazel visibility says it of targets; this says it of files, tests included.
MAY_INCLUDE = {
    "core": {"core"},
    "kernels": {"kernels"},
    "proto": {"core", "proto"},
    "runtime": {"core", "kernels", "runtime"},
    "server": {"core", "kernels", "proto", "runtime", "server"},
    "client": {"core", "kernels", "proto", "runtime", "client"},
    "tools": set(),
    "bench": {"core", "kernels", "proto", "runtime", "server", "client", "bench", "tests"},
    "tests": {"core", "kernels", "proto", "runtime", "server", "client", "tests"},
}
# Libraries that stand in few places, by the start of their includes and their targets.
PLACES = {
    ("torch/", "ATen/", "c10/", "@sys//:torch"): ("client/torch/", "client/examples/", "tests/torch/", "tests/interop/",
                                             "bench/"),
    ("openssl/", "@sys//:crypto"): ("runtime/",),
    ("grpc", "@sys//:grpc++"): ("proto/", "runtime/etcd/", "server/", "client/rpc/", "client/cli/", "tests/", "bench/"),
}
# core/ is pure: Abseil and the standard library, without I/O, clocks and threads. kernels/ has not even Abseil.
IMPURE = re.compile(r"^(unistd|fcntl|sys/.*|poll)\.h$|^(thread|mutex|fstream|iostream|chrono|filesystem)$|"
                    r"^absl/synchronization/")
# The one list of optimizers: plain constants, which core/ names and kernels/ registers expressions under.
SHARED_WITH_CORE = "kernels/optimizer_kinds.h"
TEST_LIBRARIES = ("gtest/", "gmock/")

MAX_LINES = 450
# Longer files, and why.
LONG_FILES = {
    "client/torch/zero_optimizer.cc": "one class: a step between autograd, the writer and a world that changes",
    "server/coordinator.cc": "one state behind one lock: RPCs, monitor and effects of membership",
}

# Tests that look again and again at what other processes did, which wakes nobody; each look is a condition.
POLLING_TESTS = {"client/cli/keeper_test.cc", "tests/cluster/run_test.cc", "tests/control/values_test.cc"}

# Where the time of day is shown or written down. Whatever lasts, waits or gives up counts by runtime::SteadyNow(),
# which no change of the time of day moves.
TIME_OF_DAY = {"runtime/clock.cc", "client/cli/top.cc", "server/save_operation.cc"}
READS_TIME_OF_DAY = re.compile(r"\babsl::Now\(\)|\bsystem_clock::now\(\)|\bCLOCK_REALTIME\b|\bgettimeofday\b")

SLEEPS = re.compile(r"\b(sleep_for|sleep_until|SleepFor|usleep|nanosleep|sleep)\s*\(")
MACHINE_PATHS = re.compile(r"(?<![\w.$}/<-])/(root|work|home|Users)/\w")
INCLUDE = re.compile(r'^\s*#include ["<]([^">]+)[">]', re.M)
TEXT = {".h", ".cc", ".inc", ".cu", ".proto", ".py", ".sh", ".bzl", ".md", ".txt", ".json", ""}


def sources(*suffixes):
    """(path from the root, text) of every file of ours with one of the suffixes."""
    for directory in sorted({*MAY_INCLUDE, "bazel", "deploy", ".ci"}):
        for path in sorted((ROOT / directory).rglob("*")):
            if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted(ROOT.iterdir()):
        if path.name in ("README.md", "DESIGN.md", "WORKSPACE", "BUILD") and path.suffix in suffixes:
            yield path.name, path.read_text(encoding="utf-8")


def is_test(path):
    """Tests and what only they use."""
    return bool(re.search(r"_test\.|(^|/)(fake|test)_|_for_test\.|testdata/|^tests/", path))


class Labels(list):
    """A list attribute; a select() is all of its branches."""

    def __add__(self, other):
        return Labels(list(self) + list(other))

    def __radd__(self, other):
        return Labels(list(other) + list(self))


def rules():
    """(package, rule, attributes) of every BUILD file: they are Python as far as we use them."""
    for path, text in sources(""):
        if not path.endswith("BUILD"):
            continue
        found = []

        class Names(dict):
            def __missing__(self, name):
                return lambda *args, **kwargs: found.append((name, kwargs))

        names = Names(
            select=lambda branches: Labels(x for value in branches.values() for x in value),
            load=lambda *args: None,
            glob=lambda *args, **kwargs: found.append(("glob", {})) or Labels())
        exec(compile(text, path, "exec"), {"__builtins__": {"True": True, "False": False, "None": None}}, names)
        package = path[:-len("BUILD")].rstrip("/")
        for rule, attributes in found:
            yield package, rule, attributes


class Architecture(unittest.TestCase):

    def report(self, problems):
        self.assertFalse(problems, "\n" + "\n".join(problems))

    def test_includes_go_one_way(self):
        problems = []
        for path, text in sources(".h", ".cc", ".inc", ".cu"):
            module = path.split("/")[0]
            for header in INCLUDE.findall(text):
                other = header.split("/")[0]
                if module == "core" and header == SHARED_WITH_CORE:
                    continue
                if other in MAY_INCLUDE and "/" in header and other not in MAY_INCLUDE[module]:
                    problems.append(f"{path}: {module}/ must not know {other}/: {header}")
                for prefixes, places in PLACES.items():
                    if header.startswith(prefixes) and not path.startswith(places):
                        problems.append(f"{path}: {header} may be included in {', '.join(places)} only")
                if module == "core" and not is_test(path):
                    if IMPURE.match(header) or ("/" in header and other not in ("core", "absl")):
                        problems.append(f"{path}: core/ is pure and uses Abseil alone: {header}")
                if module == "kernels" and header.startswith("absl/"):
                    problems.append(f"{path}: kernels/ depends on nothing: {header}")
        self.report(problems)

    def test_targets(self):
        problems = []
        for package, rule, attributes in rules():
            name = f"//{package}:{attributes.get('name')}"
            if rule == "glob":
                problems.append(f"//{package}: lists its files, without glob()")
            headers = [h for h in attributes.get("hdrs") or [] if h.endswith(".h")]
            if rule == "cc_library" and len(headers) > 1:
                problems.append(f"{name}: one library per header, not {headers}")
            if rule.endswith("_test") and "size" not in attributes:
                problems.append(f"{name}: a test states its size, from which its time limit follows")
            for dep in attributes.get("deps") or []:
                for prefixes, places in PLACES.items():
                    if dep in prefixes and not (package + "/").startswith(places):
                        problems.append(f"{name}: {dep} belongs to {', '.join(places)} only")
        self.report(problems)

    def test_every_source_is_built(self):
        listed = {}
        for package, _, attributes in rules():
            files = [f for key in ("srcs", "hdrs", "textual_hdrs", "data") for f in attributes.get(key) or []]
            listed.setdefault(package, set()).update(files)
        problems = []
        for path, _ in sources(".h", ".cc", ".inc", ".cu", ".proto"):
            package = next((p for p in map(str, pathlib.PurePosixPath(path).parents) if p in listed), None)
            if package is None or path[len(package) + 1:] not in listed[package]:
                problems.append(f"{path}: no BUILD file lists it")
        self.report(problems)

    def test_header_guards(self):
        problems = []
        for path, text in sources(".h"):
            guard = "SHERD_" + re.sub(r"[/.]", "_", path).upper() + "_"
            if f"#ifndef {guard}\n#define {guard}\n" not in text:
                problems.append(f"{path}: its guard is {guard}")
        self.report(problems)

    def test_sizes(self):
        problems = []
        for path, text in sources(".h", ".cc", ".inc", ".cu", ".py", ".sh", ".bzl", ".proto"):
            lines = text.split("\n")
            if len(lines) > MAX_LINES and path not in LONG_FILES and "testdata/" not in path:
                problems.append(f"{path}: {len(lines)} lines; over {MAX_LINES} needs a reason in LONG_FILES")
            if path.endswith((".h", ".cc", ".cu")):
                problems += [f"{path}:{n}: over 110 columns" for n, line in enumerate(lines, 1) if len(line) > 110]
        self.report(problems)

    def test_tests_do_not_sleep(self):
        problems = []
        for path, text in sources(".h", ".cc"):
            if is_test(path) and path not in POLLING_TESTS:
                problems += [f"{path}: {m.group(0)}: wait for the event, not for time" for m in SLEEPS.finditer(text)]
        self.report(problems)

    def test_time_of_day_decides_nothing(self):
        problems = []
        for path, text in sources(".h", ".cc"):
            if not is_test(path) and path not in TIME_OF_DAY:
                code = re.sub(r"//.*", "", text)
                problems += [f"{path}: {m.group(0)}: count by runtime::SteadyNow()" for m in READS_TIME_OF_DAY.finditer(code)]
        self.report(problems)

    def test_no_paths_of_one_machine(self):
        problems = []
        for path, text in sources(*TEXT):
            problems += [f"{path}: {match.group(0)}..." for match in MACHINE_PATHS.finditer(text)]
        self.report(problems)


if __name__ == "__main__":
    unittest.main()
