"""The crash matrix of DESIGN.md, as far as one host has it: who dies or stands still, in the middle of what.

    bazel test //tests/cluster:crash_test [--test_arg=--seed=N]

Instants are brought about, not guessed: a process that is stopped keeps the others where they wait for it. What has no
instant of its own is struck at random, by a seed that is printed. A run ends with the bits of one that was left alone.
"""
import contextlib
import glob
import os
import random
import re
import signal
import subprocess
import time

from tests.cluster import harness
from tests.cluster import safetensors


class CrashCase(harness.ClusterTest):
    steps = 120
    args = ["--stage", 2, "--accumulation", 2]
    run_args = ["--restarts", 100]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.undisturbed = {}

    def expected(self, steps=None):
        """What undisturbed training gives."""
        if steps not in self.undisturbed:
            with self.job(2, 2, self.args, steps=steps) as job:
                self.undisturbed[steps] = job.finish().weights()
        return self.undisturbed[steps]

    def disturbed(self, servers=2, **more):
        return self.job(2, servers, self.args, run_args=self.run_args, **more)

    def assertEndsAsUndisturbed(self, job, steps=None):
        job.finish()
        self.assertSameWeights(job.weights(), self.expected(steps))


class PhaseTest(CrashCase):

    def test_in_backward(self):
        """Rank 1 stands still in the middle of its step: units are summed in part, rank 0 has recorded its step."""
        self.expected()
        for victims in ([("server", "other")], [("server", "leader")], [("trainer", 0)], [("trainer", 1)],
                        [("server", "leader"), ("trainer", 0)], [("server", "other"), ("trainer", 1)],
                        [("server", "leader"), ("server", "other")], [("trainer", 0), ("trainer", 1)]):
            with self.subTest(victims=victims), self.disturbed() as job:
                job.wait_for_step(5)
                with job.held("trainer", 1):
                    said = job.waits_for("rank 1")
                    self.assertRegex(said, r"rank 1 \(host \S+, process \d+\.\d+\).*(unit|record).* step \d+")
                    leader = job.coordinator()
                    for kind, index in victims:
                        index = {"leader": leader, "other": 1 - leader}.get(index, index)
                        dead = job.kill(kind, index)
                        if (kind, index) != ("trainer", 1):
                            job.wait_for_successor(kind, index, dead)
                self.assertEndsAsUndisturbed(job)

    def test_prepared(self):
        """The other server stands still, so that the coordinator has PREPARED and waits for its PREPARED."""
        self.expected()
        for victims in (["leader"], ["other"], ["leader", "other"], ["leader", "trainer"], ["other", "trainer"]):
            with self.subTest(victims=victims), self.disturbed() as job:
                job.wait_for_step(5)
                leader = job.coordinator()
                with job.held("server", 1 - leader):
                    said = job.waits_for("s%d" % (1 - leader))
                    self.assertRegex(said, r"server s%d \(slot \d, host \S+, process \d+\.\d+\)" % (1 - leader))
                    for victim in victims:
                        kind, index = ("trainer", 0) if victim == "trainer" else (
                            "server", leader if victim == "leader" else 1 - leader)
                        dead = job.kill(kind, index)
                        job.wait_for_successor(kind, index, dead)
                self.assertEndsAsUndisturbed(job)

    def test_flip(self):
        """Ranges are about to change: a resize of the servers is proposed, and one owner does not come to the end."""
        self.expected()
        for victims in (["leader"], ["other"], ["new"], ["leader", "new"], ["leader", "trainer"]):
            with self.subTest(victims=victims), self.disturbed() as job:
                job.wait_for_step(5)
                leader = job.coordinator()
                with job.held("server", 1 - leader):
                    resizing = job.start_cli("resize", "--servers", 3)
                    job.waits_for("the next step boundary (resize to 3)", "server s%d" % (1 - leader))
                    for victim in victims:
                        kind, index = {"trainer": ("trainer", 0), "new": ("server", 2), "leader": ("server", leader),
                                       "other": ("server", 1 - leader)}[victim]
                        dead = job.kill(kind, index)
                        job.wait_for_successor(kind, index, dead)
                self.assertEqual(resizing.wait(timeout=harness.LIMIT), 0)
                self.assertEqual(job.json("status")["servers"], 3)
                self.assertEndsAsUndisturbed(job)

    def test_pairs_at_random_instants(self):
        """Two at once, wherever the step is: update and stores as well."""
        seed = harness.seed()
        rng = random.Random(seed)
        self.expected()
        everybody = [("trainer", 0), ("trainer", 1), ("server", 0), ("server", 1)]
        pairs = [(a, b) for i, a in enumerate(everybody) for b in everybody[i + 1:]]
        rng.shuffle(pairs)
        with self.subTest(seed=seed), self.disturbed() as job:
            for number, pair in enumerate(pairs):
                job.wait_for_step(5 + 15 * number)
                pids = [job.pid(*member) for member in pair]
                time.sleep(rng.random() * 0.01)  # chosen at random: waits for nothing
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                for member, pid in zip(pair, pids):
                    job.wait_for_successor(*member, pid)
            self.assertEndsAsUndisturbed(job)


