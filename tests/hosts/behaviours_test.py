"""What every stage must keep, over two hosts: everything at once, in every stage and precision, with one and two
ranks on a host, and the bits of one host whose gradients add up in the same groups.

A run has micro-batches, clipping, parameter groups with and without decay, a schedule, frozen blocks, a tied weight,
experts that some ranks do not use in some steps, a value written by hand, steps skipped for their gradients (fp16) and
a checkpoint in the middle, from which one host goes on to the same end.
"""
import json
import os

from tests.cluster import harness
from tests.hosts import network
from tests.hosts import two_hosts

AT_ONCE = ["--accumulation", 2, "--clip", 0.5, "--weight-decay", 0.1, "--schedule", "WarmupCosineLR", "--warmup", 3,
           "--freeze", 1, "--experts", 3, "--write", "ln_f.bias", "--write-value", 0.125, "--write-step", 4]
CONFIGS = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    # A scale so large that the first steps overflow.
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 20, "loss_scale_window": 3, "hysteresis": 1}},
}


class BehavioursTest(network.NetworkTest):
    steps = 14
    batch = 8

    def check(self, stage, ranks, precision):
        args = [*harness.stage(stage), *AT_ONCE]
        config = os.path.join(self.dir, precision + ".json")
        with open(config, "w") as f:
            json.dump(CONFIGS[precision], f)
        alone = {"trainers": 2 * ranks, "servers": 2,
                 "run_args": ["--config", config, "--reduce-groups", "%d,%d" % (ranks, ranks)]}
        with self.job(args=args, **alone) as job:
            job.finish()
            records, weights = job.log.records(), job.weights()
        with network.TestNetwork(hosts=2) as net, two_hosts.TwoHosts(
                self, ranks, 2, [*args, "--save-checkpoint", "saved", "--save-every", 7], places=net.hosts,
                run_args=["--config", config]) as pair:
            pair.finish()
            for step, record in pair.log.records().items():
                for key in ("loss", "grad_norm", "lr", "loss_scale", "skipped"):
                    self.assertEqual(record.get(key), records[step].get(key), (step, key))
            self.assertSameWeights(pair.weights(), weights)
        skipped = [step for step, record in records.items() if record.get("skipped")]
        self.assertEqual(bool(skipped), precision == "fp16", skipped)
        self.assertLess(len(skipped), self.steps)
        with self.job(args=[*args, "--restore", pair.dir + "/saved", "--restore-tag", "step-7"], **alone) as job:
            job.finish()
            self.assertSameWeights(job.weights(), weights)


def add(stage, ranks, precision):
    name = "test_stage_%d_of_2_hosts_with_%d_in_%s" % (stage, ranks, precision)
    setattr(BehavioursTest, name, lambda self: self.check(stage, ranks, precision))


for _stage in (0, 1, 2, 3):
    for _precision in CONFIGS:
        add(_stage, 2, _precision)
    add(_stage, 1, "fp32")
    add(_stage, 1, "bf16")

if __name__ == "__main__":
    harness.main()
