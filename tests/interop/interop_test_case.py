"""Jobs of regression_trainer, and PyTorch in a process of its own as the judge of their files."""
import json
import os
import signal
import subprocess
import sys

from tests.cluster import harness

TRAINER = "tests/interop/regression_trainer"
HERE = os.path.dirname(os.path.abspath(__file__))


def python_with(module, *candidates):
    """The first Python that imports `module`, or None."""
    for python in candidates:
        if python and os.path.exists(python):
            done = subprocess.run([python, "-c", "import " + module], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            if done.returncode == 0:
                return python
    return None


class GrowingLog(harness.StepLog):
    """A log that is only ever appended to, of hundreds of thousands of steps: each line is read once."""

    def __init__(self, path):
        super().__init__(path)
        self.offset, self.steps = 0, {}

    def records(self):
        if os.path.exists(self.path):
            with open(self.path, "rb") as f:
                f.seek(self.offset)
                whole = f.read().rpartition(b"\n")[0]
            for line in whole.splitlines():
                record = json.loads(line)
                self.steps[record["step"]] = record
            self.offset += len(whole) + (1 if whole else 0)
        return self.steps

    def last_step(self):
        return next(reversed(self.records()), 0)


class InteropTestCase(harness.ClusterTest):
    """`python` runs what needs torch."""

    python = None

    def path(self, name):
        return os.path.join(self.dir, name)

    def judge(self, *args):
        """torch_judge.py with these arguments."""
        done = subprocess.run([self.python, os.path.join(HERE, "torch_judge.py"), *map(str, args)],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                              encoding="utf-8", errors="replace")
        self.assertEqual(done.returncode, 0, done.stdout)

    def regression(self, trainers, servers, learning_rate=1e-3, steps=1000000):
        """A job of regression_trainer; end it with stop()."""
        log = self.path("losses-%d.json" % harness.Job.count)
        job = self.job(trainers, servers, command=[harness.program(TRAINER), str(steps), str(learning_rate), log])
        job.log = GrowingLog(log)
        return job

    def stop(self, job):
        job.process.send_signal(signal.SIGINT)
        job.finish(status=128 + signal.SIGINT)

    def loss_after(self, job, step, more=1):
        """The loss of step + more, and those between: what `step` left behind decides them."""
        job.wait_for_step(step + more)
        records = job.log.records()
        return [records[s]["loss"] for s in range(step + 1, step + more + 1)]

    def assertClose(self, got, want, tolerance):
        self.assertEqual(len(got), len(want))
        for a, b in zip(got, want):
            self.assertLessEqual(abs(a - b), tolerance * abs(b), (got, want))


PYTHON_WITH_TORCH = python_with("torch", os.environ.get("SHERD_TORCH_PYTHON"), sys.executable, "/usr/bin/python3")
