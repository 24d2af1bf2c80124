"""Writes torch_vectors.inc: what torch.optim makes of the inputs of vectors.py.

    python3 kernels/testdata/torch_vectors.py > kernels/testdata/torch_vectors.inc
"""

import torch

from vectors import ELEMENTS, STEPS, show, value

CASES = [
    ("sgd", torch.optim.SGD, dict(lr=0.05)),
    ("sgd", torch.optim.SGD, dict(lr=0.05, momentum=0.9, weight_decay=0.01)),
    ("sgd", torch.optim.SGD, dict(lr=0.05, momentum=0.9, dampening=0.25)),
    ("sgd", torch.optim.SGD, dict(lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.001)),
    ("adam", torch.optim.Adam, dict(lr=0.01)),
    ("adam", torch.optim.Adam, dict(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)),
    ("adamw", torch.optim.AdamW, dict(lr=0.01, weight_decay=0.0)),
    ("adamw", torch.optim.AdamW, dict(lr=0.003, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)),
    ("adagrad", torch.optim.Adagrad, dict(lr=0.01, eps=1e-10)),
    ("adagrad", torch.optim.Adagrad,
     dict(lr=0.05, lr_decay=0.02, weight_decay=0.1, initial_accumulator_value=0.25, eps=1e-6)),
]
PLANES = {
    "sgd": ["momentum_buffer"],
    "adam": ["exp_avg", "exp_avg_sq"],
    "adamw": ["exp_avg", "exp_avg_sq"],
    "adagrad": ["sum"],
}


def run(cls, hyper):
    p = torch.tensor([value(0, i) for i in range(ELEMENTS)], dtype=torch.float32, requires_grad=True)
    opt = cls([p], **hyper)
    for step in range(1, STEPS + 1):
        p.grad = torch.tensor([value(step, i) / 8 for i in range(ELEMENTS)], dtype=torch.float32)
        opt.step()
    return p.detach(), opt.state[p]


def main():
    print("// Written by torch_vectors.py (PyTorch %s). Do not edit." % torch.__version__)
    for name, cls, hyper in CASES:
        param, state = run(cls, hyper)
        show(name, hyper, param, [state.get(k) for k in PLANES[name]])


if __name__ == "__main__":
    main()
