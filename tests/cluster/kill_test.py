"""kill -9 and SIGSTOP of any process at any instant: the run ends with the bits of one that was left alone.

    bazel test //tests/cluster:kill_test [--test_arg=--seed=N]
    bazel run //tests/cluster:kills [-- --seed=N]       20 kills of each kind
"""
import random
import signal
import sys
import time

from tests.cluster import harness

KILLS = 20 if "--full" in sys.argv else 3


class KillTest(harness.ClusterTest):
    steps = 60
    args = ["--stage", 2, "--accumulation", 2]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.undisturbed = {}

    def expected(self, trainers, servers):
        """What undisturbed training gives."""
        if trainers not in self.undisturbed:
            with self.job(trainers, servers, self.args) as job:
                self.undisturbed[trainers] = job.finish().weights()
        return self.undisturbed[trainers]

    def wait_for_instant(self, job, rng):
        """A moment anywhere between the first process and the last step; what it is, in words."""
        # Starting takes longer than many steps: servers, libraries, the initial values.
        step, part = 0 if rng.random() < 0.25 else rng.randrange(1, self.steps + 1), rng.random()
        if step == 0:
            job.pid("server", 0)
            pause = part * 1.5
        else:
            job.wait_for_step(step)
            pause = part * job.log.records()[step]["step_ms"] / 1000
        time.sleep(pause)  # chosen at random: waits for nothing
        return "%.0f ms after step %d" % (pause * 1000, step)

    def kill_at_random(self, kind):
        seed = harness.seed()
        for number in range(KILLS):
            rng = random.Random("%d %s %d" % (seed, kind, number))
            trainers, servers = rng.choice([(2, 2), (2, 1), (3, 2), (1, 3)])
            index = rng.randrange(trainers if kind == "trainer" else servers)
            want = self.expected(trainers, servers)
            with self.subTest(seed=seed, number=number), self.job(trainers, servers, self.args) as job:
                when = self.wait_for_instant(job, rng)
                killed = job.kill_if_running(kind, index)
                print("%d trainers, %d servers: %s %d %s %s" % (
                    trainers, servers, kind, index, "killed" if killed else "had ended", when), flush=True)
                job.finish()
                self.assertSameWeights(job.weights(), want, when)

    def test_trainer_killed_at_any_instant(self):
        self.kill_at_random("trainer")

    def test_server_killed_at_any_instant(self):
        self.kill_at_random("server")

    def test_many_deaths_in_one_run(self):
        seed = harness.seed()
        rng = random.Random("%d many" % seed)
        want = self.expected(2, 2)
        for stage in (2, 3):
            args = harness.stage(stage) + ["--accumulation", 2]
            with self.subTest(stage=stage), self.job(2, 2, args, run_args=["--restarts", 100]) as job:
                for step in range(1, self.steps - 1, 4):
                    job.wait_for_step(step)
                    for victim in rng.sample([("trainer", 0), ("trainer", 1), ("server", 0), ("server", 1)],
                                             rng.randint(1, 3)):
                        job.kill_if_running(*victim)
                job.finish()
                self.assertSameWeights(job.weights(), want)

    def test_all_servers_killed_at_once(self):
        want = self.expected(2, 2)
        with self.job(2, 2, self.args) as job:
            job.wait_for_step(7)
            for index in (0, 1):
                job.signal("server", index, signal.SIGKILL)
            job.finish()
            self.assertSameWeights(job.weights(), want)

    def stop_for_a_while(self, kind, index, member):
        """SIGSTOP for 5 s: nobody may be declared dead meanwhile. `member`: whom status must call stalled."""
        want = self.expected(2, 2)
        with self.job(2, 2, self.args) as job:
            job.wait_for_step(5)
            if kind == "server":  # the coordinator, or the other one
                leader = int(job.json("status")["coordinator"]["id"][1:])
                index, member = (leader, None) if index == "leader" else (1 - leader, "s%d" % (1 - leader))
            began = time.monotonic()
            pid = job.signal(kind, index, signal.SIGSTOP)
            if member:
                job.wait_for("status to call %s stalled" % member, lambda: any(
                    m["id"] == member and m["state"] == "stalled" for m in job.json("status")["members"]))
            else:  # nobody else knows the whole, but says whom it waits for
                job.waits_for("s%d.sock, lives but has not answered" % index)
            time.sleep(max(0, began + 5 - time.monotonic()))  # as long as the promise says
            self.assertEqual(harness.processes_of(job.name)[kind, index], pid)
            job.signal(kind, index, signal.SIGCONT)
            job.finish()
            self.assertSameWeights(job.weights(), want)

    def test_stopped_trainer_is_named_and_goes_on(self):
        self.stop_for_a_while("trainer", 1, "rank-1")

    def test_stopped_server_is_named_and_goes_on(self):
        self.stop_for_a_while("server", "other", None)

    def test_stopped_coordinator_goes_on(self):
        self.stop_for_a_while("server", "leader", None)

    def test_out_of_restarts(self):
        with self.job(2, 1, self.args, run_args=["--restarts", 0]) as job:
            job.wait_for_step(3)
            job.kill("trainer", 1)
            job.finish(status=128 + signal.SIGKILL)
            self.assertIn("trainer 1", job.output("stderr"))


if __name__ == "__main__":
    harness.main()
