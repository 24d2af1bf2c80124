"""Hosts in groups that hold the state once each (mics_shard_size): the bits of one host with the same reduction tree,
whoever dies, and what goes over the wire.

    bazel test //tests/hosts:groups_test

Several `sherd run` on the loopback, each with a directory of its own for shared memory.
"""
import os
import shutil

from tests.cluster import harness
from tests.cluster import safetensors
from tests.hosts import two_hosts

GROUPS = ["--mics-shard-size", 1]


class Groups(two_hosts.TwoHostsTest):
    steps = 15
    # The last step stands while rank 0 makes up a text.
    linger = ["--generate", 20000]

    def one_host(self, args, hosts=2, steps=None, pull=()):
        tree = ",".join(["1"] * hosts)
        with self.job(hosts, 2, args, steps=steps, run_args=["--reduce-groups", tree]) as job:
            job.finish()
            return job.log.losses(), job.weights()

    def stop(self, pair):
        for process in pair.processes:
            process.terminate()
        for process in pair.processes:
            harness.wait_for("the end", lambda: process.poll() is not None)


class BitsTest(Groups):
    def compare(self, args, size=1, hosts=2, servers=1):
        losses, weights = self.one_host(args, hosts)
        args = [*args, "--mics-shard-size", size]
        with two_hosts.TwoHosts(self, 1, servers, args, hosts=hosts) as job:
            job.finish()
            self.assertEqual(job.log.losses(), losses)
            self.assertSameWeights(job.weights(), weights)

    def test_groups_of_one_host(self):
        for stage in (0, 1, 2, 3):
            with self.subTest(stage=stage):
                self.compare(harness.stage(stage) if stage == 3 else ["--stage", stage], servers=2)

    def test_groups_of_two_hosts(self):
        self.compare([*harness.stage(3), "--prefetch-bucket", 60000, "--max-live", 120000, "--init", "sharded"], size=2,
                     hosts=4)
        self.compare(["--stage", 2, "--accumulation", 2, "--precision", "bf16", "--optimizer", "lamb"], size=2, hosts=4)


class KillTest(Groups):
    steps = 40

    def test_whoever_dies_in_either_group(self):
        args = ["--stage", 2, "--accumulation", 2]
        want = self.one_host(args)[1]
        self.check_kills(two_hosts.TwoHosts(self, 1, 1, [*args, *GROUPS]), want)


class StateTest(Groups):
    def test_bytes_pull_push_save_and_restore(self):
        args = ["--stage", 1]
        folder = os.path.join(self.dir, "checkpoints")
        with two_hosts.TwoHosts(self, 1, 2, [*args, *GROUPS, *self.linger], steps=8) as pair:
            pair.wait_for_step(8)

            def reported():
                hosts = pair.json(0, "status")["hosts"]
                return hosts if all(h["step"] == 8 for h in hosts) else None

            hosts = pair.wait_for("word of the last step", reported)
            elements = 0
            for host in (0, 1):
                path = os.path.join(self.dir, "pulled-%d.safetensors" % host)
                self.assertEqual(pair.json(host, "pull", path, "--with-optimizer")["step"], 8)
                elements = sum(len(t.data) // 4 for t in safetensors.read(path)[0].values()) // 3
            with open(os.path.join(self.dir, "pulled-0.safetensors"), "rb") as a:
                with open(os.path.join(self.dir, "pulled-1.safetensors"), "rb") as b:
                    self.assertEqual(a.read(), b.read())
            # Every step all of this host's sums go to the other group, and no parameter does.
            for host in hosts:
                sent = host["links"][0]
                self.assertGreaterEqual(sent["gradient_bytes"], 8 * 4 * elements)
                self.assertLess(sent["gradient_bytes"], 8 * 4 * elements * 1.1)
                self.assertLess(sent["parameter_bytes"], 2 * 4 * elements)
            self.assertEqual(pair.json(1, "save", folder)["step"], 8)
            self.stop(pair)
        want = self.one_host(args)[1]
        with two_hosts.TwoHosts(self, 1, 1, [*args, *GROUPS, "--restore", folder]) as pair:
            pair.finish()
            self.assertSameWeights(pair.weights(), want)

    def test_a_push_reaches_every_group(self):
        with self.job(1, 1, ["--seed", 7], steps=2) as job:
            other = job.finish().weights()
            shutil.copy(job.saved, os.path.join(self.dir, "other.safetensors"))
        still = ["--stage", 2, "--lr", 0, "--weight-decay", 0]
        with two_hosts.TwoHosts(self, 1, 2, [*still, *GROUPS], steps=5000) as pair:
            pair.wait_for_step(3)
            step = pair.json(1, "push", os.path.join(self.dir, "other.safetensors"))["step"]
            pair.wait_for_step(step + 2)
            for host in (0, 1):
                path = os.path.join(self.dir, "pushed-%d.safetensors" % host)
                pair.json(host, "pull", path)
                self.assertSameWeights(safetensors.read(path)[0], other)
            self.stop(pair)

    def test_a_size_that_no_hosts_make_up(self):
        with two_hosts.TwoHosts(self, 2, 1, ["--stage", 1, "--mics-shard-size", 3]) as pair:
            for host, process in enumerate(pair.processes):
                harness.wait_for("the end of host %d" % host, lambda: process.poll() is not None)
            said = pair.output("stderr", 0) + pair.output("stderr", 1)
            self.assertNotEqual([p.returncode for p in pair.processes], [0, 0])
            self.assertIn("mics_shard_size is 3, but the ranks of this job's hosts, 2, 2, do not make up groups of so many "
                          "on equally many hosts: take the ranks of one host, or of several", said)


if __name__ == "__main__":
    harness.main()
