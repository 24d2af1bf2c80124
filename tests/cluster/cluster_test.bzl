"""Tests of whole jobs: NAME.py on top of harness.py."""

def cluster_test(name, size, full = None, data = [], deps = []):
    """A test with the programs in `data`, and under the name `full` the same with all that takes long, run by hand."""
    native.py_test(
        name = name,
        size = size,
        srcs = [name + ".py"],
        data = data,
        deps = [":harness"] + deps,
    )
    if full:
        native.py_test(
            name = full,
            size = "enormous",
            srcs = [name + ".py"],
            args = ["--full"],
            data = data,
            main = name + ".py",
            tags = ["manual"],
            deps = [":harness"] + deps,
        )
