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


CASES = [
    ("lion", lion, dict(lr=0.003, betas=(0.9, 0.99), weight_decay=0.0)),
    ("lion", lion, dict(lr=0.002, betas=(0.95, 0.98), weight_decay=0.1)),
]


def main():
    print("// Written by paper_vectors.py. Do not edit.")
    for name, function, hyper in CASES:
        param, planes = function(hyper)
        show(name, hyper, param, planes)


if __name__ == "__main__":
    main()
