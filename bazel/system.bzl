"""Debian packages as Bazel repositories (no download, no copies)."""

def _syslib_impl(ctx):
    cc = cc_common.create_compilation_context(
        defines = depset(ctx.attr.defines),
        system_includes = depset(ctx.attr.system_includes),
    )
    link = cc_common.create_linking_context(
        linker_inputs = depset([cc_common.create_linker_input(
            owner = ctx.label,
            user_link_flags = depset(ctx.attr.linkopts),
        )]),
    )
    own = CcInfo(compilation_context = cc, linking_context = link)
    return [cc_common.merge_cc_infos(
        direct_cc_infos = [own],
        cc_infos = [d[CcInfo] for d in ctx.attr.deps],
    )]

# Propagates absolute -isystem directories (a plain cc_library's copts do not
# propagate, and its `includes` must lie inside the package).
system_library = rule(
    implementation = _syslib_impl,
    attrs = {
        "defines": attr.string_list(),
        "system_includes": attr.string_list(),
        "linkopts": attr.string_list(),
        "deps": attr.label_list(providers = [CcInfo]),
    },
    provides = [CcInfo],
)

def _uniq(xs):
    seen = {}
    for x in xs:
        seen[x] = True
    return seen.keys()

def _pkg_config(rctx, module):
    r = rctx.execute(["pkg-config", "--cflags", "--libs", module])
    if r.return_code != 0:
        return None
    inc, defs, link, rest = [], [], [], []
    for t in r.stdout.replace("\n", " ").split(" "):
        if t.startswith("-I"):
            if t != "-I/usr/include":  # would break #include_next
                inc.append(t[2:])
        elif t.startswith("-D"):
            defs.append(t[2:])
        elif t.startswith("-l") or t.startswith("-L"):
            link.append(t)
        elif t == "-pthread":
            link.append(t)
        # -std=..., -Wl,--push-state and so on are dropped: --as-needed is on.
    return struct(inc = _uniq(inc), defs = _uniq(defs), link = _uniq(link))

_HEAD = """load("@//bazel:system.bzl", "system_library")
package(default_visibility = ["//visibility:public"])
"""

_LIB = """
system_library(
    name = {name},
    defines = {defs},
    system_includes = {inc},
    linkopts = {link},
)
"""

def _repo_impl(rctx):
    out = [_HEAD]
    missing = []
    for name, module in rctx.attr.pkg_config.items():
        p = _pkg_config(rctx, module)
        if p == None:
            missing.append(module)
            continue
        out.append(_LIB.format(name = repr(name), defs = repr(p.defs), inc = repr(p.inc), link = repr(p.link)))
    for name, flags in rctx.attr.plain.items():
        inc = [f[2:] for f in flags if f.startswith("-I")]
        defs = [f[2:] for f in flags if f.startswith("-D")]
        link = [f for f in flags if not (f.startswith("-I") or f.startswith("-D"))]
        out.append(_LIB.format(name = repr(name), defs = repr(defs), inc = repr(inc), link = repr(link)))
    for tool in rctx.attr.tools:
        path = rctx.which(tool)
        if path == None:
            missing.append(tool)
            continue
        rctx.symlink(path, "bin/" + tool)
    if missing:
        fail("missing Debian packages for: %s (run: bash tools/setup.sh)" % ", ".join(missing))
    out.append("exports_files(glob([\"bin/*\"]))")
    rctx.file("WORKSPACE", "")
    rctx.file("BUILD", "\n".join(out) + "\n")

system_repository = repository_rule(
    implementation = _repo_impl,
    attrs = {
        "pkg_config": attr.string_dict(),
        "plain": attr.string_list_dict(),
        "tools": attr.string_list(),
    },
    environ = ["PKG_CONFIG_PATH"],
    local = True,
    configure = True,
)
