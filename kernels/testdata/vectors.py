"""What torch_vectors.py and paper_vectors.py share: the inputs, and how a case is written down.

Element i starts at value(0, i); at step k its gradient is value(k, i) / 8. Values are multiples of 2^-15 in
[-1, 1), so the test makes the same ones without rounding.
"""

ELEMENTS = 8
STEPS = 100


def value(step, i):
    x = (step * 1000003 + i * 7919 + 12345) & 0xFFFFFFFF
    x = (x * 2654435761) & 0xFFFFFFFF
    return ((x >> 16) - 32768) / 32768


def floats(row):
    return "{" + ", ".join("%.9g" % x for x in row.tolist()) + "}"


def show(name, hyper, param, planes):
    """One case in C++: name, Hyper in the order of kernels/scalars.h, rows (a plane that is None: not kept)."""
    b1, b2 = hyper.get("betas", (0.9, 0.999))
    fields = [hyper["lr"], b1, b2, hyper.get("eps", 1e-8)]
    fields += [hyper.get(key, 0.0) for key in ("weight_decay", "momentum", "dampening")]
    texts = [repr(float(f)) for f in fields] + [str(hyper.get("nesterov", False)).lower()]
    texts += [repr(float(hyper.get(key, 0.0))) for key in ("lr_decay", "initial_accumulator_value")]
    texts += [repr(float(hyper.get(key, default))) for key, default in (("min_coeff", 0.01), ("max_coeff", 10.0))]
    print('{"%s",\n {%s},' % (name, ", ".join(texts)))
    rows = [floats(param)] + [floats(x) if x is not None else "{}" for x in planes]
    print(" {" + ",\n  ".join(rows) + "},\n %d}," % (1 + sum(x is not None for x in planes)))
