"""Stage 3 over two hosts: the bits of one host with the same reduction tree, and what it takes on the way.

    bazel test //tests/hosts:stage3_test

Two `sherd run` on the loopback, each with a directory of its own for shared memory, or in network namespaces with a
cable between them: each host has its share of the parameters and gathers the other's while a block computes.
"""
import glob
import os

from tests.cluster import harness
from tests.cluster import safetensors
from tests.hosts import network
from tests.hosts import two_hosts

GATHER = [*harness.stage(3), "--prefetch-bucket", 60000, "--max-live", 120000]


class Stage3(two_hosts.TwoHostsTest):
    steps = 15
    # The last step stands while rank 0 makes up a text.
    linger = ["--generate", 20000]

    def one_host(self, ranks, args, steps=None):
        world = 2 * ranks
        with self.job(world, 2, args, steps=steps, run_args=["--reduce-groups", "%d,%d" % (ranks, ranks)]) as job:
            job.finish()
            return job.log.losses(), job.weights()

    def compare(self, ranks, args):
        losses, weights = self.one_host(ranks, args)
        with two_hosts.TwoHosts(self, ranks, ranks, args) as pair:
            pair.finish()
            self.assertEqual(pair.log.losses(), losses)
            self.assertSameWeights(pair.weights(), weights)
            return pair

    def stop(self, pair):
        for process in pair.processes:
            process.terminate()
        for process in pair.processes:
            harness.wait_for("the end", lambda: process.poll() is not None)

    def resident(self, pair, host, plane="param"):
        """Bytes that a host has for a plane of parameters at this moment; 0 before there is one."""
        found = glob.glob("%s/sherd-*/*/plane.%s" % (pair.places[host].shm, plane))
        return os.stat(found[0]).st_blocks * 512 if found else 0

    def whole(self, pair, host, plane="param"):
        found = glob.glob("%s/sherd-*/*/plane.%s" % (pair.places[host].shm, plane))
        return os.stat(found[0]).st_size


class BitsTest(Stage3):
    def test_one_rank_each(self):
        pair = self.compare(1, GATHER)
        self.assertGreater(pair.log.records()[self.steps]["prefetch_hits"], 0)

    def test_two_ranks_each(self):
        self.compare(2, [*GATHER, "--accumulation", 2])

    def test_two_ranks_each_in_16_bits(self):
        self.compare(2, [*GATHER, "--precision", "bf16"])

    def test_made_nowhere(self):
        self.compare(1, [*GATHER, "--init", "sharded", "--precision", "bf16", "--stochastic-rounding"])

    def test_frozen_blocks(self):
        self.compare(1, [*GATHER, "--freeze", 1, "--precision", "bf16"])

    def test_with_persistent_units(self):
        self.compare(1, ["--stage", 3, "--persistence-threshold", 20000, "--max-live", 150000])


class ExpertsTest(Stage3):
    """Units that some ranks, hosts or steps leave out: with few tokens most experts are idle on a rank."""
    context = 2
    args = [*GATHER, "--experts", 8]

    def test_one_rank_each(self):
        pair = self.compare(1, self.args)
        # Rank 0 has not gathered the same in every step.
        self.assertGreater(len({record["gathers"] for record in pair.log.records().values()}), 1)

    def test_two_ranks_each(self):
        self.compare(2, [*self.args, "--accumulation", 2, "--precision", "bf16"])


