"""Writes muon_vectors.inc: Muon's matrices in NumPy and double precision, on the inputs of vectors.py.

    python3 kernels/testdata/muon_vectors.py > kernels/testdata/muon_vectors.inc
"""

import numpy as np

from vectors import STEPS, floats, value

CASES = [
    (3, 5, dict(lr=0.02, momentum=0.95, nesterov=True, weight_decay=0.1)),
    (6, 4, dict(lr=0.01, momentum=0.9, nesterov=False, weight_decay=0.0)),
    (1, 7, dict(lr=0.01, momentum=0.95, nesterov=True, weight_decay=0.01)),
]


def newton_schulz(g, steps, eps):
    """Jordan et al., 2024: the quintic with coefficients 3.4445, -4.7750, 2.0315."""
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / max(np.linalg.norm(x), eps)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def muon(rows, columns, hyper):
    def matrix(step, scale):
        return np.array([value(step, i) * scale for i in range(rows * columns)]).reshape(rows, columns)

    mu, lr = hyper["momentum"], hyper["lr"]
    param, buf = matrix(0, 1), np.zeros((rows, columns))
    for step in range(1, STEPS + 1):
        g = matrix(step, 1 / 8)
        buf = mu * buf + (1 - mu) * g
        d = newton_schulz((1 - mu) * g + mu * buf if hyper["nesterov"] else buf, 5, 1e-7)
        param = param * (1 - lr * hyper["weight_decay"]) - lr * max(1, rows / columns)**0.5 * d
    return param, buf


def main():
    print("// Written by muon_vectors.py. Do not edit.")
    for rows, columns, h in CASES:
        param, buf = muon(rows, columns, h)
        print("{%d, %d, %r, %r, %s, %r,\n %s,\n %s}," %
              (rows, columns, h["lr"], h["momentum"], str(h["nesterov"]).lower(), h["weight_decay"],
               floats(param.ravel()), floats(buf.ravel())))


if __name__ == "__main__":
    main()
