"""A machine that is gone with all its memory: another one follows it, and training ends with the bits of a run that
was left alone."""
from tests.cluster import harness
from tests.hosts import network
from tests.hosts import two_hosts


class HostLossTest(network.NetworkTest):
    steps = 40
    batch = 6

    def undisturbed(self, hosts, args):
        with self.job(hosts, 2, args, run_args=["--reduce-groups", ",".join(["1"] * hosts)]) as job:
            return job.finish().weights()

    def lose(self, hosts, args, lost, steps=(9, 23)):
        """Hosts of one rank each, of which one after another is lost."""
        want = self.undisturbed(hosts, args)
        with network.TestNetwork(hosts=hosts + len(steps)) as net, two_hosts.TwoHosts(
                self, 1, 1, args, hosts=hosts, places=net.hosts[:hosts]) as job:
            for i, step in enumerate(steps):
                job.wait_for_step(step)
                h = lost[i % len(lost)]
                net.destroy(job.places[h])
                job.replace(h, net.hosts[hosts + i])
            for h in range(hosts):
                harness.wait_for("the end of host %d, at step %d" % (h, job.log.last_step()),
                                 lambda: job.processes[h].poll() is not None)
                self.assertEqual(job.processes[h].returncode, 0, job.output("stderr", h))
            self.assertSameWeights(job.weights(), want)

    def test_three_copies(self):
        self.lose(3, ["--stage", 2, "--mics-shard-size", 1], lost=[1, 2])


if __name__ == "__main__":
    harness.main()
