"""pull, push and read while training goes on."""
import os
import signal
import struct

from tests.cluster import harness
from tests.cluster import safetensors


def bf16(value):
    """The bytes of a float rounded to bfloat16, to nearest even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return struct.pack("<H", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


class PullTest(harness.ClusterTest):
    steps = 300  # enough that training still goes on after the pulls, on a quick and idle machine too
    args = ["--stage", 1]

    def file(self, job, name):
        return os.path.join(job.dir, name)

    def pull(self, job, name, *flags):
        """(result, tensors) of a pull that must succeed."""
        result = job.json("pull", self.file(job, name), *flags)
        return result, safetensors.read(self.file(job, name))[0]

    def stand_still(self, job):
        """Stops a trainer, so that the job stands between two steps."""
        job.signal("trainer", 1, signal.SIGSTOP)
        job.wait_for("the job to stand still", lambda: any(
            m["state"] == "stalled" for m in job.json("status")["members"]))
        return job.json("status")["step"]

    def test_a_pull_is_one_step_whole(self):
        """What is pulled while steps go on is what a run of as many steps saves."""
        with self.job(2, 2, self.args) as job:
            job.wait_for_step(3)
            pulled = [self.pull(job, "a.safetensors"), self.pull(job, "b.safetensors", "--rate", "2M")]
            job.finish()
            self.assertEqual([n for n in os.listdir(job.dir) if n.endswith((".tmp", ".part"))], [])
            want = job.weights()
        for result, tensors in pulled:
            with self.job(2, 1, self.args, steps=result["step"]) as job:
                job.finish()
                self.assertSameWeights(tensors, job.weights())
        with self.job(2, 2, self.args) as job:
            self.assertSameWeights(job.finish().weights(), want, "a pull changed the training")

    def test_equals_read_and_libtorch(self):
        with self.job(2, 2, self.args) as job:
            job.wait_for_step(4)
            step = self.stand_still(job)
            result, tensors = self.pull(job, "weights.safetensors")
            self.assertEqual(result["step"], step)
            self.assertEqual(len(tensors), result["tensors"])
            listed = {t["name"]: t["shape"] for t in job.json("ls")["tensors"]}
            self.assertEqual({n: list(t.shape) for n, t in tensors.items()}, listed)
            for name, tensor in tensors.items():
                done = job.cli("read", name, "-o", self.file(job, "one.npy"))
                self.assertEqual(done.status, 0, done)
                self.assertEqual(safetensors.read_npy(self.file(job, "one.npy")), tensor, name)
            self.check_small_types(job, tensors)
            _, everything = self.pull(job, "all.safetensors", "--with-optimizer")
            self.check_moments(everything, tensors, step)
            self.check_slice(job, tensors)
            text = harness.run(harness.SAMPLE, "--file", self.file(job, "weights.safetensors"), "--tokens", 40)
            self.assertEqual((text.status, text.stderr), (0, ""))
            # A model that has hardly learnt may say two bytes that are one character, or a line's end.
            self.assertGreaterEqual(len(text.stdout), 20)
            job.signal("trainer", 1, signal.SIGCONT)
            job.finish()

    def check_small_types(self, job, tensors):
        _, halves = self.pull(job, "half.safetensors", "--dtype", "fp16")
        _, brains = self.pull(job, "brain.safetensors", "--dtype", "bf16")
        self.assertEqual(set(halves), set(tensors))
        for name, tensor in tensors.items():
            values = tensor.floats()
            self.assertEqual((halves[name].dtype, brains[name].dtype), ("F16", "BF16"))
            self.assertEqual(halves[name].data, struct.pack("<%de" % len(values), *values), name)
            self.assertEqual(brains[name].data, b"".join(map(bf16, values)), name)

    def check_moments(self, everything, tensors, step):
        self.assertEqual({n: t for n, t in everything.items() if n in tensors}, tensors)
        _, want = self.reference("--save-optimizer", steps=step)
        for name in tensors:
            for plane in ("exp_avg", "exp_avg_sq"):
                key = plane + "/" + name
                got, libtorch = everything[key].floats(), want[key].floats()
                # Relative to the largest of the tensor: the smallest elements are differences of sums.
                scale = max(map(abs, libtorch))
                self.assertLessEqual(max(abs(a - b) for a, b in zip(got, libtorch)), 1e-5 * scale, key)

    def check_slice(self, job, tensors):
        done = job.cli("read", "wte.weight", "--slice", "3:9:2,1", "-o", self.file(job, "slice.npy"))
        self.assertEqual(done.status, 0, done)
        whole, width = tensors["wte.weight"].floats(), tensors["wte.weight"].shape[1]
        self.assertEqual(safetensors.read_npy(self.file(job, "slice.npy")).floats(),
                         [whole[row * width + 1] for row in (3, 5, 7)])

    def test_a_server_dies_during_a_pull(self):
        with self.job(2, 2, self.args, steps=2000) as job:
            job.wait_for_step(2)
            pulling = job.start_cli("pull", self.file(job, "slow.safetensors"), "--rate", "1M")
            job.wait_for("the pull to have begun", lambda: [
                n for n in os.listdir(job.dir) if "slow.safetensors" in n])
            job.kill("server", 0)
            self.assertEqual(pulling.wait(timeout=harness.LIMIT), 0)
            tensors, metadata = safetensors.read(self.file(job, "slow.safetensors"))
            job.process.send_signal(signal.SIGINT)
            job.finish(status=128 + signal.SIGINT)
        with self.job(2, 1, self.args, steps=int(metadata["sherd_step"])) as job:
            job.finish()
            self.assertSameWeights(tensors, job.weights())


class PushTest(harness.ClusterTest):
    steps = 40
    args = ["--stage", 2, "--lr", 0, "--weight-decay", 0]  # training changes nothing

    def setUp(self):
        _, self.weights = self.reference("--lr", "0", "--weight-decay", "0", steps=1)

    def path(self, job, tensors, **how):
        path = os.path.join(job.dir, "push.safetensors")
        safetensors.write(path, tensors, **how)
        return path

    def test_right_values_are_seen_by_the_next_step(self):
        with self.job(2, 3, self.args, steps=3000) as job:
            job.wait_for_step(2)
            new = {name: safetensors.Tensor("F32", t.shape, struct.pack(
                "<%df" % len(t.floats()), *(0.5 * v for v in t.floats()))) for name, t in self.weights.items()}
            step = job.json("push", self.path(job, new))["step"]
            self.assertGreaterEqual(step, 2)
            pulled = os.path.join(job.dir, "after.safetensors")
            job.json("pull", pulled)
            self.assertSameWeights(safetensors.read(pulled)[0], new)
            # One of them in another dtype.
            some = dict(new)
            some["ln_f.weight"] = safetensors.Tensor("BF16", new["ln_f.weight"].shape,
                                                     bf16(2.5) * len(new["ln_f.weight"].floats()))
            job.json("push", self.path(job, some))
            job.json("pull", pulled)
            got = safetensors.read(pulled)[0]
            self.assertEqual(set(got["ln_f.weight"].floats()), {2.5})
            self.assertEqual(got["wte.weight"], new["wte.weight"])
            job.process.send_signal(signal.SIGINT)
            job.finish(status=128 + signal.SIGINT)

    def test_wrong_files_change_nothing(self):
        good = self.weights["ln_f.bias"]
        count = len(good.data) // 4
        entry = b'{"ln_f.bias":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}' % (count, len(good.data))
        doubled = b'{"ln_f.bias":%s,"ln_f.bias":%s}' % ((entry[len(b'{"ln_f.bias":'):],) * 2)
        without = {name: t for name, t in self.weights.items() if name != "ln_f.bias"}
        cases = {
            "shape": ({**without, "ln_f.bias": safetensors.Tensor("F32", (count, 1), good.data)}, None, "ln_f.bias"),
            "dtype": ({**without, "ln_f.bias": safetensors.Tensor("I32", good.shape, good.data)}, None, "I32"),
            "name": ({**self.weights, "nobody": good}, None, "nobody"),
            "one missing": (without, None, "ln_f.bias"),
            "empty header": ({}, b"", "header"),
            "trailing garbage": ({"ln_f.bias": good}, entry + b"} x", "push.safetensors"),
            "a second document": ({"ln_f.bias": good}, entry + b"}{}", "push.safetensors"),
            "duplicate keys": ({"ln_f.bias": good}, doubled, "push.safetensors"),
            "no JSON": ({"ln_f.bias": good}, b"\xef\xbb\xbf" + entry + b"}", "push.safetensors"),
            "bad UTF-8": ({"ln_f.bias": good}, entry + b',"\xff":{}}', "push.safetensors"),
            "size": ({"ln_f.bias": good}, entry.replace(b"F32", b"F64") + b"}", "ln_f.bias"),
            "unknown dtype": ({"ln_f.bias": good}, entry.replace(b"F32", b"F33") + b"}", "F33"),
            "negative": ({"ln_f.bias": good}, entry.replace(b"[0,", b"[-4,") + b"}", "push.safetensors"),
            "hole": ({"ln_f.bias": good, "x": good},
                     entry.replace(b"[0,%d]" % len(good.data), b"[%d,%d]" % (len(good.data), 2 * len(good.data))) + b"}",
                     "push.safetensors"),
            "trailing bytes": ({"ln_f.bias": good, "x": good}, entry + b"}", "push.safetensors"),
            "metadata": ({"ln_f.bias": good}, entry + b',"__metadata__":{"a":1}}', "push.safetensors"),
        }
        with self.job(1, 2, self.args, steps=5000) as job:
            job.wait_for_step(1)
            for what, (tensors, header, named) in cases.items():
                with self.subTest(what):
                    self.assertFails(job.cli("push", self.path(job, tensors, header=header)), 1, named)
            with open(self.path(job, {}), "wb") as f:
                f.write(b"\x10\0\0")
            self.assertFails(job.cli("push", f.name), 1, "push.safetensors")
            self.assertFails(job.cli("push", os.path.join(job.dir, "none.safetensors")), 1, "none.safetensors")
            pulled = os.path.join(job.dir, "after.safetensors")
            job.json("pull", pulled)
            self.assertSameWeights(safetensors.read(pulled)[0], self.weights)
            job.process.send_signal(signal.SIGINT)
            job.finish(status=128 + signal.SIGINT)


if __name__ == "__main__":
    harness.main()