class CallersTest(CrashCase):
    """kill -9 and SIGSTOP of `sherd` itself, in the middle of what it asked for."""

    steps = 300

    def file(self, job, name):
        return os.path.join(job.dir, name)

    def snapshots(self, job):
        return glob.glob(os.path.join(job.job_dir(), "snap.*"))

    def assertPulledWhole(self, path):
        """A file is the state of one step: what a run of as many steps ends with."""
        tensors, metadata = safetensors.read(path)
        with self.job(2, 1, self.args, steps=int(metadata["sherd_step"])) as job:
            self.assertSameWeights(tensors, job.finish().weights())

    def kill_cli(self, cli):
        self.assertIsNone(cli.poll(), "it ended too early")
        cli.kill()
        cli.wait()

    def test_pull(self):
        with self.disturbed(steps=50000) as job:
            job.wait_for_step(2)
            path = self.file(job, "w.safetensors")
            pulling = job.start_cli("pull", path, "--rate", "256K")
            job.wait_for("the pull to have begun", lambda: self.snapshots(job) and any(
                "w.safetensors" in name and os.path.getsize(self.file(job, name)) > 0 for name in os.listdir(job.dir)))
            self.kill_cli(pulling)
            self.assertFalse(os.path.exists(path), "half a file under the whole one's name")
            job.wait_for_step(job.log.last_step() + 3)
            # Its snapshot is kept for a minute, should it come again; the next has one of its own. A pull that does not
            # read holds nobody up, and goes on when it may.
            left = self.snapshots(job)
            pulling = job.start_cli("pull", path, "--rate", "1M")
            job.wait_for("the pull to have begun", lambda: set(self.snapshots(job)) - set(left))
            pulling.send_signal(signal.SIGSTOP)
            job.wait_for_step(job.log.last_step() + 50)
            pulling.send_signal(signal.SIGCONT)
            self.assertEqual(pulling.wait(timeout=harness.LIMIT), 0)
            job.interrupt()
        self.assertPulledWhole(path)

    def test_pull_with_a_coordinator_and_a_trainer(self):
        with self.disturbed(steps=50000) as job:
            job.wait_for_step(2)
            path = self.file(job, "w.safetensors")
            pulling = job.start_cli("pull", path, "--rate", "512K")
            job.wait_for("the pull to have begun", lambda: self.snapshots(job))
            leader = job.coordinator()
            dead = [job.kill("server", leader), job.kill("trainer", 1)]
            job.wait_for_successor("server", leader, dead[0])
            job.wait_for_successor("trainer", 1, dead[1])
            self.assertEqual(pulling.wait(timeout=harness.LIMIT), 0)
            job.interrupt()
        self.assertPulledWhole(path)

    def test_resize(self):
        """Whoever asked may die: the resize ends, and the next one begins."""
        for also in (None, "leader"):
            with self.subTest(also=also), self.disturbed() as job:
                job.wait_for_step(3)
                with job.held():
                    job.waits_for("rank 0")
                    resizing = job.start_cli("resize", "--servers", 3)
                    job.waits_for("the next step boundary (resize to 3)")
                    self.kill_cli(resizing)
                    if also:
                        leader = job.coordinator()
                        job.wait_for_successor("server", leader, job.kill("server", leader))
                job.wait_for("three owners", lambda: job.status().get("servers") == 3)
                self.assertEqual(job.json("resize", "--servers", 1)["servers"], 1)
                self.assertEndsAsUndisturbed(job)

    def test_resize_of_trainers(self):
        with self.job(2, 2, ["--stage", 2], run_args=self.run_args) as job:
            job.wait_for_step(3)
            with job.held():
                job.waits_for("rank 0")
                resizing = job.start_cli("resize", "--trainers", 3)
                job.waits_for("the next step boundary (resize to 3 trainers)")
                self.kill_cli(resizing)
            job.wait_for("three trainers", lambda: job.status().get("world_size") == 3)
            self.assertEqual(job.json("resize", "--trainers", 2)["trainers"], 2)
            job.finish()
            self.assertEqual(job.log.records()[self.steps]["world_size"], 2)

    def test_save(self):
        with self.disturbed(steps=50000) as job:
            job.wait_for_step(2)
            folder = self.file(job, "ck")
            saving = job.start_cli("save", folder, "--rate", "512K", "--tag", "killed")
            job.wait_for("the save to have begun", lambda: os.path.isdir(folder) and any(
                name.startswith(".saving") for name in os.listdir(folder)))
            self.kill_cli(saving)
            job.wait_for("its snapshot to be released", lambda: not self.snapshots(job))
            # With the coordinator: the caller alone could begin it anew.
            saving = job.start_cli("save", folder, "--rate", "512K", "--tag", "both")
            job.wait_for("the save to have begun", lambda: self.snapshots(job))
            leader = job.coordinator()
            self.kill_cli(saving)
            job.wait_for_successor("server", leader, job.kill("server", leader))
            saved = job.json("save", folder, "--tag", "whole")
            self.assertEqual(sorted(os.listdir(folder)), ["latest", "whole"])
            # The dead coordinator's is released when nobody has read it for a minute.
            job.wait_for("all snapshots to be released", lambda: not self.snapshots(job))
            job.interrupt()
        with self.job(2, 1, [*self.args, "--restore", folder], steps=saved["step"] + 3) as job:
            restored = job.finish().weights()
        with self.job(2, 1, self.args, steps=saved["step"] + 3) as job:
            self.assertSameWeights(restored, job.finish().weights())

    def test_push(self):
        """All of a file or nothing of it, whenever its caller dies."""
        seed = harness.seed()
        rng = random.Random(seed)
        still = ["--stage", 2, "--lr", 0, "--weight-decay", 0]  # training changes nothing
        with self.subTest(seed=seed), self.job(2, 2, still, steps=50000, run_args=self.run_args) as job:
            job.wait_for_step(1)
            pulled = self.file(job, "now.safetensors")

            def state():
                job.json("pull", pulled)
                return safetensors.read(pulled)[0]
            now = state()
            stored = 0
            for number in range(6):
                new = {name: safetensors.Tensor("F32", t.shape, t.data[4:] + t.data[:4] if len(t.data) > 4 else t.data)
                       for name, t in now.items()}
                path = self.file(job, "new.safetensors")
                safetensors.write(path, new)
                pushing = job.start_cli("push", path)
                time.sleep(rng.random() * 0.08)  # chosen at random: waits for nothing
                pushing.kill()
                pushing.wait()
                after = state()
                if after == new:
                    now, stored = new, stored + 1
                self.assertSameWeights(after, now, "push %d" % number)
            print("%d of 6 pushes were stored" % stored)
            self.assertEqual(job.cli("push", path).status, 0)
            self.assertSameWeights(state(), new)
            job.interrupt()

    def test_supervisor(self):
        with self.disturbed(steps=50000) as job:
            job.wait_for_step(3)
            job.process.kill()
            job.process.wait()
            harness.wait_for("nothing to be left", lambda: not harness.left_over(job.name))


