"""Writes deepspeed_schedules.inc: learning rates of two groups and the betas of the first, by DeepSpeed's own schedules.

    python3 -m venv --system-site-packages v && v/bin/pip install deepspeed==0.19.8
    DS_ACCELERATOR=cpu v/bin/python core/testdata/deepspeed_schedules.py > core/testdata/deepspeed_schedules.inc
"""

import torch
from deepspeed.runtime import lr_schedules

RATES = (0.01, 0.003)
UPDATES = 20
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
    ("OneCycle", dict(cycle_min_lr=0.001, cycle_max_lr=0.02, cycle_first_step_size=5)),
    ("OneCycle", dict(cycle_min_lr=0.001, cycle_max_lr=0.02, cycle_first_step_size=6, cycle_second_step_size=3,
                      decay_step_size=4, decay_lr_rate=0.5, decay_mom_rate=0.01, cycle_min_mom=0.7,
                      cycle_max_mom=0.95)),
    ("OneCycle", dict(cycle_min_lr=0.001, cycle_max_lr=0.02, cycle_first_step_size=9, cycle_second_step_size=7,
                      cycle_first_stair_count=3, cycle_momentum=False)),
    ("OneCycle", dict(cycle_min_lr=0.0, cycle_max_lr=0.02, cycle_first_step_size=7, cycle_second_step_size=10,
                      cycle_first_stair_count=2, cycle_second_stair_count=5, decay_lr_rate=0.5, decay_mom_rate=0.5)),
    ("OneCycle", dict(cycle_min_lr=0.001, cycle_max_lr=0.02, cycle_first_step_size=3, cycle_second_step_size=0,
                      cycle_first_stair_count=-1, decay_step_size=1, decay_lr_rate=1.5)),
    ("LRRangeTest", dict()),
    ("LRRangeTest", dict(lr_range_test_min_lr=1e-4, lr_range_test_step_size=3, lr_range_test_step_rate=5.0)),
    ("LRRangeTest", dict(lr_range_test_min_lr=1e-4, lr_range_test_step_size=6, lr_range_test_step_rate=2,
                         lr_range_test_staircase=True)),
]


def main():
    lr_schedules.logger.disabled = True  # it writes to stdout
    print("// Written by deepspeed_schedules.py. Do not edit.")
    for name, parameters in CASES:
        tensors = [torch.zeros(1, requires_grad=True) for _ in RATES]
        optimizer = torch.optim.Adam([dict(params=[t], lr=lr) for t, lr in zip(tensors, RATES)], lr=1)
        schedule = getattr(lr_schedules, name)(optimizer, **parameters)
        rates = []
        for _ in range(UPDATES):
            first, second = optimizer.param_groups
            rates.append("{%r, %r, %r, %r}" % (first["lr"], second["lr"], *first["betas"]))
            schedule.step()
        kind = parameters.pop("warmup_type", "")
        numbers = ", ".join('{"%s", %r}' % (key, int(value) if isinstance(value, bool) else value)
                            for key, value in parameters.items())
        print('{{"%s", {%s}, "%s"},\n {%s}},' % (name, numbers, kind, ",\n  ".join(rates)))


if __name__ == "__main__":
    main()
