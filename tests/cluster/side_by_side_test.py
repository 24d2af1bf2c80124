"""Jobs that share a host do not meet, and gc removes what a dead one left and nothing else."""
import glob
import os
import subprocess

from tests.cluster import harness


class SideBySideTest(harness.ClusterTest):
    steps = 300  # the first job still trains when the second has begun

    def test_two_jobs_do_not_meet(self):
        args = [["--stage", 2, "--seed", 1], ["--stage", 1, "--seed", 2]]
        alone = []
        for a in args:
            with self.job(2, 2, a) as job:
                alone.append(job.finish().weights())
        with self.job(2, 2, args[0]) as one, self.job(2, 2, args[1]) as other:
            one.wait_for_step(5)
            other.wait_for_step(5)
            one.kill("server", 1)
            other.kill("trainer", 1)
            # Without an endpoint it is not clear which job is meant.
            self.assertFails(harness.run(harness.SHERD, "status"), 1, one.name)
            one.finish()
            other.finish()
            self.assertSameWeights(one.weights(), alone[0])
            self.assertSameWeights(other.weights(), alone[1])

    def test_gc_removes_what_a_killed_job_left(self):
        name = "left-%d" % os.getpid()
        server = subprocess.Popen([harness.program(harness.SHERDD), "--job", name, "--id", "s0", "--log-level", "off"],
                                  env=harness.environment())
        try:
            socket = harness.wait_for("the server's socket",
                                      lambda: glob.glob("%s/%s-*/s0.sock" % (harness.SHM, name)))[0]
            trained = harness.run(harness.TRAIN, "--text", self.text(), *self.training(3), env={
                "SHERD_ENDPOINT": "unix:" + socket, "SHERD_JOB": name, "RANK": "0", "WORLD_SIZE": "1"})
            self.assertEqual(trained.status, 0, trained)
        finally:
            server.kill()
            server.wait()
        left = glob.glob("%s/%s-*" % (harness.SHM, name))
        self.assertEqual(len(left), 1)
        foreign = os.path.join(harness.SHM, "no-job-%d" % os.getpid())
        os.mkdir(foreign)
        self.addCleanup(os.rmdir, foreign)
        with self.job(1, 1) as job:
            job.wait_for_step(1)
            done = harness.run(harness.SHERD, "gc")
            self.assertEqual(done.status, 0, done)
            self.assertIn(left[0], done.stdout)
            self.assertFalse(os.path.exists(left[0]))
            self.assertTrue(os.path.isdir(foreign))
            job.finish()
        self.assertEqual(harness.left_over(name), [])


if __name__ == "__main__":
    harness.main()
