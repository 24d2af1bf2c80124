"""Writes torch_vectors.inc: what torch.optim makes of small, exactly reproducible inputs.

    python3 kernels/testdata/torch_vectors.py > kernels/testdata/torch_vectors.inc

Element i starts at Value(0, i); at step k its gradient is Value(k, i) / 8. Values are multiples of 2^-15 in
[-1, 1), so the test makes the same ones without rounding.
"""

import torch

ELEMENTS = 8
STEPS = 100
CASES = [
    ("sgd", torch.optim.SGD, dict(lr=0.05)),
    ("sgd", torch.optim.SGD, dict(lr=0.05, momentum=0.9, weight_decay=0.01)),
    ("sgd", torch.optim.SGD, dict(lr=0.05, momentum=0.9, dampening=0.25)),
    ("sgd", torch.optim.SGD, dict(lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.001)),
    ("adam", torch.optim.Adam, dict(lr=0.01)),
    ("adam", torch.optim.Adam, dict(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)),
    ("adamw", torch.optim.AdamW, dict(lr=0.01, weight_decay=0.0)),
    ("adamw", torch.optim.AdamW, dict(lr=0.003, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)),
]
PLANES = {"sgd": ["momentum_buffer"], "adam": ["exp_avg", "exp_avg_sq"], "adamw": ["exp_avg", "exp_avg_sq"]}


def value(step, i):
    x = (step * 1000003 + i * 7919 + 12345) & 0xFFFFFFFF
    x = (x * 2654435761) & 0xFFFFFFFF
    return ((x >> 16) - 32768) / 32768


def run(cls, hyper):
    p = torch.tensor([value(0, i) for i in range(ELEMENTS)], dtype=torch.float32, requires_grad=True)
    opt = cls([p], **hyper)
    for step in range(1, STEPS + 1):
        p.grad = torch.tensor([value(step, i) / 8 for i in range(ELEMENTS)], dtype=torch.float32)
        opt.step()
    return p.detach(), opt.state[p]


def floats(t):
    return "{" + ", ".join("%.9g" % x for x in t.tolist()) + "}"


def main():
    print("// Written by torch_vectors.py (PyTorch %s). Do not edit." % torch.__version__)
    for name, cls, hyper in CASES:
        param, state = run(cls, hyper)
        b1, b2 = hyper.get("betas", (0.9, 0.999))
        fields = [hyper["lr"], b1, b2, hyper.get("eps", 1e-8), hyper.get("weight_decay", 0.0),
                  hyper.get("momentum", 0.0), hyper.get("dampening", 0.0)]
        text = ", ".join(repr(float(f)) for f in fields)
        print('{"%s",\n {%s, %s},' % (name, text, str(hyper.get("nesterov", False)).lower()))
        planes = [state.get(k) for k in PLANES[name]]
        rows = [floats(param)] + [floats(x) if x is not None else "{}" for x in planes]
        print(" {" + ",\n  ".join(rows) + "},\n %d}," % (1 + sum(x is not None for x in planes)))


if __name__ == "__main__":
    main()
