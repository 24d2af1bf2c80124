"""clang-tidy as an aspect, so that Bazel caches it per source file: nothing unchanged is looked at twice. clang's own
warnings are among its findings: -Wthread-safety checks every GUARDED_BY and lock contract without another build.
Of tests, hardly more than clang's warnings is looked for: with gtest's headers the rest costs as much as everything else.

    bazel build --config=tidy //core/...
"""

_SOURCES = ("cc", "cpp")
_WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wthread-safety",
    "-Wno-unused-parameter",
    "-Wno-sign-compare",
    "-Wno-missing-field-initializers",
    "-Wno-unused-private-field",
]

def _tidy_one(ctx, src, cc, options, flags):
    out = ctx.actions.declare_file("_tidy/%s/%s.ok" % (ctx.rule.attr.name, src.basename))
    args = ctx.actions.args()
    args.add(out)
    args.add(src)
    args.add("--config-file=" + ctx.file._config.path)
    args.add("--quiet")
    args.add_all(options)
    args.add("--")
    args.add_all(flags)
    args.add_all(cc.defines, format_each = "-D%s")
    args.add_all(cc.quote_includes, before_each = "-iquote")
    args.add_all(cc.includes, format_each = "-I%s")
    args.add_all(cc.system_includes, before_each = "-isystem")
    ctx.actions.run_shell(
        # Only what was found is printed: clang-tidy also counts what it suppressed.
        command = """out=$1; shift; if ! clang-tidy "$@" >"$out" 2>&1; then cat "$out"; exit 1; fi""",
        arguments = [args],
        inputs = depset([src, ctx.file._config], transitive = [cc.headers]),
        outputs = [out],
        env = {"PATH": "/usr/bin:/bin"},
        mnemonic = "ClangTidy",
        progress_message = "clang-tidy %s" % src.short_path,
    )
    return out

def _tidy_impl(target, ctx):
    if CcInfo not in target or not hasattr(ctx.rule.attr, "srcs"):
        return [OutputGroupInfo(tidy = depset())]
    rule = ctx.rule.attr
    options = ["--checks=-*,clang-diagnostic-*,google-build-using-namespace"] if rule.testonly else []
    cc = target[CcInfo].compilation_context
    if not hasattr(rule, "hdrs"):  # the CcInfo of a binary holds nothing: its dependencies' does
        cc = cc_common.merge_cc_infos(
            cc_infos = [d[CcInfo] for d in rule.deps if CcInfo in d],
        ).compilation_context
    flags = ["-std=c++17", "-iquote", "."] + _WARNINGS
    # The analyzer does not look into what a function calls: most of its paths lie in gRPC.
    flags += ["-Xclang", "-analyzer-config", "-Xclang", "mode=shallow"]
    flags += ["-D" + d for d in getattr(rule, "local_defines", [])]
    flags += getattr(rule, "copts", [])
    outs = []
    for source in rule.srcs:
        for src in source.files.to_list():
            if src.is_source and src.extension in _SOURCES:
                outs.append(_tidy_one(ctx, src, cc, options, flags))
    return [OutputGroupInfo(tidy = depset(outs))]

tidy = aspect(
    implementation = _tidy_impl,
    attrs = {
        "_config": attr.label(default = "//:.clang-tidy", allow_single_file = True),
    },
)
