"""What is pulled, PyTorch opens; what PyTorch saved, is pushed: bit for bit.

Needs a Python with torch: Debian's python3-torch, or SHERD_TORCH_PYTHON (bazel test --test_env=SHERD_TORCH_PYTHON=...).
Where the safetensors package is installed beside it, it judges too.
"""
import json
import os
import signal
import struct
import unittest

from tests.cluster import harness
from tests.cluster import safetensors
from tests.interop import interop_test_case

PYTHON = interop_test_case.PYTHON_WITH_TORCH
PLANES = ("exp_avg", "exp_avg_sq", "step")


def floats(tensor):
    """F32 with the same values."""
    return safetensors.Tensor("F32", tensor.shape, struct.pack("<%df" % len(tensor.floats()), *tensor.floats()))


@unittest.skipUnless(PYTHON, "no Python with torch: apt-get install python3-torch")
class TorchTest(interop_test_case.InteropTestCase):
    python = PYTHON

    def read_all(self, job):
        """{(plane, name): Tensor} by `sherd read`."""
        values = {}
        for tensor in job.json("ls")["tensors"]:
            for plane in ("param", *PLANES):
                out = self.path("one.npy")
                done = job.cli("read", tensor["name"], "--plane", plane, "-o", out)
                self.assertEqual(done.status, 0, done)
                values[plane, tensor["name"]] = safetensors.read_npy(out)
        return values

    def test_pulled_files_are_what_read_shows(self):
        with self.job(2, 2, ["--stage", 2], steps=4000) as job:
            job.wait_for_step(5)
            job.signal("trainer", 1, signal.SIGSTOP)
            job.wait_for("the job to stand still", lambda: any(
                m["state"] == "stalled" for m in job.json("status")["members"]))
            step = job.json("status")["step"]
            values = self.read_all(job)
            names = sorted({name for _, name in values})
            self.check_files(job, step, values)
            self.check_safetensors(job, values)
            job.signal("trainer", 1, signal.SIGCONT)
            self.stop(job)

    def check_files(self, job, step, values):
        """Every form of a pull, judged by one PyTorch."""
        names = sorted({name for _, name in values})
        weights = {n: values["param", n] for n in names}
        everything = {"model/" + n: t for n, t in weights.items()}
        everything.update({"optimizer/%s/%s" % (p, n): values[p, n] for p in PLANES for n in names})
        want = {"plain": weights, "whole": everything}
        for name, flags in (("plain", []), ("whole", ["--with-optimizer"]), ("bf16", ["--dtype", "bf16"]),
                            ("fp16", ["--dtype", "fp16"])):
            path = self.path(name + ".pt")
            result = job.json("pull", path, "--format", "pt", *flags)
            self.assertEqual((result["step"], result["files"]), (step, [path]))
            if name not in want:
                job.json("pull", self.path(name + ".safetensors"), *flags)
                want[name] = safetensors.read(self.path(name + ".safetensors"))[0]
        tag = self.pull_universal(job, step)
        outs = {name: self.path(name + ".judged") for name in (*want, "run")}
        commands = [arg for name in want for arg in ("dump", self.path(name + ".pt"), outs[name], "--")]
        self.judge(*commands, "folder", tag, outs["run"])
        for name, tensors in want.items():
            self.assertSameWeights(safetensors.read(outs[name])[0], tensors, name)
        self.check_universal(safetensors.read(outs["run"])[0], values, names)

    def check_safetensors(self, job, values):
        pulled = self.path("m.safetensors")
        job.json("pull", pulled, "--with-optimizer")
        want = {name if plane == "param" else plane + "/" + name: t for (plane, name), t in values.items()}
        self.assertSameWeights(safetensors.read(pulled)[0], want)
        if interop_test_case.python_with("safetensors.torch", PYTHON):
            self.judge("safetensors", pulled, self.path("package.judged"))
            self.assertSameWeights(safetensors.read(self.path("package.judged"))[0], want)
        else:
            print("the safetensors package is not installed beside torch: left out")

    def pull_universal(self, job, step):
        result = job.json("pull", self.path("run"), "--format", "deepspeed")
        tag = self.path("run/global_step%d" % step)
        self.assertEqual(result["files"], [tag, self.path("run/latest_universal")])
        with open(self.path("run/latest_universal")) as f:
            self.assertEqual(f.read(), os.path.basename(tag))
        self.assertFails(job.cli("pull", self.path("run"), "--format", "deepspeed"), 1, os.path.basename(tag))
        return tag

    def check_universal(self, got, values, names):
        for name in names:
            base = "zero/%s/" % name
            self.assertEqual(got[base + "fp32/param"], values["param", name], name)
            for plane in ("exp_avg", "exp_avg_sq"):
                self.assertEqual(got[base + plane + "/param"], values[plane, name], name)
            self.assertEqual(got[base + "step"].floats(), values["step", name].floats(), name)

    def save(self, files):
        """{path: (tensors, how)} by one PyTorch: importing it takes long."""
        commands = []
        for path, (tensors, how) in files.items():
            plain = path + ".plain"
            safetensors.write(plain, tensors)
            commands += ["--", "save", plain, path, how]
        self.judge(*commands[1:])

    def test_saved_by_torch_is_pushed(self):
        with self.regression(1, 2, learning_rate=0) as job:  # decay times 0: training changes nothing
            job.wait_for_step(1)
            job.json("pull", self.path("first.safetensors"))
            first = safetensors.read(self.path("first.safetensors"))[0]
            files = {}
            for how in ("plain", "turned", "module"):
                for dtype in ("F32", "F16", "BF16"):
                    new = {n: self.scaled(t, len(files) + 1, dtype) for n, t in first.items()}
                    files[self.path("%s-%s.pt" % (how, dtype))] = new, how
            self.save(files)
            for path, (new, _) in files.items():
                self.check_push(job, path, new)
            self.check_folders(job, first)
            self.check_refused(job, first)
            self.stop(job)

    @staticmethod
    def scaled(tensor, by, dtype):
        """Values that all three types hold exactly."""
        values = [round(by * v * 16) / 16 for v in tensor.floats()]
        if dtype == "BF16":
            data = b"".join(struct.pack("<f", v)[2:] for v in values)
        else:
            data = struct.pack("<%d%s" % (len(values), {"F32": "f", "F16": "e"}[dtype]), *values)
        return safetensors.Tensor(dtype, tensor.shape, data)

    def check_push(self, job, path, new):
        job.json("push", path)
        job.json("pull", self.path("after.safetensors"))
        got = safetensors.read(self.path("after.safetensors"))[0]
        self.assertSameWeights(got, {n: floats(t) for n, t in new.items()}, path)

    def shards(self, folder, tensors, form):
        """A folder of two shards, as Hugging Face has them; what its index says."""
        os.mkdir(folder)
        names = sorted(tensors)
        parts = {form % 1: names[:2], form % 2: names[2:]}
        files = {os.path.join(folder, f): ({n: tensors[n] for n in part}, "plain") for f, part in parts.items()}
        if form.endswith(".bin"):
            self.save(files)
        else:
            for path, (part, _) in files.items():
                safetensors.write(path, part)
        return {n: f for f, part in parts.items() for n in part}

    def write_index(self, folder, name, index):
        with open(os.path.join(folder, name), "w") as f:
            json.dump({"metadata": {"total_size": 1}, "weight_map": index}, f)

    def check_folders(self, job, first):
        forms = {"model.safetensors.index.json": "model-%05d-of-00002.safetensors",
                 "pytorch_model.bin.index.json": "pytorch_model-%05d-of-00002.bin"}
        for by, (index_name, form) in enumerate(forms.items()):
            new = {n: self.scaled(t, 3 + by, "F32") for n, t in first.items()}
            folder = self.path("hf-%d" % by)
            index = self.shards(folder, new, form)
            self.write_index(folder, index_name, index)
            self.check_push(job, folder, new)
            self.check_push(job, os.path.join(folder, index_name), new)
            # An index must not reach out of its folder.
            name = sorted(index)[0]
            for out in ("../hf-%d/%s" % (by, index[name]), "/etc/passwd", ".."):
                self.write_index(folder, index_name, {**index, name: out})
                self.assertFails(job.cli("push", folder), 1, "plain name")
            self.write_index(folder, index_name, {**index, "nobody": index[name]})
            self.assertFails(job.cli("push", folder), 1, "nobody")

    def check_refused(self, job, first):
        one = first["0.bias"]
        more = {"x%d" % i: one for i in range(9)}
        tall = safetensors.Tensor("F32", (*one.shape, 1), one.data)
        files = {"more.pt": {**first, **more}, "less.pt": {"0.bias": one}, "tall.pt": {**first, "0.bias": tall},
                 "some.pt": {"0.bias": self.scaled(one, 2, "F32"), **more}, "good.pt": first}
        self.save({self.path(name): (tensors, "plain") for name, tensors in files.items()})
        self.assertFails(job.cli("push", self.path("more.pt")), 1, "x0, x1, x2 and 6 more")
        self.assertFails(job.cli("push", self.path("less.pt")), 1, "2.bias, 2.weight, 0.weight")
        self.assertFails(job.cli("push", self.path("tall.pt")), 1, "0.bias")
        self.assertFails(job.cli("push", self.path("good.pt"), "--with-optimizer"), 1, "--with-optimizer")
        with open(self.path("old.pt"), "wb") as f:
            f.write(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
        self.assertFails(job.cli("push", self.path("old.pt")), 1, "PyTorch 1.6")
        result = job.json("push", self.path("some.pt"), "--partial")
        self.assertEqual((result["tensors"], result["missing"], result["left_over"]), (1, 3, 9))

    def test_a_universal_folder_continues_elsewhere(self):
        """Moments and step counts come along: the other job's losses are this one's, at other sizes."""
        with self.regression(1, 2, learning_rate=1e-2) as job:
            job.wait_for_step(20)
            step = job.json("pull", self.path("go"), "--format", "deepspeed")["step"]
            want = self.loss_after(job, step, 5)
            self.stop(job)
        with self.regression(2, 3, learning_rate=1e-2) as job:
            job.wait_for_step(1)
            at = job.json("push", self.path("go"), "--with-optimizer")["step"]
            self.assertClose(self.loss_after(job, at, 5), want, 1e-5)
            self.stop(job)


if __name__ == "__main__":
    harness.main()
