"""Writes paper_vectors.inc: what optimizers that PyTorch 1.13 lacks make of the inputs of vectors.py, in NumPy and
double precision, line by line from their papers.

    python3 kernels/testdata/paper_vectors.py > kernels/testdata/paper_vectors.inc
"""

import numpy as np

from vectors import ELEMENTS, STEPS, show, value


def lion(hyper):
    """Chen et al., arXiv 2302.06675, algorithm 2."""
    b1, b2 = hyper["betas"]
    theta = np.array([value(0, i) for i in range(ELEMENTS)])
    m = np.zeros(ELEMENTS)
    for step in range(1, STEPS + 1):
        g = np.array([value(step, i) / 8 for i in range(ELEMENTS)])
        c = b1 * m + (1 - b1) * g
        theta = theta - hyper["lr"] * (np.sign(c) + hyper["weight_decay"] * theta)
        m = b2 * m + (1 - b2) * g
    return theta, [m]


def lamb(hyper):
    """You et al., arXiv 1904.00962, algorithm 2, with DeepSpeed's bounds of the ratio; all elements are one layer."""
    b1, b2 = hyper["betas"]
    x = np.array([value(0, i) for i in range(ELEMENTS)])
    m = np.zeros(ELEMENTS)
    v = np.zeros(ELEMENTS)
    for step in range(1, STEPS + 1):
        g = np.array([value(step, i) / 8 for i in range(ELEMENTS)])
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        r = (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + hyper["eps"]) + hyper["weight_decay"] * x
        ratio = np.linalg.norm(x) / np.linalg.norm(r)
        x = x - hyper["lr"] * min(max(ratio, hyper["min_coeff"]), hyper["max_coeff"]) * r
    return x, [m, v]


CASES = [
    ("lion", lion, dict(lr=0.003, betas=(0.9, 0.99), weight_decay=0.0)),
    ("lamb", lamb, dict(lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, min_coeff=0.01, max_coeff=10)),
    ("lamb", lamb, dict(lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, min_coeff=0.5, max_coeff=0.75)),
    ("lion", lion, dict(lr=0.002, betas=(0.95, 0.98), weight_decay=0.1)),
]


def main():
    print("// Written by paper_vectors.py. Do not edit.")
    for name, function, hyper in CASES:
        param, planes = function(hyper)
        show(name, hyper, param, planes)


if __name__ == "__main__":
    main()
