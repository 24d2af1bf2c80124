"""Servers that come and go while training goes on: nothing numeric changes and no plane byte moves."""
from tests.cluster import harness


class ResizeTest(harness.ClusterTest):
    steps = 300  # enough that training still goes on after the last resize, on a quick and idle machine too
    args = ["--stage", 2]

    def resize(self, job, servers):
        result = job.json("resize", "--servers", str(servers))
        self.assertEqual((result["servers"], result["moved_bytes"], result["least_bytes"]), (servers, 0, 0))
        status = job.json("status")
        self.assertEqual(status["servers"], servers)
        owners = [m for m in status["members"] if m["kind"] == "server" and m["slots"]]
        self.assertEqual(len(owners), servers)
        self.assertEqual(sum(m["owned_elements"] for m in owners), status["total_elements"])
        # Those that are not needed any more end.
        job.wait_for("%d servers" % servers,
                     lambda: sum(kind == "server" for kind, _ in harness.processes_of(job.name)) == servers)
        return result

    def test_one_to_three_to_two_with_a_death(self):
        with self.job(2, 1, self.args) as job:
            want = job.finish().weights()
        with self.job(2, 1, self.args) as job:
            job.wait_for_step(3)
            grown = self.resize(job, 3)
            self.assertGreater(grown["changed_elements"], 0)
            job.wait_for_step(grown["step"] + 2)
            job.kill("server", 0)
            job.kill("trainer", 1)
            shrunk = self.resize(job, 2)
            self.assertGreater(shrunk["epoch"], grown["epoch"])
            self.assertGreater(shrunk["step"], grown["step"])
            job.finish()
            self.assertSameWeights(job.weights(), want)

    def test_death_during_a_resize(self):
        with self.job(2, 2, self.args) as job:
            want = job.finish().weights()
        for victim in (("server", 0), ("server", 1), ("trainer", 0)):
            with self.subTest(victim=victim), self.job(2, 2, self.args) as job:
                job.wait_for_step(3)
                resizing = job.start_cli("resize", "--servers", 4)
                job.kill(*victim)
                self.assertEqual(resizing.wait(timeout=harness.LIMIT), 0, victim)
                job.finish()
                self.assertSameWeights(job.weights(), want)

    def test_there_and_back_many_times(self):
        # One trainer alone is quick.
        steps, type(self).steps = self.steps, 1500
        self.addCleanup(setattr, type(self), "steps", steps)
        with self.job(1, 1, self.args) as job:
            want = job.finish().weights()
        with self.job(1, 1, self.args) as job:
            job.wait_for_step(1)
            for servers in (2, 1, 5, 1, 2):
                self.resize(job, servers)
            job.finish()
            self.assertSameWeights(job.weights(), want)


if __name__ == "__main__":
    harness.main()
