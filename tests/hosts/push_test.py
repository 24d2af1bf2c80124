"""push and Write in a job of two hosts: each gets what it owns, all or none, and the bits are those of one host.

    bazel test //tests/hosts:push_test

What a cut cable does to a push is in cable_test.py.
"""
import glob
import json
import os
import signal
import struct
import subprocess

from tests.cluster import harness
from tests.cluster import safetensors
from tests.hosts import stopped_push
from tests.hosts import two_hosts

def scaled(tensors, factor):
    return {name: safetensors.Tensor("F32", t.shape, struct.pack("<%df" % len(t.floats()), *(
        factor * v for v in t.floats()))) for name, t in tensors.items()}


class Pushes(two_hosts.TwoHostsTest):
    steps = 10
    args = ["--stage", 2, "--accumulation", 2]
    still = ["--lr", 0, "--weight-decay", 0]

    def write(self, folder, tensors, name="push.safetensors"):
        path = os.path.join(folder, name)
        safetensors.write(path, tensors)
        return path

    def pull(self, pair, host, *args):
        path = os.path.join(pair.dir, "pulled-%d.safetensors" % host)
        pair.json(host, "pull", path, *args)
        return safetensors.read(path)[0]

    def assertNoImports(self, pair):
        pair.wait_for("imports to go", lambda: stopped_push.imports(pair.places) == [[], []])

    def stop(self, pair):
        for process in pair.processes:
            process.terminate()
            process.wait(timeout=harness.LIMIT)

    def one_host(self, trainers, *args, steps=None, pull=()):
        """All that a pull has of one host with the same reduction tree, after its last step."""
        with self.job(trainers, 2, [*self.args, *args, "--generate", 20000], steps=steps,
                      run_args=["--reduce-groups", "%d,%d" % (trainers // 2, trainers // 2)]) as job:
            job.wait_for_step(steps or self.steps)
            path = os.path.join(job.dir, "pulled.safetensors")
            job.json("pull", path, *pull)
            job.interrupt()
            return safetensors.read(path)[0]


class PushTest(Pushes):
    def check_same_step(self, servers, asked, *args):
        """Everything, the optimizer's state too, is pushed into step 6: from there on all is as on one host."""
        folder = os.path.join(self.dir, "begin-%d" % asked)
        saving = ["--save-checkpoint", folder, "--save-every", 5]
        with self.job(4, 1, [*self.args, *args, *saving], run_args=["--reduce-groups", "2,2"]) as job:
            job.finish()
        other = self.one_host(4, *args, "--seed", 7, pull=["--with-optimizer"])
        path = self.write(self.dir, other, "other-%d.safetensors" % asked)
        more = ["--restore", folder, "--restore-tag", "step-5"]
        with self.job(4, 2, [*self.args, *args, *more], run_args=["--reduce-groups", "2,2"]) as job:
            self.push_into_step_6(job, lambda: job.start_cli("push", path),
                                  lambda *command: job.cli(*command), self.trainers_of(job))
            job.finish()
            losses, weights = job.log.losses(), job.weights()
        with two_hosts.TwoHosts(self, 2, servers, [*self.args, *args, *more]) as pair:
            self.push_into_step_6(pair, lambda: self.start(pair, asked, "push", path),
                                  lambda *command: pair.cli(1, *command), pair.trainers)
            pair.finish()
            self.assertEqual(pair.log.losses(), losses)
            self.assertSameWeights(pair.weights(), weights)

    def trainers_of(self, job):
        return lambda: {rank: pid for (kind, rank), pid in harness.processes_of(job.name).items() if kind == "trainer"}

    def start(self, pair, host, *command):
        return subprocess.Popen([harness.program(harness.SHERD), *map(str, command)], stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                env=harness.environment({"SHERD_SHM_ROOT": pair.places[host].shm}))

    def push_into_step_6(self, job, push, cli, trainers):
        """The last rank is held before it takes part: the step cannot be decided before the push is proposed."""
        last = job.wait_for("rank 3", lambda: trainers().get(3))
        os.kill(last, signal.SIGSTOP)
        try:
            job.wait_for("the values", lambda: cli("stat", "ln_f.bias").status == 0)
            pushing = push()
            job.wait_for("the push to be proposed", lambda: self.proposed(job))
        finally:
            os.kill(last, signal.SIGCONT)
        self.assertEqual(pushing.wait(timeout=harness.LIMIT), 0)
        job.wait_for_step(6)

    def proposed(self, job):
        found = stopped_push.imports(job.places) if hasattr(job, "places") else [[
            int(path.rpartition(".")[2]) for path in glob.glob(os.path.join(job.job_dir(), "import.*"))]]
        return all(any(i < stopped_push.UNNAMED for i in here) for here in found)

    def test_same_step_from_the_first_host(self):
        self.check_same_step(1, 0)

    def test_same_step_from_the_other_host_in_16_bits(self):
        self.check_same_step(2, 1, "--precision", "bf16", "--stochastic-rounding")

    def test_exactly_the_values_from_every_address(self):
        with two_hosts.TwoHosts(self, 1, 2, [*self.args, *self.still], steps=50000) as pair:
            pair.wait_for_step(2)
            weights = self.pull(pair, 0)
            factor = 1.0
            for host in (0, 1):
                for endpoint in sorted(glob.glob("%s/sherd-*/*/*.sock" % pair.places[host].shm)):
                    factor /= 2
                    new = scaled(weights, factor)
                    pushed = pair.json(host, "push", self.write(pair.dir, new), "--endpoint", "unix:" + endpoint)
                    self.assertGreaterEqual(pushed["step"], 2)
                    for there in (0, 1):
                        self.assertSameWeights(self.pull(pair, there), new, endpoint)
            # One of them in 16 bits; parameters that both hosts' trainers see.
            some = dict(new)
            some["wte.weight"] = safetensors.Tensor("F16", new["wte.weight"].shape,
                                                    struct.pack("<e", 0.0) * len(new["wte.weight"].floats()))
            step = pair.json(1, "push", self.write(pair.dir, some))["step"]
            self.assertEqual(set(self.pull(pair, 0)["wte.weight"].floats()), {0.0})
            pair.wait_for_step(step + 2)
            # Without embeddings every byte is as likely as another.
            self.assertLess(abs(pair.log.losses()[step + 1] - 5.545177), 1e-4)
            self.assertNoImports(pair)
            self.check_refused(pair, some)
            self.stop(pair)

    def check_refused(self, pair, weights):
        good = weights["ln_f.bias"]
        without = {name: t for name, t in weights.items() if name != "ln_f.bias"}
        count = len(good.data) // 4
        before = self.pull(pair, 0)
        shape = {**without, "ln_f.bias": safetensors.Tensor("F32", (count, 1), good.data)}
        dtype = {**without, "ln_f.bias": safetensors.Tensor("I32", good.shape, good.data)}
        for named, tensors in (("ln_f.bias", shape), ("I32", dtype), ("nobody", {**weights, "nobody": good}),
                               ("ln_f.bias", without)):
            for host in (0, 1):
                self.assertFails(pair.cli(host, "push", self.write(pair.dir, tensors)), 1, named)
        self.assertNoImports(pair)
        self.assertSameWeights(self.pull(pair, 1), before)


class WriteTest(Pushes):
    def test_a_trainers_write(self):
        args = ["--write", "h.1.mlp.c_proj.weight", "--write-value", 0.25, "--write-step", 4]
        for more in ([], ["--precision", "fp16"]):
            with self.job(2, 2, [*self.args, *more, *args], run_args=["--reduce-groups", "1,1"]) as job:
                job.finish()
                losses, weights = job.log.losses(), job.weights()
            with two_hosts.TwoHosts(self, 1, 2, [*self.args, *more, *args]) as pair:
                pair.finish()
                self.assertEqual(pair.log.losses(), losses)
                self.assertSameWeights(pair.weights(), weights)
        with two_hosts.TwoHosts(self, 1, 1, [*self.args, *self.still, *args], steps=20) as pair:
            pair.finish()
            self.assertEqual(set(pair.weights()["h.1.mlp.c_proj.weight"].floats()), {0.25})


class KillTest(Pushes):
    """Somebody dies while a push has sent a part of the values."""

    def setUp(self):
        self.weights = self.one_host(2, *self.still, steps=1)
        self.factor = 1.0

    def other_values(self):
        self.factor *= 0.75
        self.values = scaled(self.weights, self.factor)
        return self.values

    def test_whoever_dies_in_the_middle(self):
        """The servers' part is done again by others; without the caller nothing is changed and nothing is left."""
        with two_hosts.TwoHosts(self, 1, 1, [*self.args, *self.still], steps=50000) as pair:
            pair.wait_for_step(2)
            for asked in (0, 1):
                push = stopped_push.StoppedPush(pair, asked, lambda: self.write(pair.dir, self.other_values()))
                before = self.pull(pair, asked)
                push.process.kill()
                push.finish()
                self.assertNoImports(pair)
                self.assertSameWeights(self.pull(pair, 1 - asked), before)
                for host in (0, 1):
                    push = stopped_push.StoppedPush(pair, asked, lambda: self.write(pair.dir, self.other_values()))
                    pair.kill(host, "server")
                    push.go_on()
                    done = push.finish()
                    self.assertEqual(done.status, 0, done)
                    for there in (0, 1):
                        self.assertSameWeights(self.pull(pair, there), self.values)
                    pair.wait_for_step(json.loads(done.stdout)["step"] + 2)
                    self.assertNoImports(pair)
            self.stop(pair)


if __name__ == "__main__":
    harness.main()
