"""Training on shard servers computes what one process computes, and the same bits whatever the sharding.

    bazel test //tests/cluster:equality_test
    bazel run //tests/cluster:matrix              every stage, world size and number of servers
"""
from tests.cluster import harness

STAGES, WORLDS, SERVERS = (0, 1, 2, 3), (1, 2, 3, 4), (1, 2, 5)
# (stage, world, servers): every value of each, more processes than cores, and per world size what must be equal.
FEW = [(0, 1, 2), (2, 1, 1), (0, 2, 5), (1, 2, 1), (2, 2, 2), (2, 2, 2), (1, 3, 2), (2, 4, 5), (0, 4, 1), (3, 2, 2), (3, 3, 1)]


class EqualityTest(harness.ClusterTest):
    steps = 50

    def compare(self, cases):
        losses, _ = self.reference()
        first = {}  # by world size
        for stage, world, servers in cases:
            with self.subTest(stage=stage, world=world, servers=servers), \
                    self.job(world, servers, harness.stage(stage)) as job:
                job.finish()
                self.assertCloseLosses(job.log.losses(), losses, 1e-4)
                records = job.log.records()
                self.assertEqual({r["world_size"] for r in records.values()}, {world})
                weights = job.weights()
                self.assertSameWeights(weights, first.setdefault(world, weights))

    def test_losses_of_one_process_and_bits_of_any_sharding(self):
        self.compare(FEW)

    @harness.only_full
    def test_every_combination_twice(self):
        self.compare([(stage, world, servers) for world in WORLDS for stage in STAGES for servers in SERVERS] +
                     [(stage, world, 2) for world in WORLDS for stage in STAGES])


class ReduceGroupsTest(harness.ClusterTest):
    steps = 30

    def test_groups_have_bits_of_their_own_whatever_the_sharding(self):
        losses, _ = self.reference()
        first = {}
        cases = [(2, "1,1", 0, 1), (2, "1,1", 2, 2), (4, "2,2", 1, 2), (4, "2,2", 2, 3), (4, "2,2:bf16", 2, 2),
                 (3, "3", 1, 2), (3, None, 2, 1)]
        for world, groups, stage, servers in cases:
            run_args = ["--reduce-groups", groups] if groups else []
            with self.subTest(groups=groups, stage=stage, servers=servers), \
                    self.job(world, servers, ["--stage", stage], run_args=run_args) as job:
                job.finish()
                self.assertCloseLosses(job.log.losses(), losses, 1e-3 if "bf16" in str(groups) else 1e-4)
                weights = job.weights()
                # One group alone is the sum without groups.
                self.assertSameWeights(weights, first.setdefault(groups if groups != "3" else None, weights))
        with self.assertRaises(AssertionError):
            self.assertSameWeights(first["2,2"], first["2,2:bf16"])

    def test_a_killed_trainer_and_server_change_nothing(self):
        args = dict(args=["--stage", 2], run_args=["--reduce-groups", "2,1"])
        with self.job(3, 2, **args) as job:
            want = job.finish().weights()
        with self.job(3, 2, **args) as job:
            job.wait_for_step(5)
            job.kill("trainer", 1)
            job.wait_for_step(12)
            job.kill("server", 1)
            self.assertSameWeights(job.finish().weights(), want)


class LongRunTest(harness.ClusterTest):
    steps = 200
    batch = 8
    context = 32

    def test_losses_after_200_steps(self):
        # A gentle learning rate: with larger ones so small a batch is chaotic, and rounding grows without bound.
        losses, _ = self.reference("--lr", "5e-4")
        with self.job(2, 2, ["--stage", 2, "--lr", 5e-4]) as job:
            got = job.finish().log.losses()
            self.assertCloseLosses(got, losses, 1e-3)
            self.assertCloseLosses(got[:50], losses[:50], 1e-4)
            self.assertLess(got[-1], 0.7 * got[0])


