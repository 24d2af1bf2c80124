"""Jobs whose servers agree through etcd: its servers and the coordinator die, and training does not notice."""
import contextlib
import json
import os
import signal
import unittest

from tests.cluster import etcd
from tests.cluster import harness


@unittest.skipUnless(etcd.installed(), "etcd is not installed: see tools/packages.txt")
class EtcdTest(harness.ClusterTest):
    steps = 300
    args = ["--stage", 2]

    def etcd_job(self, url, trainers=2, servers=2, name=None):
        return self.job(trainers, servers, self.args, run_args=["--store", url], name=name)

    def undisturbed(self):
        with self.job(2, 2, self.args) as job:
            return job.finish().weights()

    def coordinator_now(self, job):
        return self.status(job).get("coordinator", {}).get("id")

    def coordinator(self, job):
        """The server that coordinates, once there is one."""
        return int(job.wait_for("a coordinator", lambda: self.coordinator_now(job))[1:])

    def status(self, job):
        done = job.cli("--json", "status")
        return json.loads(done.stdout) if done.status == 0 else {}

    @contextlib.contextmanager
    def held(self, job):
        """No step ends meanwhile: what takes its time can be waited for."""
        pid = job.signal("trainer", 0, signal.SIGSTOP)
        yield
        os.kill(pid, signal.SIGCONT)

    def test_coordinator_and_leader_of_etcd_die(self):
        want = self.undisturbed()
        with etcd.Etcd(3) as e, self.etcd_job(e.url()) as job:
            job.wait_for_step(3)
            with self.held(job):
                job.kill("server", self.coordinator(job))
            job.wait_for_step(job.log.last_step() + 3)
            with self.held(job):
                leader = e.leader()
                e.kill(leader)
            job.wait_for_step(job.log.last_step() + 3)
            # Both at once, and a trainer, whose replacement needs the store.
            with self.held(job):
                e.start(leader)
                e.leader()
                coordinator = self.coordinator(job)
                e.stop(e.leader())
                job.kill("server", coordinator)
                job.kill("trainer", 1)
            job.finish()
            self.assertSameWeights(job.weights(), want)

    def test_a_run_goes_on_while_etcd_is_away(self):
        want = self.undisturbed()
        with etcd.Etcd(1) as e, self.etcd_job(e.url("away")) as job:
            job.wait_for_step(3)
            names_etcd = lambda status: e.clients[0] in status.get("waiting_for", "")
            with self.held(job):
                e.stop(0)
                # Longer than its lease: the coordinator steps down.
                job.wait_for("the coordinator to step down",
                             lambda: names_etcd(self.status(job)) and not self.coordinator_now(job))
            job.wait_for_step(job.log.last_step() + 3)
            with self.held(job):
                self.assertGreaterEqual(self.status(job)["step"], job.log.last_step())
                e.go_on(0)
                job.wait_for("etcd's return",
                             lambda: self.coordinator_now(job) and not names_etcd(self.status(job)))
            job.finish()
            self.assertSameWeights(job.weights(), want)

    def test_nothing_is_left_and_the_name_is_free_again(self):
        with etcd.Etcd(1) as e:
            for _ in range(2):
                done = harness.run(harness.SHERD, "run", "-n", "1", "--job", "etcd-again", "--store", e.url("prod"), "--",
                                   "/bin/true")
                self.assertEqual(done.status, 0, done)
                self.assertEqual(e.keys("/prod/"), 0)

    def test_drain(self):
        want = self.undisturbed()
        with etcd.Etcd(1) as e, self.etcd_job(e.url(), servers=3) as job:
            job.wait_for_step(3)
            drained = job.json("drain", "s1")
            self.assertEqual(drained["drained"], "s1")
            status = job.json("status")
            self.assertNotIn("s1", [m["id"] for m in status["members"] if m.get("slots")])
            job.wait_for_step(drained["step"] + 2)
            job.finish()
            self.assertSameWeights(job.weights(), want)


class NoEtcdTest(harness.ClusterTest):

    def test_error_lines(self):
        for store, status, says in (("etcd://127.0.0.1", 2, "is not etcd://HOST:PORT"),
                                    ("zookeeper://h:1", 2, "use file:DIR or etcd://"),
                                    ("file:", 2, "names no directory"),
                                    ("etcd://127.0.0.1:1", 1, "no etcd answers at 127.0.0.1:1")):
            for command in ([harness.SHERDD, "--job", "none", "--store", store],
                            [harness.SHERD, "run", "-n", "1", "--store", store, "--", "/bin/true"]):
                with self.subTest(store=store, command=command[0]):
                    done = harness.run(*command)
                    self.assertEqual(done.status, status, done)
                    self.assertIn(says, done.stderr)
                    self.assertEqual(done.stderr.strip().count("\n"), 0, done)


if __name__ == "__main__":
    harness.main()
