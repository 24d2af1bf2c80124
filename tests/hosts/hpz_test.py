"""zero_hpz_partition_size over two hosts: each keeps what it has gathered, so that a unit comes once a step.

    bazel test //tests/hosts:hpz_test
"""
import json
import os

from tests.cluster import harness
from tests.cluster import safetensors
from tests.hosts import two_hosts

# A limit that would leave a host next to nothing.
ARGS = ["--prefetch-bucket", 60000, "--max-live", 60000, "--max-reuse-distance", 0, "--persistence-threshold", 0]


class Hpz(two_hosts.TwoHostsTest):
    steps = 15
    # The last step stands while rank 0 makes up a text.
    linger = ["--generate", 20000]

    def config(self, partition, **more):
        path = os.path.join(self.dir, "hpz%d.json" % partition)
        with open(path, "w") as f:
            json.dump({**more, "zero_optimization": {"stage": 3, "zero_hpz_partition_size": partition}}, f)
        return ["--config", path]

    def two(self, partition, args, steps=None, **more):
        return two_hosts.TwoHosts(self, 2, 1, args, run_args=self.config(partition, **more), steps=steps)

    def plain(self, args, steps=None, **more):
        """One host with the same reduction tree, where nothing is sent."""
        with self.job(4, 2, args, steps=steps, run_args=["--reduce-groups", "2,2", *self.config(1, **more)]) as job:
            job.finish()
            return job.log.losses(), job.weights()


class BitsTest(Hpz):
    def compare(self, args, **more):
        losses, weights = self.plain(args, **more)
        with self.two(2, args, **more) as pair:
            pair.finish()
            self.assertEqual(pair.log.losses(), losses)
            self.assertSameWeights(pair.weights(), weights)

    def test_bits_are_those_of_plain_stage_3(self):
        self.compare(ARGS)

    def test_in_16_bits_with_accumulation(self):
        self.compare([*ARGS, "--accumulation", 2, "--init", "sharded"], bf16={"enabled": True})

    def test_whoever_dies_on_either_side(self):
        want = self.plain(ARGS, steps=30)[1]
        with self.two(2, ARGS, steps=30) as pair:
            for step, host, kind in ((4, 1, "trainer"), (9, 1, "server"), (15, 0, "trainer"), (20, 0, "server")):
                pair.wait_for_step(step)
                pair.kill(host, kind)
            pair.finish()
            self.assertSameWeights(pair.weights(), want)


class CostTest(Hpz):
    batch = 8  # a sample of each micro-batch for every rank

    def test_parameters_are_sent_once_a_step(self):
        args = [*ARGS, "--accumulation", 2, "--init", "sharded", *self.linger]
        with self.two(2, args) as pair:
            pair.wait_for_step(self.steps)

            def reported():
                hosts = pair.json(0, "status")["hosts"]
                return hosts if all(h["step"] == self.steps for h in hosts) else None

            hosts = pair.wait_for("word of the last step", reported)
            pulled = os.path.join(pair.dir, "pulled.safetensors")
            self.assertEqual(pair.json(0, "pull", pulled)["step"], self.steps)
            first, second = (host["links"][0] for host in hosts)
            # For each of the two micro-batches host 1 sends its sums of what host 0 owns, and host 0 that share of the
            # parameters once for both: Psi (H-1)/H, where plain stage 3 sends it four times.
            self.assertEqual(second["gradient_bytes"], 2 * first["gathered_bytes"])
            elements = sum(len(t.data) // 4 for t in safetensors.read(pulled)[0].values())
            self.assertGreaterEqual(first["gathered_bytes"], self.steps * 4 * elements // 2)
            self.assertLess(first["gathered_bytes"], 1.1 * self.steps * 4 * elements / 2)
            self.assertEqual(first["parameter_bytes"] + second["parameter_bytes"], 0)
            for host in hosts:  # all that the other one has, but for pages in which shares meet
                self.assertGreater(host["gathered_peak_bytes"], 0.95 * 4 * elements / 2)
            for process in pair.processes:
                process.terminate()
            for process in pair.processes:
                harness.wait_for("the end", lambda: process.poll() is not None)


class WrongSizeTest(Hpz):
    def test_a_size_of_no_host(self):
        for partition in (3, 4):
            with self.subTest(partition=partition), self.two(partition, ARGS) as pair:
                for host, process in enumerate(pair.processes):
                    harness.wait_for("the end of host %d" % host, lambda: process.poll() is not None)
                said = pair.output("stderr", 0) + pair.output("stderr", 1)
                self.assertNotEqual([p.returncode for p in pair.processes], [0, 0])
                self.assertIn("hpz_partition=%d (zero_hpz_partition_size) is not the number of ranks of a host, which "
                              "are 2,2: write one of these" % partition, said)


if __name__ == "__main__":
    harness.main()