class StallTest(CrashCase):
    """SIGSTOP: named, later killed, and not before --stall-timeout. How long it takes is printed."""

    timeout = 8
    run_args = ["--restarts", 100, "--stall-timeout", timeout]

    def stall(self, job, kind, index, name):
        """Stops a process; returns what status said of it."""
        pid = job.signal(kind, index, signal.SIGSTOP)
        began = time.monotonic()
        try:
            said = job.waits_for(name)
            named = time.monotonic() - began
            job.wait_for("pid %d to be killed" % pid, lambda: not harness.is_running(pid))
            killed = time.monotonic() - began
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        print("%s: named after %.2f s, killed after %.2f s: %s" % (name, named, killed, said), flush=True)
        self.assertGreaterEqual(killed, self.timeout)
        job.wait_for_successor(kind, index, pid)
        return said

    def test_trainer(self):
        with self.disturbed() as job:
            job.wait_for_step(5)
            said = self.stall(job, "trainer", 1, "rank 1")
            self.assertIn("been stopped by a signal", said)
            self.assertEndsAsUndisturbed(job)
            self.assertEqual(len(re.findall("trainer 1: lives but has not moved for .* s while others wait; killing it",
                                            job.output("stderr"))), 1)

    def test_server(self):
        with self.disturbed() as job:
            job.wait_for_step(5)
            other = 1 - job.coordinator()
            self.stall(job, "server", other, "s%d" % other)
            self.assertEndsAsUndisturbed(job)

    def test_coordinator(self):
        with self.disturbed() as job:
            job.wait_for_step(5)
            leader = job.coordinator()
            said = self.stall(job, "server", leader, "s%d.sock" % leader)
            self.assertIn("lives but has not answered", said)
            self.assertEndsAsUndisturbed(job)
            self.assertIn("server s%d: lives but has not moved or answered" % leader, job.output("stderr"))

    def test_the_only_trainer_and_the_only_server(self):
        steps = 3000  # one trainer alone is quick
        with self.job(1, 1, self.args, run_args=self.run_args, steps=steps) as job:
            want = job.finish().weights()
        with self.job(1, 1, self.args, run_args=self.run_args, steps=steps) as job:
            job.wait_for_step(5)
            self.stall(job, "trainer", 0, "rank 0")
            job.wait_for_step(job.log.last_step() + 5)
            # Nobody is left to answer: the command says so, and what to do.
            with job.held("server", 0) as pid:
                self.assertFails(job.cli("status"), 1, "kill -CONT %d" % pid)
            job.finish()
            self.assertSameWeights(job.weights(), want)


if __name__ == "__main__":
    harness.main()
