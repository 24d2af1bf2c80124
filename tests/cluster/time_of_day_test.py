"""The time of day jumps, hours ahead and hours back: whatever waits, paces itself or gives up goes on as if it had not.

    bazel test //tests/cluster:time_of_day_test
"""
import json
import mmap
import os
import re
import struct
import time
import unittest

from tests.cluster import etcd
from tests.cluster import harness

HOUR = 3600


class TimeOfDayTest(harness.ClusterTest):
    steps = 1000000  # more than will be made
    args = ["--stage", 2]

    def setUp(self):
        path = os.path.join(self.dir, "jumped")
        with open(path, "w+b") as f:
            f.write(bytes(8))
            f.flush()
            self.jumped = mmap.mmap(f.fileno(), 8)
        self.addCleanup(self.jumped.close)
        self.env = {"LD_PRELOAD": harness.program("tests/cluster/time_jump.so"), "SHERD_TEST_TIME": path}

    def jump(self, seconds):
        self.jumped[:] = struct.pack("q", seconds)

    def job_on(self, *run_args):
        job = self.job(2, 2, self.args, run_args=["--restarts", 100, *run_args])
        job.env.update(self.env)
        return job

    def cli(self, job, *args):
        done = harness.run(harness.SHERD, *args, "--endpoint", job.endpoints(), "--json", env=self.env)
        self.assertEqual(done.status, 0, done)
        return json.loads(done.stdout)

    def disturb(self, job):
        """Jumps amid a pull that paces itself, then has a step, a save, a resize and two deaths."""
        for number, hours in enumerate((5, -7, 0)):
            path = os.path.join(job.dir, "w%d.safetensors" % number)
            job.wait_for_step(job.log.last_step() + 3)
            pulling = job.start_cli("pull", path, "--rate", "256K")
            job.wait_for("some of the pull", lambda: any(
                os.path.basename(path) in name for name in os.listdir(job.dir)))
            self.assertIsNone(pulling.poll(), "it ended too early")
            self.jump(hours * HOUR)
            self.assertEqual(pulling.wait(timeout=harness.LIMIT), 0)
            job.wait_for_step(job.log.last_step() + 3)
            saved = os.path.join(job.dir, "ck%d" % number)
            self.cli(job, "save", saved)
            with open(os.path.join(saved, open(os.path.join(saved, "latest")).read().strip(), "manifest.json")) as f:
                at = int(re.search(r'"saved_unix_nanos": *"(\d+)"', f.read())[1]) / 1e9
            self.assertAlmostEqual(at, time.time() + hours * HOUR, delta=600, msg="the jump did not take place")
            self.assertEqual(self.cli(job, "resize", "--servers", 3 - number)["servers"], 3 - number)
            self.assertEqual(self.cli(job, "resize", "--servers", 2)["servers"], 2)
            leader = job.coordinator()
            job.wait_for_successor("server", leader, job.kill("server", leader))
            job.wait_for_successor("trainer", 1, job.kill("trainer", 1))
        job.wait_for_step(job.log.last_step() + 3)
        self.assertNotIn("stalled", job.output("stderr"))
        job.interrupt()

    def test_jumps(self):
        with self.job_on() as job:
            self.disturb(job)

    @unittest.skipUnless(etcd.installed(), "etcd is not installed: see tools/packages.txt")
    def test_jumps_beside_an_etcd_that_keeps_the_time(self):
        with etcd.Etcd(1) as e, self.job_on("--store", e.url("jumps")) as job:
            self.disturb(job)


if __name__ == "__main__":
    harness.main()
