"""A model that only computes, partitioned over the shard servers of two hosts, each of which reads its own part of the
files."""
import os
import re

from tests.cluster import harness
from tests.hosts import two_hosts

PROMPTS = ["the ", "a", "of them"]


class InferenceTest(two_hosts.TwoHostsTest):
    steps = 30

    def test_the_text_is_that_of_one_process(self):
        _, tensors = self.reference()
        file = os.path.join(self.dir, "reference-0.safetensors")
        flags = ["--file", file, "--tokens", "60"] + [flag for p in PROMPTS for flag in ("--prompt", p)]
        alone = harness.run(harness.SAMPLE, *flags)
        self.assertEqual(alone.status, 0, alone)
        command = [harness.program(harness.SAMPLE), "--sharded", *flags]
        for ranks in (1, 2):
            with two_hosts.TwoHosts(self, ranks, 2, command=command) as pair:
                pair.finish()
                lines = "".join(pair.output("stdout", h) for h in (0, 1)).splitlines()
                self.assertEqual(sorted(re.sub(r"^\[\d+\] ", "", line) for line in lines),
                                 sorted(alone.stdout.splitlines()), ranks)

    def test_training_goes_on_from_them(self):
        _, tensors = self.reference()
        file = os.path.join(self.dir, "reference-0.safetensors")
        for args in (["--stage", 1], [*harness.stage(3), "--init", "sharded"]):
            with two_hosts.TwoHosts(self, 1, 2, ["--restore", file, "--lr", 0, *args], steps=2) as pair:
                pair.finish()
                self.assertSameWeights(pair.weights(), tensors, args)


if __name__ == "__main__":
    harness.main()
