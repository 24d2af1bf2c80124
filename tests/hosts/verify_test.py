"""`sherd verify`: copies of a job's state are the same bits, and a bit that flipped in one host's memory is named.

    bazel test //tests/hosts:verify_test
"""
import contextlib
import glob
import json
import mmap
import random

from tests.cluster import harness
from tests.cluster import safetensors
from tests.hosts import two_hosts

TENSOR = "h.0.mlp.c_fc.weight"


class VerifyTest(two_hosts.TwoHostsTest):
    steps = 12
    batch = 8
    # The last step stands while rank 0 makes up a text.
    linger = ["--generate", 200000]

    @contextlib.contextmanager
    def memory(self, pair, host, plane):
        path, = glob.glob("%s/sherd-*/*/plane.%s" % (pair.places[host].shm, plane))
        with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as memory:
            yield memory

    def owners(self, pair, values, element):
        """Hosts that own an element of TENSOR: of moments nobody else has anything."""
        found = []
        for host in range(len(pair.places)):
            with self.memory(pair, host, "exp_avg") as memory:
                if memory.find(values["exp_avg"][4 * element:4 * element + 64]) >= 0:
                    found.append(host)
        return found

    def flip(self, pair, host, plane, values, element, bit):
        with self.memory(pair, host, plane) as memory:
            at = memory.find(values[plane][4 * element:4 * element + 64])
            memory[at + bit // 8] ^= 1 << bit % 8

    def found(self, pair, host, status=0):
        done = pair.cli(host, "verify", "--json")
        self.assertEqual(done.status, status, done)
        return json.loads(done.stdout)

    def values(self, pair):
        path = pair.dir + "/all.safetensors"
        self.assertEqual(pair.cli(0, "pull", path, "--with-optimizer").status, 0)
        tensors = safetensors.read(path)[0]
        return {"param": tensors[TENSOR].data, "exp_avg": tensors["exp_avg/" + TENSOR].data}

    def check(self, hosts, args, copies):
        rng = random.Random(harness.seed())
        with two_hosts.TwoHosts(self, 1, 1, [*args, *self.linger], hosts=hosts, run_args=["--replicas", 1]) as pair:
            pair.wait_for_step(3)
            same = self.found(pair, hosts - 1)  # while training goes on
            self.assertEqual((same["copies"], same["differences"], same["more"]), (copies, [], False))
            self.assertGreaterEqual(same["step"], 3)
            pair.wait_for_step(self.steps)
            self.assertEqual(self.found(pair, 0)["bytes"], same["bytes"])
            values = self.values(pair)
            want = []
            for plane, element, many in (("param", rng.randrange(5000, 6000), 3), ("exp_avg", rng.randrange(5000), 1)):
                owners = self.owners(pair, values, element)
                self.assertEqual(len(owners), copies, owners)
                wrong = rng.choice([h for h in owners if h > 0])  # rank 0 still computes with host 0's
                for e in range(element, element + many):
                    self.flip(pair, wrong, plane, values, e, rng.randrange(32))
                want.append({"tensor": TENSOR, "plane": plane, "begin": element, "end": element + many,
                             "hosts": owners, "apart": [wrong] if copies > 2 else owners})
            want.sort(key=lambda d: d["hosts"][0])  # by share of the state
            for host in range(hosts):
                got = self.found(pair, host, 1)
                self.assertEqual((got["differences"], got["step"]), (want, self.steps))
            done = pair.cli(0, "verify")
            self.assertEqual((done.status, done.stdout.count("\n"), done.stderr.count("\n")), (1, 2, 1), done)
            self.assertRegex(done.stdout, r"%s exp_avg\[\d+\]: host" % TENSOR)
            self.assertRegex(done.stdout, r"%s param\[\d+:\d+\]: host" % TENSOR)
            self.assertIn("differ in 2 places", done.stderr)
            # No snapshot stays open.
            self.assertEqual(pair.json(0, "status").get("snapshots", []), [])
            for process in pair.processes:
                process.terminate()
                process.wait()

    def test_three_copies(self):
        self.check(3, ["--stage", 2], 3)

    def test_two_copies_of_two_shares(self):
        self.check(4, ["--stage", 1], 2)

    def test_every_so_many_steps(self):
        with two_hosts.TwoHosts(self, 1, 1, ["--stage", 1], hosts=3, run_args=["--replicas", 1, "--verify-every", 5],
                                steps=1000000) as pair:
            pair.wait_for("a comparison", lambda: "3 copies of the state are the same bits" in pair.logs(0))
            self.assertNotIn("differ", pair.logs(0))
            # Training goes on and may store some of these again, as they were; not all.
            with self.memory(pair, 1, "param") as memory:
                at = len(memory) // 8 * 4
                for e in range(2000):
                    memory[at + 4 * e + 2] ^= 0x40  # half of a value's scale
            pair.wait_for("the difference", lambda: "copies of the state differ: " in pair.logs(0))
            self.assertRegex(pair.logs(0), r"error step \d+: copies of the state differ: \S+ \w+\[.*: host 1 differs "
                             "from hosts 0, 2")
            for process in pair.processes:
                process.terminate()
                process.wait()

    def test_one_copy(self):
        with two_hosts.TwoHosts(self, 1, 1, [*self.linger]) as pair:
            pair.wait_for_step(self.steps)
            self.assertFails(pair.cli(1, "verify"), 1, "--replicas")
            for process in pair.processes:
                process.terminate()
                process.wait()
        with self.job(1, 1, self.linger) as job:
            job.wait_for_step(self.steps)
            self.assertFails(job.cli("verify"), 1, "is held once")
            job.process.terminate()
            job.process.wait()


if __name__ == "__main__":
    harness.main()
