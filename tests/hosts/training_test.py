"""Training over two hosts: the bits of one host with the same reduction tree, whoever dies on either side.

    bazel test //tests/hosts:training_test

Two `sherd run` on the loopback, each with a directory of its own for shared memory: runs for any user, and in CI.
"""

from tests.cluster import harness
from tests.hosts import two_hosts


class BitsTest(two_hosts.TwoHostsTest):
    steps = 15

    def compare(self, ranks, args):
        world = 2 * ranks
        with self.job(world, 2, args, run_args=["--reduce-groups", "%d,%d" % (ranks, ranks)]) as job:
            job.finish()
            losses, weights = job.log.losses(), job.weights()
        with two_hosts.TwoHosts(self, ranks, ranks, args) as pair:
            pair.finish()
            self.assertEqual(pair.log.losses(), losses)
            self.assertSameWeights(pair.weights(), weights)

    def test_one_rank_each(self):
        for stage in (0, 1, 2):
            with self.subTest(stage=stage):
                self.compare(1, ["--stage", stage])

    def test_two_ranks_each_in_16_bits(self):
        self.compare(2, ["--stage", 2, "--accumulation", 2, "--precision", "bf16"])

    def test_one_rank_each_in_16_bits(self):
        self.compare(1, ["--stage", 1, "--precision", "bf16", "--stochastic-rounding"])

    def test_lamb_takes_the_norms_of_tensors_that_hosts_divide(self):
        for args in (["--stage", 2], ["--stage", 3, "--precision", "bf16"]):
            with self.subTest(args=args):
                self.compare(1, ["--optimizer", "lamb", *args])


class KillTest(two_hosts.TwoHostsTest):
    steps = 40

    def test_whoever_dies_on_either_side(self):
        self.kill_all_kinds(["--stage", 2, "--accumulation", 2])

    def test_whoever_dies_between_the_passes_of_lamb(self):
        self.kill_all_kinds(["--stage", 1, "--optimizer", "lamb"])

    def kill_all_kinds(self, args):
        with self.job(2, 2, args, run_args=["--reduce-groups", "1,1"]) as job:
            want = job.finish().weights()
        self.check_kills(two_hosts.TwoHosts(self, 1, 1, args), want)


if __name__ == "__main__":
    harness.main()
