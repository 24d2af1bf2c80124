"""A machine that is gone with all its memory: another one follows it, and training ends with the bits of a run that
was left alone."""
import json
import random
import time

from tests.cluster import harness
from tests.hosts import network
from tests.hosts import two_hosts


class HostLoss(network.NetworkTest):
    steps = 40
    batch = 8

    def undisturbed(self, hosts, args):
        with self.job(hosts, 2, args, run_args=["--reduce-groups", ",".join(["1"] * hosts)]) as job:
            return job.finish().weights()

    def finish(self, job):
        for h, process in enumerate(job.processes):
            harness.wait_for("the end of host %d, at step %d" % (h, job.log.last_step()),
                             lambda: process.poll() is not None)
            self.assertEqual(process.returncode, 0, job.output("stderr", h))

    def lose(self, hosts, args, lost, steps=(9, 23), run_args=()):
        """Hosts of one rank each, of which one after another is lost, at any instant of a step."""
        want = self.undisturbed(hosts, args)
        rng = random.Random(harness.seed())
        with network.TestNetwork(hosts=hosts + len(steps)) as net, two_hosts.TwoHosts(
                self, 1, 1, args, run_args=run_args, hosts=hosts, places=net.hosts[:hosts]) as job:
            for i, step in enumerate(steps):
                job.wait_for_step(step)
                time.sleep(rng.uniform(0, 0.05))
                h = lost[i % len(lost)]
                net.destroy(job.places[h])
                job.replace(h, net.hosts[hosts + i])
            self.finish(job)
            self.assertSameWeights(job.weights(), want)


class CopiesTest(HostLoss):
    def test_three_copies(self):
        self.lose(3, ["--stage", 2], lost=[1, 2], run_args=["--replicas", 1])

    def test_two_copies_of_two_shares(self):
        self.lose(4, ["--stage", 1, "--mics-shard-size", 2], lost=[3, 1])

    def test_in_16_bits_with_micro_batches(self):
        self.lose(4, ["--stage", 2, "--mics-shard-size", 2, "--precision", "bf16", "--accumulation", 2,
                      "--stochastic-rounding"], lost=[1, 1])

    def test_of_parameters_that_are_gathered(self):
        self.lose(4, [*harness.stage(3), "--init", "sharded", "--mics-shard-size", 2], lost=[2, 3])

    def test_with_a_loss_scale(self):
        self.lose(3, ["--stage", 0, "--mics-shard-size", 1, "--precision", "fp16"], lost=[2, 2])


class TroubleTest(HostLoss):
    def test_a_cable_that_is_cut_while_the_state_is_copied(self):
        args = ["--stage", 1]
        want = self.undisturbed(3, args)
        with network.TestNetwork(hosts=4) as net, two_hosts.TwoHosts(
                self, 1, 1, args, run_args=["--replicas", 1], hosts=3, places=net.hosts[:3]) as job:
            job.wait_for_step(9)
            net.destroy(job.places[1])
            fresh = net.hosts[3]
            net.rate(fresh, "8mbit")  # five seconds for the state
            job.replace(1, fresh)

            def received():
                shown = json.loads(fresh.run("ip", "-s", "-j", "link", "show", "eth0").stdout)[0]
                return shown["stats64"]["rx"]["bytes"]
            # Before that it hears what the switch does not know where to send.
            job.wait_for("the copy to begin", lambda: "this one takes its place" in job.logs(1))
            before = received()
            job.wait_for("a part of the state", lambda: received() - before > 1500000)
            net.cut(fresh)
            job.wait_for("the copy to be given up", lambda: "has said nothing for 10s" in job.logs(1))
            self.assertNotIn("bytes of state", job.logs(1))
            net.rate(fresh, None)
            net.restore(fresh)
            self.finish(job)
            self.assertIn("bytes of state", job.logs(1))
            self.assertSameWeights(job.weights(), want)

    def test_the_only_copy(self):
        with network.TestNetwork(hosts=3) as net, two_hosts.TwoHosts(
                self, 1, 1, ["--stage", 1], hosts=2, places=net.hosts[:2], steps=100000) as job:
            job.wait_for_step(5)
            net.destroy(job.places[1])
            job.replace(1, net.hosts[2])
            harness.wait_for("the end of host 1", lambda: job.processes[1].poll() is not None)
            self.assertEqual(job.processes[1].returncode, 1)
            self.assertIn("the only copy of what it owned", job.output("stderr", 1))
            job.processes[0].terminate()
            harness.wait_for("the end of host 0", lambda: job.processes[0].poll() is not None)

    def test_a_host_that_answers_keeps_its_place(self):
        with network.TestNetwork(hosts=3) as net, two_hosts.TwoHosts(
                self, 1, 1, ["--stage", 1, "--mics-shard-size", 1], hosts=2, places=net.hosts[:2],
                steps=100000) as job:
            job.wait_for_step(5)
            first, job.places[1] = job.places[1], net.hosts[2]
            other = job.start(1)
            harness.wait_for("the end of the other host 1", lambda: other.poll() is not None)
            self.assertEqual(other.returncode, 1)
            self.assertIn("and answers", job.output("stderr", 1))
            job.places[1] = first
            job.wait_for_step(job.log.last_step() + 3)
            for process in job.processes:
                process.terminate()
                harness.wait_for("the end", lambda: process.poll() is not None)


if __name__ == "__main__":
    harness.main()
