"""Writes deepspeed_schedules.inc: the learning rates of DeepSpeed's own schedules, for two groups.

    python3 -m venv --system-site-packages v && v/bin/pip install deepspeed
    v/bin/python core/testdata/deepspeed_schedules.py > core/testdata/deepspeed_schedules.inc
"""

import torch
from deepspeed.runtime import lr_schedules

RATES = (0.01, 0.003)
UPDATES = 14
CASES = [
    ("WarmupLR", dict(warmup_num_steps=5)),
    ("WarmupLR", dict(warmup_num_steps=1, warmup_max_lr=0.02)),
    ("WarmupLR", dict(warmup_min_lr=0.001, warmup_max_lr=0.02, warmup_num_steps=6, warmup_type="linear")),
    ("WarmupDecayLR", dict(total_num_steps=12, warmup_num_steps=4)),
    ("WarmupDecayLR", dict(total_num_steps=9, warmup_min_lr=1e-4, warmup_max_lr=0.03, warmup_num_steps=3,
                           warmup_type="linear")),
    ("WarmupDecayLR", dict(total_num_steps=3, warmup_num_steps=6)),
    ("WarmupCosineLR", dict(total_num_steps=12, warmup_num_steps=4)),
    ("WarmupCosineLR", dict(total_num_steps=10, warmup_num_steps=3, warmup_min_ratio=0.1, cos_min_ratio=0.05,
                            warmup_type="linear")),
    ("WarmupCosineLR", dict(total_num_steps=4, warmup_num_steps=8)),
]


def main():
    print("// Written by deepspeed_schedules.py. Do not edit.")
    for name, parameters in CASES:
        tensors = [torch.zeros(1, requires_grad=True) for _ in RATES]
        optimizer = torch.optim.SGD([dict(params=[t], lr=lr) for t, lr in zip(tensors, RATES)], lr=1)
        schedule = getattr(lr_schedules, name)(optimizer, **parameters)
        rates = []
        for _ in range(UPDATES):
            rates.append("{%r, %r}" % tuple(group["lr"] for group in optimizer.param_groups))
            schedule.step()
        kind = parameters.pop("warmup_type", "")
        numbers = ", ".join('{"%s", %r}' % item for item in parameters.items())
        print('{{"%s", {%s}, "%s"},\n {%s}},' % (name, numbers, kind, ",\n  ".join(rates)))


if __name__ == "__main__":
    main()
