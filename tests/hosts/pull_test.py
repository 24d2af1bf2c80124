"""Pulls, reads and figures of a job of two hosts, asked on either: whole, of one step, and the bits of one host.

    bazel test //tests/hosts:pull_test

Two `sherd run` on the loopback, each with a directory of its own for shared memory. What a cut cable does to a pull
is in cable_test.py.
"""
import glob
import os
import struct
import subprocess

from tests.cluster import harness
from tests.cluster import safetensors
from tests.hosts import two_hosts


class Pulls(two_hosts.TwoHostsTest):
    args = ["--stage", 2]

    def path(self, pair, name):
        return os.path.join(pair.dir, name)

    def pull(self, pair, host, name, *args):
        result = pair.json(host, "pull", self.path(pair, name), *args)
        return result, safetensors.read(self.path(pair, name))[0]

    def one_host(self, steps, *args, pull=None):
        """(weights saved by train_gpt, tensors pulled) of one host with the same reduction tree after `steps`."""
        with self.job(2, 2, [*self.args, *args], steps=steps, run_args=["--reduce-groups", "1,1"]) as job:
            tensors = None
            if pull is not None:
                job.wait_for_step(steps)
                pulled = os.path.join(job.dir, "pulled.safetensors")
                self.assertEqual(job.json("pull", pulled, *pull)["step"], steps)
                tensors = safetensors.read(pulled)[0]
            return job.finish().weights(), tensors


class PullTest(Pulls):
    steps = 12
    # The last step stands while rank 0 makes up a text.
    linger = ["--generate", 20000]

    def endpoints(self, pair, host):
        found = sorted(glob.glob("%s/sherd-*/*/*.sock" % pair.places[host].shm))
        self.assertEqual(len(found), 2, found)
        return ["unix:" + path for path in found]

    def test_every_address_has_all_of_the_last_step(self):
        saved, everything = self.one_host(self.steps, *self.linger, pull=["--with-optimizer"])
        with two_hosts.TwoHosts(self, 1, 2, [*self.args, *self.linger]) as pair:
            pair.wait_for_step(self.steps)
            for host in (0, 1):
                for number, endpoint in enumerate(self.endpoints(pair, host)):
                    result, got = self.pull(pair, host, "all-%d-%d.safetensors" % (host, number), "--with-optimizer",
                                            "--endpoint", endpoint)
                    self.assertEqual(result["step"], self.steps)
                    self.assertSameWeights(got, everything, endpoint)
                for dtype in ("bf16", "fp16"):
                    _, got = self.pull(pair, host, "%s-%d.safetensors" % (dtype, host), "--dtype", dtype)
                    self.check_rounded(got, everything, dtype)
                self.check_reads(pair, host, everything)
                self.check_figures(pair, host, everything)
            self.assertEqual(pair.json(0, "status")["step"], self.steps)
            pair.finish()
            self.assertSameWeights(pair.weights(), saved)

    def check_rounded(self, got, everything, dtype):
        for name, tensor in got.items():
            values = everything[name].floats()
            if dtype == "fp16":
                self.assertEqual(tensor.data, struct.pack("<%de" % len(values), *values), name)
            else:
                halves = struct.unpack("<%dH" % len(values), tensor.data)
                back = struct.unpack("<%df" % len(values), struct.pack("<%dI" % len(values), *(h << 16 for h in halves)))
                self.assertLessEqual(max(abs(a - b) - abs(b) / 256 for a, b in zip(back, values)), 0, name)
        self.assertEqual(set(got), {name for name in everything if "/" not in name})

    def check_reads(self, pair, host, everything):
        file = self.path(pair, "one.npy")
        for name in ("wte.weight", "ln_f.bias", "h.1.mlp.c_proj.weight"):
            for plane in ("param", "exp_avg_sq"):
                done = pair.cli(host, "read", name, "--plane", plane, "-o", file)
                self.assertEqual(done.status, 0, done)
                stored = name if plane == "param" else plane + "/" + name
                self.assertEqual(safetensors.read_npy(file), everything[stored], stored)
        done = pair.cli(host, "read", "wte.weight", "--slice", "3:200:7,1:90:4", "-o", file)
        self.assertEqual(done.status, 0, done)
        whole, width = everything["wte.weight"].floats(), everything["wte.weight"].shape[1]
        self.assertEqual(safetensors.read_npy(file).floats(),
                         [whole[row * width + column] for row in range(3, 200, 7) for column in range(1, 90, 4)])

    def check_figures(self, pair, host, everything):
        for tensor in pair.json(host, "stat", "h.*")["tensors"]:
            values = everything[tensor["name"]].floats()
            self.assertEqual((tensor["elements"], tensor["min"], tensor["max"]),
                             (len(values), min(values), max(values)), tensor)

    def test_while_steps_go_on(self):
        with two_hosts.TwoHosts(self, 1, 1, self.args, steps=300) as pair:
            pair.wait_for_step(3)
            pulled = [self.pull(pair, host, "p%d.safetensors" % host, "--rate", rate)
                      for host, rate in ((0, "8M"), (1, "8M"))]
            pair.finish()
        for result, tensors in pulled:
            self.assertGreaterEqual(result["step"], 3)
            saved, _ = self.one_host(result["step"])
            self.assertSameWeights(tensors, saved)

    def test_a_save_in_16_bits_has_the_masters_of_both(self):
        args = ["--precision", "bf16", "--stochastic-rounding"]
        saved, _ = self.one_host(self.steps, *args)
        with two_hosts.TwoHosts(self, 1, 1, [*self.args, *args]) as pair:
            pair.finish()
            self.assertSameWeights(pair.weights(), saved)


class KillTest(Pulls):
    """A process of either host is killed while values of both are on their way."""

    def start_pull(self, pair, host, name):
        """A slow pull, once some of it is there."""
        process = subprocess.Popen([harness.program(harness.SHERD), "pull", self.path(pair, name), "--rate", "1M"],
                                   env=harness.environment({"SHERD_SHM_ROOT": pair.places[host].shm}),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.addCleanup(process.stdout.close)
        pair.wait_for("the pull to have begun", lambda: [
            n for n in os.listdir(pair.dir) if name in n and os.path.getsize(os.path.join(pair.dir, n)) > 200000])
        return process

    def test_whoever_dies_during_a_pull(self):
        pulled = []
        with two_hosts.TwoHosts(self, 1, 1, self.args, steps=1500) as pair:
            pair.wait_for_step(2)
            for asked in (0, 1):
                for host, kind in ((1 - asked, "server"), (asked, "server"), (0, "trainer"), (1, "trainer")):
                    name = "%d-%d-%s.safetensors" % (asked, host, kind)
                    pulling = self.start_pull(pair, asked, name)
                    pair.kill(host, kind)
                    self.assertEqual(pulling.wait(timeout=harness.LIMIT), 0, (name, pulling.stdout.read()))
                    pulled.append(safetensors.read(self.path(pair, name)))
            for process in pair.processes:
                process.terminate()
                process.wait(timeout=harness.LIMIT)
        self.assertGreaterEqual(len({metadata["sherd_step"] for _, metadata in pulled}), 4)
        # One run for all would not do: its weights are those of its last step.
        for tensors, metadata in (pulled[0], pulled[4], pulled[-1]):
            saved, _ = self.one_host(int(metadata["sherd_step"]))
            self.assertSameWeights(tensors, saved, metadata)


if __name__ == "__main__":
    harness.main()
