"""Weights that other programs wrote: a model that only computes from them in shard servers, and training that begins
with them."""
import glob
import json
import os
import re
import struct

from tests.cluster import harness
from tests.cluster import safetensors

PROMPTS = ["the ", "a", "of them"]


def write_folder(folder, tensors, files=2):
    """A model as the Hugging Face hub keeps large ones: shards and an index."""
    os.mkdir(folder)
    names = sorted(tensors)
    weight_map = {}
    for i in range(files):
        file = "model-%05d-of-%05d.safetensors" % (i + 1, files)
        own = {name: tensors[name] for name in names[i::files]}
        safetensors.write(os.path.join(folder, file), own)
        weight_map.update({name: file for name in own})
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": sum(len(t.data) for t in tensors.values())}, "weight_map": weight_map}, f)
    return folder


def as_bf16(tensor):
    return safetensors.Tensor("BF16", tensor.shape, b"".join(
        tensor.data[i + 2:i + 4] for i in range(0, len(tensor.data), 4)))


def as_fp16(tensor):
    values = tensor.floats()
    return safetensors.Tensor("F16", tensor.shape, struct.pack("<%de" % len(values), *values))


class InferenceTest(harness.ClusterTest):
    steps = 30

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        _, cls.tensors = cls.reference()
        cls.file = os.path.join(cls.dir, "reference-0.safetensors")

    def folder(self, name, tensors):
        return write_folder(os.path.join(self.dir, name), tensors)

    def alone(self, path, *flags):
        """The lines of text that one process prints."""
        done = harness.run(harness.SAMPLE, "--file", path, *self.prompts(), *flags)
        self.assertEqual((done.status, done.stderr), (0, ""))
        return sorted(done.stdout.splitlines())

    def prompts(self):
        return [flag for prompt in PROMPTS for flag in ("--prompt", prompt)]

    def sample(self, trainers, servers, path, *flags):
        """The job of a model in shard servers."""
        command = [harness.program(harness.SAMPLE), "--sharded", "--file", path, *self.prompts(), *map(str, flags)]
        return self.job(trainers, servers, command=command)

    def lines(self, job):
        return sorted(re.sub(r"^\[\d+\] ", "", line) for line in job.output("stdout").splitlines())

    def test_the_text_is_that_of_one_process(self):
        want = self.alone(self.file, "--tokens", 40)
        self.assertEqual(len(want), len(PROMPTS))
        for trainers, servers in ((1, 1), (2, 3), (3, 2)):
            with self.sample(trainers, servers, self.file, "--tokens", 40) as job:
                job.finish()
                self.assertEqual(self.lines(job), want, (trainers, servers))

    def test_folders_and_types(self):
        for name, convert in (("bf16", as_bf16), ("fp16", as_fp16)):
            folder = self.folder(name, {n: convert(t) for n, t in self.tensors.items()})
            want = self.alone(folder, "--tokens", 30)
            with self.sample(2, 2, folder, "--tokens", 30) as job:
                job.finish()
                self.assertEqual(self.lines(job), want, name)
        with self.sample(2, 2, self.file, "--tokens", 30, "--dtype", "bf16") as job:
            job.finish()
            self.assertEqual(len(self.lines(job)), len(PROMPTS))

    def test_there_is_no_optimizer_state_and_no_gradient(self):
        elements = sum(len(t.data) // 4 for t in self.tensors.values())
        with self.sample(2, 2, self.file, "--tokens", 1 << 20, "--top-k", 5) as job:
            job.wait_for("its values", lambda: job.status().get("initialized"))
            listed = job.json("ls")["tensors"]
            self.assertEqual({t["name"] for t in listed}, set(self.tensors))
            self.assertEqual({tuple(t["planes"]) for t in listed}, {("param",)})
            sizes = {}
            for path in glob.glob(job.job_dir() + "/*"):
                if re.match("plane|grad|staging", os.path.basename(path)):
                    sizes[os.path.basename(path)] = os.stat(path).st_blocks * 512
            self.assertGreaterEqual(sizes.pop("plane.param"), 4 * elements)
            self.assertLessEqual(max(sizes.values()), 4096, sizes)
            pulled = os.path.join(job.dir, "pulled.safetensors")
            job.json("pull", pulled)
            self.assertSameWeights(safetensors.read(pulled)[0], self.tensors)
            job.interrupt()

    def test_a_server_that_dies_is_not_missed(self):
        want = self.alone(self.file, "--tokens", 3000)
        with self.sample(2, 2, self.file, "--tokens", 3000) as job:
            job.wait_for("its values", lambda: job.status().get("initialized"))
            dead = job.kill("server", 1)
            job.wait_for_successor("server", 1, dead)
            job.finish()
            self.assertEqual(self.lines(job), want)

    def test_training_goes_on_from_them(self):
        folder = self.folder("fp32", self.tensors)
        for args in (["--stage", 1], [*harness.stage(3), "--init", "sharded"]):
            with self.job(2, 2, ["--restore", folder, "--lr", 0, *args], steps=2) as job:
                job.finish()
                self.assertSameWeights(job.weights(), self.tensors, args)
                self.assertIn("%d tensors" % len(self.tensors), job.output("stderr"))

    def test_into_a_running_job(self):
        with self.job(2, 2, ["--stage", 1, "--lr", 0], steps=100000) as job:
            job.wait_for_step(3)
            said = job.json("restore", self.file)
            self.assertEqual(sorted(said["matched"]), sorted(self.tensors))
            pulled = os.path.join(job.dir, "pulled.safetensors")
            job.json("pull", pulled)
            self.assertSameWeights(safetensors.read(pulled)[0], self.tensors)
            job.interrupt()

    def test_what_does_not_fit_is_named(self):
        one = "h.1.mlp.c_fc.weight"
        lacking = {n: t for n, t in self.tensors.items() if n != one}
        wide = safetensors.Tensor("F64", (3,), bytes(24))
        cases = {
            "lacking": (lacking, one),
            "extra": ({**self.tensors, "one.more": wide}, "one.more"),
            "type": ({**self.tensors, "ln_f.bias": safetensors.Tensor("I64", (128,), bytes(1024))},
                     "tensor ln_f.bias is I64"),
            "shape": ({**self.tensors, "ln_f.bias": safetensors.Tensor("F32", (64,), bytes(256))}, "ln_f.bias"),
        }
        for name, (tensors, named) in cases.items():
            folder = self.folder(name, tensors)
            with self.job(1, 1, ["--restore", folder], run_args=["--restarts", 0]) as job:
                job.finish(status=1)
                self.assertIn(named, job.output("stderr"), name)
                self.assertIn(folder, job.output("stderr"), name)
        # A tensor of neither type that the model does not have: left out where that was asked for.
        with self.job(1, 1, ["--restore", os.path.join(self.dir, "extra"), "--partial", "--lr", 0], steps=1) as job:
            job.finish()
            self.assertSameWeights(job.weights(), self.tensors)
            self.assertIn("one.more", job.output("stderr"))
        with self.job(1, 1, ["--restore", self.file, "--restore-tag", "step-3"], run_args=["--restarts", 0]) as job:
            job.finish(status=1)
            self.assertIn("no tag step-3", job.output("stderr"))
        done = harness.run(harness.SAMPLE, "--sharded", "--file", self.file)
        self.assertFails(done, 1, "sherd run")


if __name__ == "__main__":
    harness.main()
