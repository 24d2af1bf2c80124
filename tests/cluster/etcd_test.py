"""Jobs whose servers agree through etcd: its servers and the coordinator die, and training does not notice."""
import contextlib
import unittest

from tests.cluster import etcd
from tests.cluster import harness
from tests.hosts import relay


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
        return job.status().get("coordinator", {}).get("id")

    def test_coordinator_and_leader_of_etcd_die(self):
        want = self.undisturbed()
        with etcd.Etcd(3) as e, self.etcd_job(e.url()) as job:
            job.wait_for_step(3)
            with job.held():
                job.kill("server", job.coordinator())
            job.wait_for_step(job.log.last_step() + 3)
            with job.held():
                leader = e.leader()
                e.kill(leader)
            job.wait_for_step(job.log.last_step() + 3)
            # Both at once, and a trainer, whose replacement needs the store.
            with job.held():
                e.start(leader)
                e.leader()
                coordinator = job.coordinator()
                e.stop(e.leader())
                job.kill("server", coordinator)
                job.kill("trainer", 1)
            job.finish()
            self.assertSameWeights(job.weights(), want)

    def test_coordinator_and_leader_of_etcd_die_during_resizes(self):
        """Of servers and of trainers: each is asked for, and ends, whoever is left to carry it out."""
        args = [*self.args, "--virtual-ranks", 4]
        with self.job(2, 2, args) as job:
            want = job.finish().weights()
        with etcd.Etcd(3) as e, self.job(2, 2, args, run_args=["--store", e.url("resizes"), "--restarts", 100]) as job:
            job.wait_for_step(3)
            for flag, number, victims in (
                    ("--servers", 3, ("coordinator", "leader")), ("--trainers", 4, ("coordinator", "leader")),
                    ("--servers", 1, ("leader", "trainer")), ("--trainers", 1, ("coordinator",)),
                    ("--trainers", 2, ("leader", "coordinator")), ("--servers", 2, ("follower", "coordinator"))):
                with job.held():
                    job.waits_for("rank 0")
                    resizing = job.start_cli("resize", flag, number)
                    job.waits_for("resize to %d" % number)
                    leader = e.leader()
                    stopped = {"leader": leader, "follower": (leader + 1) % 3}
                    coordinator = job.coordinator()
                    for victim in victims:
                        if victim in stopped:
                            e.kill(stopped[victim])
                        elif victim == "trainer":
                            job.kill("trainer", 0)
                        else:
                            job.kill("server", coordinator)
                self.assertEqual(resizing.wait(timeout=harness.LIMIT), 0, (flag, number))
                for victim in set(victims) & set(stopped):
                    e.start(stopped[victim])
                e.leader()
                key = "servers" if flag == "--servers" else "world_size"
                self.assertEqual(job.wait_for("a status", job.status)[key], number)
                job.wait_for_step(job.log.last_step() + 3)
            job.finish()
            self.assertSameWeights(job.weights(), want)
            self.assertEqual({r["world_size"] for r in job.log.records().values()}, {1, 2, 4})

    def test_etcd_is_full(self):
        """etcd that takes no value more is one that is away: training goes on, changes wait, and both are told."""
        want = self.undisturbed()
        with etcd.Etcd(1, ["--quota-backend-bytes", "4000000"]) as e, self.etcd_job(e.url("full")) as job:
            job.wait_for_step(3)
            with job.held():
                e.fill()
                job.kill("trainer", 1)
                said = job.waits_for("space")
                self.assertIn(e.clients[0], said)
                e.make_room()
                job.wait_for("the trainer's successor to have its place", lambda: "space" not in job.status().get(
                    "waiting_for", "space"))
            job.finish()
            self.assertSameWeights(job.weights(), want)

    def test_the_link_to_etcd_is_cut_or_one_way(self):
        want = self.undisturbed()
        with etcd.Etcd(1) as e, contextlib.ExitStack() as stack:
            host, port = e.clients[0].split(":")
            link = stack.enter_context(relay.Relay((host, int(port))))
            there = "%s:%d" % link.address
            with self.etcd_job(e.url("link", [there])) as job:
                for cut, mend in ((link.cut, link.restore), (lambda: link.stall("up"), link.flow),
                                  (lambda: link.stall("down"), link.flow)):
                    job.wait_for_step(job.log.last_step() + 3)
                    with job.held():
                        cut()
                        # Longer than its lease: the coordinator steps down.
                        job.wait_for("the coordinator to step down", lambda: there in job.status().get(
                            "waiting_for", "") and not self.coordinator_now(job))
                    job.wait_for_step(job.log.last_step() + 3)
                    with job.held():
                        mend()
                        job.wait_for("a coordinator", lambda: self.coordinator_now(job))
                job.finish()
                self.assertSameWeights(job.weights(), want)

    def test_a_run_goes_on_while_etcd_is_away(self):
        want = self.undisturbed()
        with etcd.Etcd(1) as e, self.etcd_job(e.url("away")) as job:
            job.wait_for_step(3)
            names_etcd = lambda status: e.clients[0] in status.get("waiting_for", "")
            with job.held():
                e.stop(0)
                # Longer than its lease: the coordinator steps down.
                job.wait_for("the coordinator to step down",
                             lambda: names_etcd(job.status()) and not self.coordinator_now(job))
            job.wait_for_step(job.log.last_step() + 3)
            with job.held():
                self.assertGreaterEqual(job.status()["step"], job.log.last_step())
                e.go_on(0)
                job.wait_for("etcd's return",
                             lambda: self.coordinator_now(job) and not names_etcd(job.status()))
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
