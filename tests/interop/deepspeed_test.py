"""A DeepSpeed run continues in Sherd and a Sherd job in DeepSpeed, at other world sizes, with the same losses.

By hand, as DeepSpeed is no Debian package:

    python3 -m venv ds && ds/bin/pip install torch deepspeed setuptools ninja
    bazel test //tests/interop:deepspeed_test --test_env=SHERD_TORCH_PYTHON=$PWD/ds/bin/python

Passed with DeepSpeed 0.19.8 and PyTorch 2.5.1. DeepSpeed up to 0.19.2 at least cannot load a folder of the form of
stages 1 and 2, which is what Sherd writes, into stage 3.
"""
import json
import os
import shutil
import subprocess
import unittest

from tests.cluster import harness
from tests.interop import interop_test_case

PYTHON = interop_test_case.python_with("deepspeed", os.environ.get("SHERD_TORCH_PYTHON"))
TOLERANCE = 1e-5


@unittest.skipUnless(PYTHON, "SHERD_TORCH_PYTHON names no Python with deepspeed")
class DeepSpeedTest(interop_test_case.InteropTestCase):
    python = PYTHON

    def deepspeed(self, what, folder, stage, ranks, learning_rate, optimizer):
        os.makedirs(folder, exist_ok=True)
        script = os.path.join(interop_test_case.HERE, "deepspeed_run.py")
        done = subprocess.run([PYTHON, script, what, folder, str(stage), str(ranks), str(learning_rate), optimizer],
                              check=False,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              encoding="utf-8", errors="replace", env={
                                  **os.environ, "PATH": os.path.dirname(PYTHON) + ":" + os.environ["PATH"]})
        self.assertEqual(done.returncode, 0, done.stderr[-5000:])
        return json.loads(done.stdout)

    def test_deepspeed_continues_here(self):
        for stage, ranks in ((2, 2), (3, 2)):
            with self.subTest(stage=stage):
                folder = self.path("made-%d" % stage)
                want = self.deepspeed("make", folder, stage, ranks, 1e-2, "torch")["losses"]
                for path in (folder, os.path.join(folder, "universal")):
                    with self.regression(3, 2, learning_rate=1e-2) as job:
                        job.wait_for_step(1)
                        step = job.json("push", path, "--with-optimizer")["step"]
                        self.assertClose(self.loss_after(job, step, len(want)), want, TOLERANCE)
                        self.stop(job)

    def test_a_job_continues_in_deepspeed(self):
        with self.regression(1, 2, learning_rate=1e-4) as job:
            job.wait_for_step(20)
            step = job.json("pull", self.path("out"), "--format", "deepspeed")["step"]
            want = self.loss_after(job, step, 5)
            self.stop(job)
        # In stage 3 DeepSpeed's own optimizer: PyTorch's wants a tensor for each subgroup (pull_deepspeed.cc).
        for stage, ranks, optimizer in ((1, 1, "torch"), (2, 3, "torch"), (2, 2, "deepspeed"), (3, 2, "deepspeed")):
            with self.subTest(stage=stage, ranks=ranks, optimizer=optimizer):
                copy = self.path("copy-%d-%d-%s" % (stage, ranks, optimizer))
                shutil.copytree(self.path("out"), copy)
                got = self.deepspeed("load", copy, stage, ranks, 1e-4, optimizer)
                self.assertEqual(got["global_steps"], step + len(want))
                self.assertClose(got["losses"], want, TOLERANCE)


if __name__ == "__main__":
    harness.main()
