"""Parameters of stage 3 that a trainer holds by name while steps go on: always the servers' newest values."""
from tests.cluster import harness
from tests.hosts import two_hosts

STEPS = 7


class GatherTest(two_hosts.TwoHostsTest):
    def check(self, lines, ranks):
        said = sorted(line[line.index("rank"):] for line in lines if "equal" in line)
        # One every step, two in three of them, all six every other step.
        self.assertEqual(said, ["rank %d: %d equal" % (r, STEPS + 2 * 3 + 6 * (STEPS // 2)) for r in range(ranks)])

    def command(self):
        return [harness.program("tests/torch/gather_trainer"), str(STEPS)]

    def test_one_host(self):
        with self.job(2, 2, command=self.command()) as job:
            job.finish()
            self.check(job.output("stdout").splitlines(), 2)

    def test_two_hosts(self):
        for ranks in (1, 2):
            with two_hosts.TwoHosts(self, ranks, 2, command=self.command()) as pair:
                pair.finish()
                self.check("".join(pair.output("stdout", h) for h in (0, 1)).splitlines(), 2 * ranks)


if __name__ == "__main__":
    harness.main()
