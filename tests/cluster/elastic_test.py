"""Trainers that come and go while training goes on, with deaths in between.

    bazel test //tests/cluster:elastic_test [--test_arg=--seed=N]
"""
import json
import os
import random
import signal

from tests.cluster import harness

SCHEDULE = [(60, 3), (120, 1), (180, 4), (240, 2)]  # from this step on, so many trainers


def samples_of(job):
    """What ranks computed: {(step, world size): {(rank, micro-batch): samples}}. Fails if a rank computed a step of one
    world more than once, as successors and steps that are given up do, with other samples."""
    found = {}
    with open(os.path.join(job.dir, "samples")) as f:
        for line in map(json.loads, f):
            place = found.setdefault((line["step"], line["world_size"]), {})
            same = place.setdefault((line["rank"], line["micro"]), line["samples"])
            job.test.assertEqual(same, line["samples"], line)
    return found


class ElasticTest(harness.ClusterTest):
    steps = 300
    batch = 12
    context = 32
    args = ["--stage", 2, "--sampling", "pass", "--log-samples", "samples"]

    def assertEachSampleOncePerPass(self, job, world_of):
        """Steps 1, 2, ... used up the windows of the text, each once a pass. `world_of`: how many ranks a step had."""
        used = []
        found = samples_of(job)
        for step in range(1, self.steps + 1):
            parts = found[step, world_of(step)]
            self.assertEqual(sorted({rank for rank, _ in parts}), list(range(world_of(step))), step)
            used += [sample for place in sorted(parts) for sample in parts[place]]
            self.assertEqual(len(used), step * self.batch, step)
        size = max(used) + 1
        self.assertGreater(len(used), 1.5 * size, "too few steps to see more than a pass")
        for begin in range(0, len(used) - size + 1, size):
            self.assertEqual(sorted(used[begin:begin + size]), list(range(size)), "pass %d" % (begin // size))

    def resize(self, job, trainers, from_step=None):
        """`sherd resize`, to its end; with `from_step`, in force exactly from there."""
        if from_step is None:
            return job.json("resize", "--trainers", trainers)
        job.wait_for_step(from_step - 50)
        # Rank 0 stands still while the others start, so that none comes too late for that step.
        job.signal("trainer", 0, signal.SIGSTOP)
        self.assertLess(job.log.last_step(), from_step - 2, "the machine is too slow for this test")
        resizing = job.start_cli("resize", "--trainers", trainers, "--from-step", from_step)
        job.wait_for("the resize to be proposed",
                     lambda: "the next step boundary" in job.json("status")["waiting_for"])
        job.signal("trainer", 0, signal.SIGCONT)
        self.assertEqual(resizing.wait(timeout=harness.LIMIT), 0)
        return None

    def train_by_schedule(self, between):
        with self.job(2, 2, self.args, run_args=["--restarts", 100, "--max", 4]) as job:
            for from_step, trainers in SCHEDULE:
                self.resize(job, trainers, from_step)
                self.assertEqual(job.json("status")["world_size"], trainers)
                between(job, trainers)
            job.finish()
            records = job.log.records()
            world_of = lambda step: max([(0, 2), *(entry for entry in SCHEDULE if entry[0] <= step)])[1]
            self.assertEachSampleOncePerPass(job, world_of)
            for step in range(1, self.steps + 1):
                world = world_of(step)
                if step in records:  # a trainer killed between an update and its log line leaves that step out
                    self.assertEqual(records[step]["world_size"], world, step)
            return job.weights(), {step: record["loss"] for step, record in records.items()}

    def test_two_three_one_four_two_with_deaths_between(self):
        want, losses = self.train_by_schedule(lambda job, trainers: None)
        self.assertLess(losses[self.steps], 0.8 * losses[1])
        rng = random.Random(harness.seed())
        servers = iter((3, 1, 2, 2))

        def disturb(job, trainers):
            job.kill_if_running("trainer", rng.randrange(trainers))
            job.json("resize", "--servers", next(servers))
            job.kill_if_running("server", 0)
            job.kill_if_running("trainer", rng.randrange(trainers))
        got, got_losses = self.train_by_schedule(disturb)
        self.assertSameWeights(got, want)
        self.assertEqual(got_losses, {step: losses[step] for step in got_losses})

    def test_a_coordinator_or_a_trainer_that_dies_while_others_join(self):
        for kind in "trainer", "server":
            with self.subTest(kind=kind), self.job(2, 2, self.args, run_args=["--restarts", 100]) as job:
                job.wait_for_step(3)
                resizing = job.start_cli("resize", "--trainers", 3)
                if kind == "trainer":
                    job.kill("trainer", 2)
                else:
                    job.pid("trainer", 2)
                    job.kill("server", int(job.json("status")["coordinator"]["id"][1:]))
                self.assertEqual(resizing.wait(timeout=harness.LIMIT), 0)
                self.assertEqual(job.json("status")["world_size"], 3)
                job.finish()
                self.assertEqual(job.log.records()[self.steps]["world_size"], 3)

    def test_the_job_goes_on_without_a_trainer_that_nobody_replaces(self):
        for rank in 2, 0:
            with self.subTest(rank=rank), \
                    self.job(3, 2, self.args, run_args=["--restarts", 0, "--min", 2]) as job:
                job.wait_for_step(5)
                job.kill("trainer", rank)
                job.finish()
                records = job.log.records()
                self.assertEqual(records[self.steps]["world_size"], 2)
                self.assertLess(records[self.steps]["loss"], 0.8 * records[1]["loss"])

    def test_what_cannot_be_is_refused(self):
        with self.job(2, 1, self.args + ["--virtual-ranks", 4], run_args=["--min", 1, "--max", 4]) as job:
            job.wait_for_step(1)
            for trainers, named in ((5, "not in 1..4"), (3, "do not divide the job's 4 virtual ranks")):
                done = job.cli("resize", "--trainers", trainers)
                self.assertFails(done, 1, named)
            self.assertFails(job.cli("resize"), 2, "--trainers")
            job.finish()


class VirtualRanksTest(harness.ClusterTest):
    steps = 200
    batch = 12
    args = ["--stage", 2, "--virtual-ranks", 4]

    def test_every_world_and_every_resize_gives_the_same_bits(self):
        want = None
        for world in (1, 2, 4):
            with self.job(world, 2, self.args) as job:
                weights = job.finish().weights()
                want = want or weights
                self.assertSameWeights(weights, want, "%d trainers" % world)
        with self.job(2, 2, self.args, run_args=["--restarts", 100]) as job:
            job.wait_for_step(3)
            for world in (4, 1, 2):
                job.json("resize", "--trainers", world)
                job.kill_if_running("trainer", world - 1)
                job.kill_if_running("server", 1)
            worlds = {r["world_size"] for r in job.finish().log.records().values()}
            self.assertEqual(worlds, {1, 2, 4})
            self.assertSameWeights(job.weights(), want)


if __name__ == "__main__":
    harness.main()