class CostTest(Stage3):
    def check_memory(self, pair):
        """No host ever has more parameters than its share and the limit."""
        for host in pair.json(0, "status")["hosts"]:
            index = host["index"]
            whole = self.whole(pair, index)
            edges = 2 * 4096 * 40  # the pages that shares begin and end in, of so many units
            self.assertLessEqual(self.resident(pair, index), whole // 2 + 4 * 120000 + edges)
            self.assertGreater(host["gathered_peak_bytes"], 0)
            self.assertLessEqual(host["gathered_peak_bytes"], 4 * 120000)

    def test_bytes_and_memory(self):
        args = [*GATHER, "--init", "sharded", *self.linger]
        with two_hosts.TwoHosts(self, 1, 1, args) as pair:
            most = {0: 0, 1: 0}

            def begun():
                for host in most:
                    most[host] = max(most[host], self.resident(pair, host))
                return pair.log.last_step() >= self.steps

            pair.wait_for("the last step", begun)

            def reported():
                hosts = pair.json(0, "status")["hosts"]
                return hosts if all(h["step"] == self.steps for h in hosts) else None

            hosts = pair.wait_for("word of the last step", reported)
            for host in most:
                self.assertLess(most[host], 0.8 * self.whole(pair, host), "whole on host %d" % host)
            self.check_memory(pair)
            pulled = os.path.join(pair.dir, "pulled.safetensors")
            self.assertEqual(pair.json(0, "pull", pulled)["step"], self.steps)
            tensors = safetensors.read(pulled)[0]
            # Host 1 sums for host 0 what host 0 owns, once a step, and host 0 sends its share as often as it is
            # gathered: before forward and before backward. The embeddings are used by the head, too; its units are
            # wanted again as soon as they were released, and then may be here still.
            first, second = (host["links"][0] for host in hosts)
            size = {name: len(tensors[name].data) // 2 for name in ("wte.weight", "wpe.weight", "ln_f.weight",
                                                                    "ln_f.bias")}
            embeddings = size["wte.weight"] + size["wpe.weight"]
            most = 2 * second["gradient_bytes"] + 2 * self.steps * embeddings
            self.assertLessEqual(first["gathered_bytes"], most)
            self.assertGreaterEqual(first["gathered_bytes"], most - self.steps * (sum(size.values()) + 4096))
            self.assertEqual(second["parameter_bytes"], 0)
            self.stop(pair)
        self.assertSameWeights(tensors, self.one_host(1, args[:-2])[1])

    def test_ranks_of_a_host_gather_once(self):
        with two_hosts.TwoHosts(self, 2, 1, [*harness.stage(3), *self.linger]) as pair:
            pair.wait_for_step(self.steps)

            def reported():
                hosts = pair.json(0, "status")["hosts"]
                return hosts if all(h["step"] == self.steps for h in hosts) else None

            first, second = (host["links"][0] for host in pair.wait_for("word of the last step", reported))
            # One rank would have it sent 2 times, and the embeddings 4 times.
            self.assertLess(first["gathered_bytes"], 3 * second["gradient_bytes"])
            self.stop(pair)


class KillTest(Stage3):
    steps = 40
    args = [*GATHER, "--accumulation", 2]

    def test_whoever_dies_on_either_side(self):
        want = self.one_host(1, self.args)[1]
        self.check_kills(two_hosts.TwoHosts(self, 1, 1, self.args), want)


class RestoreTest(Stage3):
    def restored(self, args):
        folder = os.path.join(self.dir, "ck-%d" % len(args))
        with two_hosts.TwoHosts(self, 1, 1, [*args, *self.linger], steps=8) as pair:
            pair.wait_for_step(8)
            self.assertEqual(pair.json(1, "save", folder)["step"], 8)
            self.stop(pair)
        with two_hosts.TwoHosts(self, 1, 1, [*args, "--restore", folder]) as pair:
            pair.finish()
            self.assertSameWeights(pair.weights(), self.one_host(1, args)[1])

    def test_a_job_goes_on_from_a_checkpoint(self):
        for init in ("process", "sharded"):
            with self.subTest(init=init):
                self.restored([*GATHER, "--init", init])


class CableTest(network.NetworkTest):
    steps = 15

    def one_host(self, ranks, args, steps):
        with self.job(2 * ranks, 2, args, steps=steps, run_args=["--reduce-groups", "%d,%d" % (ranks, ranks)]) as job:
            job.finish()
            return job.log.losses(), job.weights()

    def check(self, ranks, args, steps, during=lambda net, pair: None):
        losses, weights = self.one_host(ranks, args, steps)
        with network.TestNetwork(hosts=2) as net:
            with two_hosts.TwoHosts(self, ranks, 1, args, steps=steps, places=net.hosts) as pair:
                during(net, pair)
                pair.finish()
                self.assertEqual(pair.log.losses(), losses)
                self.assertSameWeights(pair.weights(), weights)

    def test_every_stage_with_two_ranks_each(self):
        for stage in (0, 1, 2, 3):
            with self.subTest(stage=stage):
                self.check(2, GATHER if stage == 3 else ["--stage", stage], self.steps)

    def test_a_cut_while_units_are_gathered(self):
        def cut(net, pair):
            for step, direction in ((4, "both"), (10, "in"), (16, "out")):
                pair.wait_for_step(step)
                net.cut(net.hosts[1], direction)
                try:
                    for host in (0, 1):
                        harness.wait_for("host %d to name the other" % host, lambda: "host %d" % (1 - host) in
                                         pair.json(host, "status")["waiting_for"])
                finally:
                    net.restore(net.hosts[1])
        self.check(1, [*GATHER, "--accumulation", 2], 40, cut)


if __name__ == "__main__":
    harness.main()