class AccumulationTest(harness.ClusterTest):
    steps = 20
    batch = 6

    def test_micro_batches_add_up_to_one_batch(self):
        losses, weights = self.reference()
        for stage in STAGES:
            for micros in (2, 3) if stage >= 2 else (3,):
                with self.subTest(stage=stage, micros=micros), \
                        self.job(2, 2, harness.stage(stage) + ["--accumulation", micros]) as job:
                    job.finish()
                    self.assertCloseLosses(job.log.losses(), losses, 1e-4)
                    self.assertCloseWeights(job.weights(), weights, 1e-2)

    def test_ranks_that_do_not_divide_the_batch(self):
        losses, _ = self.reference()
        for args in (["--stage", 1], ["--stage", 2, "--accumulation", 2]):
            with self.subTest(args=args), self.job(4, 2, args) as job:
                job.finish()
                self.assertCloseLosses(job.log.losses(), losses, 1e-4)


class CycleTest(harness.ClusterTest):
    steps = 30

    def test_rates_and_betas_are_those_of_one_process(self):
        for optimizer, rate in (("adamw", "1e-3"), ("lamb", "1e-3")):
            how = ["--optimizer", optimizer, "--schedule", "OneCycle", "--lr", rate]
            losses, _ = self.reference(*how)
            with self.subTest(optimizer), self.job(2, 2, ["--stage", 1, *how]) as job:
                self.assertCloseLosses(job.finish().log.losses(), losses, 1e-4)
                records = job.log.records()
                self.assertAlmostEqual(records[16]["lr"], 1e-3, delta=1e-12)
                self.assertLess(records[1]["lr"], 2e-4)


class ExpertsTest(harness.ClusterTest):
    """Blocks that some ranks or steps leave out: with one token a sample most experts are idle on a rank."""
    steps = 20
    batch = 2

    def test_experts_of_some_ranks(self):
        losses, _ = self.reference("--experts", 6)
        weights = []
        for stage in (2, 3):
            with self.subTest(stage=stage), self.job(2, 2, harness.stage(stage) + ["--experts", 6]) as job:
                self.assertCloseLosses(job.finish().log.losses(), losses, 1e-4)
                weights.append(job.weights())
        self.assertSameWeights(*weights)


class FrozenTest(harness.ClusterTest):
    def test_blocks_that_are_not_trained(self):
        losses, weights = self.reference("--freeze", 1)
        for stage in (1, 3):
            with self.subTest(stage=stage), self.job(2, 2, harness.stage(stage) + ["--freeze", 1]) as job:
                self.assertCloseLosses(job.finish().log.losses(), losses, 1e-4)
                got = job.weights()
                for name in got:
                    if not name.startswith(("h.1.", "ln_f.")):
                        self.assertEqual(got[name], weights[name], name)
                self.assertCloseWeights(got, weights, 1e-2)


class ShardedInitTest(harness.ClusterTest):
    steps = 3

    def test_values_that_no_process_held(self):
        weights = []
        for trainers, servers, stage, precision in ((1, 1, 3, "fp32"), (3, 2, 1, "fp32"), (2, 2, 3, "fp32")):
            args = harness.stage(stage) + ["--init", "sharded", "--precision", precision, "--lr", 0]
            with self.subTest(args=args), self.job(trainers, servers, args) as job:
                job.finish()
                weights.append(job.weights())
        self.assertSameWeights(weights[0], weights[1])
        self.assertSameWeights(weights[0], weights[2])
        norm = weights[0]["h.0.ln_1.weight"].floats()
        self.assertEqual(set(norm), {1.0})
        table = weights[0]["wte.weight"].floats()
        deviation = (sum(v * v for v in table) / len(table)) ** 0.5
        self.assertTrue(0.019 < deviation < 0.021, deviation)


class FewSamplesTest(harness.ClusterTest):
    steps = 20
    batch = 2

    def test_more_ranks_than_samples(self):
        losses, _ = self.reference()
        with self.job(3, 2, ["--stage", 2]) as job:
            self.assertCloseLosses(job.finish().log.losses(), losses, 1e-4)


if __name__ == "__main__":
    harness.main()
