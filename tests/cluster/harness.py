"""Starts real jobs, waits for what happens in them, kills their processes, and checks that nothing is left.

Nothing here waits by sleeping for a fixed time: it looks, again and again, for what it waits for (the step log, the
output, /proc), and fails after a limit that says what did not come.
"""
import contextlib
import glob
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import tests.cluster.results as results
import tests.cluster.safetensors as safetensors

SHM = "/dev/shm/sherd-%d" % os.geteuid()
LIMIT = float(os.environ.get("SHERD_TEST_LIMIT", "120"))  # seconds until a wait gives up
LOOK_AGAIN = 0.005

SHERD, SHERDD = "client/cli/sherd", "server/sherdd"
TRAIN, SAMPLE = "client/examples/train_gpt", "client/examples/sample_gpt"
TRAINERS = [os.path.basename(p) for p in (TRAIN, SAMPLE)]  # what may have a rank


def program(name):
    """A program of this build, in the tests' runfiles."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", name)
    path = os.path.normpath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(path + ": run this through bazel")
    return path


def wait_for(what, look, limit=None):
    """The first true value of look(). AssertionError after `limit` seconds: names `what`."""
    limit = limit or LIMIT
    end = time.monotonic() + limit
    while True:
        value = look()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("waited %.0f s for %s" % (limit, what))
        time.sleep(LOOK_AGAIN)


def environment(extra=()):
    """This process's, with one thread for each library (thread counts change bits) and nothing of another job."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("SHERD_") and k not in ("RANK", "WORLD_SIZE")}
    env.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    env.update(extra)
    return env


def read_proc(pid, name):
    try:
        with open("/proc/%s/%s" % (pid, name), "rb") as f:
            return f.read().decode("utf-8", "replace").split("\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def is_running(pid):
    """False for a zombie: it runs no instruction more."""
    stat = read_proc(pid, "stat")
    return bool(stat) and stat[0].rsplit(")", 1)[-1].split()[0] not in "ZX"


def processes_of(job):
    """{("trainer", rank) or ("server", number): pid} of a job's live processes."""
    found = {}
    for path in glob.glob("/proc/[0-9]*"):
        pid = int(os.path.basename(path))
        command = read_proc(pid, "cmdline")
        if not command or not is_running(pid):
            continue
        name = os.path.basename(command[0])
        if name == "sherdd" and "--job" in command and command[command.index("--job") + 1] == job:
            found["server", int(command[command.index("--id") + 1][1:])] = pid
        elif name in TRAINERS:
            env = dict(e.split("=", 1) for e in read_proc(pid, "environ") if "=" in e)
            if env.get("SHERD_JOB") == job:
                found["trainer", int(env["RANK"])] = pid
    return found


def left_over(job, shm=SHM):
    """What a job left behind: descriptions, empty if nothing."""
    left = ["process %s %d, pid %d" % (*key, pid) for key, pid in processes_of(job).items()]
    left += glob.glob("%s/%s-*" % (shm, job))
    with open("/proc/net/unix") as f:
        left += ["socket " + line.split()[-1] for line in f if "/%s-" % job in line]
    return left


class StepLog:
    """A step log (train_gpt --json) that is being written."""

    def __init__(self, path):
        self.path = path

    def records(self):
        """By step: of a step that was logged again after a restart, the last."""
        steps = {}
        if os.path.exists(self.path):
            with open(self.path) as f:
                for line in f:
                    if line.endswith("\n"):
                        record = json.loads(line)
                        steps[record["step"]] = record
        return steps

    def last_step(self):
        return max(self.records(), default=0)

    def losses(self):
        records = self.records()
        return [records[step]["loss"] for step in sorted(records)]


class Finished:
    """A program that ended: its status, and what it said."""

    def __init__(self, status, stdout, stderr):
        self.status, self.stdout, self.stderr = status, stdout, stderr

    def __str__(self):
        return "status %s\n%s%s" % (self.status, self.stdout, self.stderr)


def run(*command, env=(), limit=None, cwd=None):
    """Runs a program of this build to its end."""
    p = subprocess.run([program(command[0]), *map(str, command[1:])], env=environment(env), cwd=cwd,
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       timeout=limit or LIMIT, encoding="utf-8", errors="replace")
    return Finished(p.returncode, p.stdout, p.stderr)


def stage(number):
    """Flags of a stage. The tiny model's tensors are so small that stage 3 would keep all of them."""
    keep_nothing = ["--persistence-threshold", 0, "--max-reuse-distance", 0] if number == 3 else []
    return ["--stage", number] + keep_nothing


class Job:
    """A job of `sherd run`: train_gpt on `trainers` ranks with `servers` shard servers.

    with Job(test, trainers=2, servers=2, args=["--stage", 1]) as job:
        job.wait_for_step(5)
        job.kill("server", 0)
        job.finish()
    """

    count = 0

    def __init__(self, test, trainers, servers, args=(), run_args=(), steps=None, command=None, name=None,
                 shm_root=None):
        Job.count += 1
        self.env = {"SHERD_SHM_ROOT": shm_root} if shm_root else {}
        self.shm = "%s/sherd-%d" % (shm_root, os.geteuid()) if shm_root else SHM
        self.test = test
        self.name = name or "%s-%d-%d" % (test.job_prefix, os.getpid(), Job.count)
        self.dir = os.path.join(test.dir, self.name)
        os.mkdir(self.dir)
        self.trainers, self.servers = trainers, servers
        self.log = StepLog(os.path.join(self.dir, "steps.json"))
        self.saved = os.path.join(self.dir, "final.safetensors")
        text = ["--text", test.text()] if test.text() else []
        train = command or [program(TRAIN), *text, "--json", self.log.path, "--save", self.saved,
                            *test.training(steps), *map(str, args)]
        self.command = [program(SHERD), "run", "-n", str(trainers), "--servers", str(servers), "--job", self.name,
                        "--dir", os.path.join(self.dir, "run"), *map(str, run_args), "--", *train]

    def __enter__(self):
        self.stdout = open(os.path.join(self.dir, "stdout"), "w+")
        self.stderr = open(os.path.join(self.dir, "stderr"), "w+")
        self.process = subprocess.Popen(self.command, env=environment(self.env), stdin=subprocess.DEVNULL,
                                        stdout=self.stdout, stderr=self.stderr, cwd=self.dir)
        return self

    def __exit__(self, kind, error, trace):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            if kind is None:
                self.test.fail("the job was not finished")
        for pid in processes_of(self.name).values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if kind is not None:
            print("---- output of job %s\n%s%s" % (self.name, self.output("stdout"), self.output("stderr")))
            for path in sorted(glob.glob(os.path.join(self.dir, "run", "logs", "*"))):
                with open(path) as f:
                    print("---- %s\n%s" % (path, "".join(f.readlines()[-30:])))
            print("----")
            for path in glob.glob("%s/%s-*" % (self.shm, self.name)):
                shutil.rmtree(path, ignore_errors=True)
        self.stdout.close()
        self.stderr.close()

    def output(self, name):
        with open(os.path.join(self.dir, name), errors="replace") as f:
            return f.read()

    def _check_running(self):
        if self.process.poll() is not None:
            raise AssertionError("the job ended early, status %d\n%s" % (self.process.returncode, self.output("stderr")))

    def wait_for(self, what, look):
        def look_or_fail():
            value = look()
            if not value:
                self._check_running()
            return value
        return wait_for("%s (job %s, step %d)" % (what, self.name, self.log.last_step()), look_or_fail)

    def wait_for_step(self, step):
        self.wait_for("step %d" % step, lambda: self.log.last_step() >= step)

    def pid(self, kind, index):
        return self.wait_for("%s %d to run" % (kind, index), lambda: processes_of(self.name).get((kind, index)))

    def signal(self, kind, index, number):
        """Sends a signal to a process of the job; returns its pid."""
        pid = self.pid(kind, index)
        os.kill(pid, number)
        return pid

    def kill(self, kind, index):
        """kill -9, and waits until that process is gone."""
        pid = self.signal(kind, index, signal.SIGKILL)
        wait_for("pid %d to die" % pid, lambda: not is_running(pid))
        return pid

    def kill_if_running(self, kind, index):
        """kill -9 unless that process has ended by itself. True: it was killed."""
        pid = processes_of(self.name).get((kind, index))
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_for("pid %d to die" % pid, lambda: not is_running(pid))
        return True

    def wait_for_successor(self, kind, index, dead):
        """Another process has the place of the one with pid `dead`."""
        self.wait_for("a successor of %s %d" % (kind, index),
                      lambda: processes_of(self.name).get((kind, index)) not in (None, dead))

    def job_dir(self):
        return self.wait_for("the job's directory", lambda: glob.glob("%s/%s-*" % (self.shm, self.name)))[0]

    def endpoints(self):
        """Addresses of all its servers."""
        pattern = os.path.join(self.job_dir(), "*.sock")
        return ",".join("unix:" + p for p in sorted(self.wait_for("a server's socket", lambda: glob.glob(pattern))))

    def cli(self, *args, limit=None):
        """A `sherd` command on this job, to its end."""
        return run(SHERD, *args, "--endpoint", self.endpoints(), limit=limit)

    def start_cli(self, *args):
        """The same, in the background."""
        return subprocess.Popen([program(SHERD), *map(str, args), "--endpoint", self.endpoints()], env=environment(),
                                stdin=subprocess.DEVNULL, stdout=self.stdout, stderr=self.stderr)

    def json(self, *args):
        """The JSON document of a `sherd` command that must succeed."""
        done = self.cli(*args, "--json")
        self.test.assertEqual(done.status, 0, done)
        return json.loads(done.stdout)

    def finish(self, status=0):
        """Waits for the end; expects `status` and that nothing is left. Returns this."""
        got = wait_for("the end of job %s, at step %d" % (self.name, self.log.last_step()),
                       lambda: self.process.poll() is not None, limit=3 * LIMIT) and self.process.returncode
        self.test.assertEqual(got, status, self.output("stderr"))
        self.test.assertEqual(left_over(self.name, self.shm), [])
        return self

    def interrupt(self):
        """Ctrl-C, to the end."""
        self.process.send_signal(signal.SIGINT)
        return self.finish(status=128 + signal.SIGINT)

    def status(self):
        """As `sherd status` tells it, {} when it cannot."""
        done = self.cli("status", "--json")
        return json.loads(done.stdout) if done.status == 0 else {}

    def coordinator(self):
        """Number of the server that coordinates, once one does."""
        return int(self.wait_for("a coordinator", lambda: self.status().get("coordinator", {}).get("id"))[1:])

    def waits_for(self, *words):
        """Waits until status says that the job waits for something with all of `words` in it; what it says."""
        def look():
            said = self.status().get("waiting_for", "")
            return said if all(word in said for word in words) else None
        return self.wait_for("the job to wait for " + " ".join(words), look)

    @contextlib.contextmanager
    def held(self, kind="trainer", index=0):
        """One process stands still. The step that it had handed in already may still end: see waits_for("rank 0")."""
        pid = self.signal(kind, index, signal.SIGSTOP)
        try:
            yield pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def weights(self):
        return safetensors.read(self.saved)[0]


class ClusterTest(unittest.TestCase):
    """Base of the tests here: a directory of its own, one text, one size of training."""

    steps = 20
    batch = 4
    context = 16

    @classmethod
    def setUpClass(cls):
        # Not Bazel's: a socket's path must be short.
        cls.dir = tempfile.mkdtemp(prefix="sherd-test-", dir="/tmp")
        cls.addClassCleanup(shutil.rmtree, cls.dir, ignore_errors=True)
        cls.job_prefix = re.sub("[^a-z]", "", cls.__name__.lower())[:12]
        cls.references = {}

    @classmethod
    def text(cls):
        """A small text with structure to learn: the same in every run. None, of a suite's own: train_gpt's default."""
        path = os.path.join(cls.dir, "text.txt")
        if not os.path.exists(path):
            rng = random.Random(1)
            words = ["".join(rng.choice("etaoinshrdlu") for _ in range(rng.randint(2, 7))) for _ in range(60)]
            with open(path, "w") as f:
                f.write(" ".join(rng.choice(words) for _ in range(12000)))
        return path

    @classmethod
    def training(cls, steps=None):
        return ["--size", "tiny", "--steps", str(steps or cls.steps), "--global-batch", str(cls.batch),
                "--context", str(cls.context)]

    def job(self, trainers=2, servers=2, args=(), **more):
        return Job(self, trainers, servers, args, **more)

    @classmethod
    def reference(cls, *args, steps=None):
        """(losses, weights) of the same training in one process with libtorch's own AdamW; made once."""
        key = (*args, steps or cls.steps)
        if key not in cls.references:
            base = os.path.join(cls.dir, "reference-%d" % len(cls.references))
            done = run(TRAIN, "--reference", "--text", cls.text(), "--json", base + ".json", "--save",
                       base + ".safetensors", *cls.training(steps), *args)
            if done.status != 0:
                raise AssertionError(str(done))
            cls.references[key] = StepLog(base + ".json").losses(), safetensors.read(base + ".safetensors")[0]
        return cls.references[key]

    def assertFails(self, done, status, named):
        """`done` ended with `status` and one line on stderr, which names `named`; nothing on stdout."""
        self.assertEqual((done.status, done.stdout), (status, ""), done)
        self.assertEqual(done.stderr.count("\n"), 1, done)
        self.assertTrue(done.stderr.endswith("\n"), done)
        self.assertIn(named, done.stderr)

    def assertSameWeights(self, got, want, message=None):
        self.assertEqual(sorted(got), sorted(want), message)
        self.assertEqual([name for name in want if got[name] != want[name]], [], message)

    def assertCloseWeights(self, got, want, tolerance):
        """Each tensor within `tolerance` of the other, relative to the largest element."""
        self.assertEqual(sorted(got), sorted(want))
        for name in want:
            a, b = got[name].floats(), want[name].floats()
            scale = max(map(abs, b), default=0) or 1
            self.assertLessEqual(max((abs(x - y) for x, y in zip(a, b)), default=0), tolerance * scale, name)

    def assertCloseLosses(self, got, want, tolerance, message=None):
        self.assertEqual(len(got), len(want), message)
        worst = max(abs(a - b) / abs(b) for a, b in zip(got, want))
        self.assertLessEqual(worst, tolerance, message)


# Tests that take long: with main()'s argument --full only.
only_full = unittest.skipUnless("--full" in sys.argv, "takes long: bazel run its full variant")


def seed():
    """Of this run's random choices: SHERD_TEST_SEED, or --seed N of main(), or a new one. Printed."""
    value = int(os.environ.get("SHERD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print("seed %d (replay with --test_arg=--seed=%d)" % (value, value), flush=True)
    return value


def main():
    """unittest.main, with --seed=N, --full and results for Bazel."""
    argv = []
    for arg in sys.argv:
        if arg.startswith("--seed="):
            os.environ["SHERD_TEST_SEED"] = arg.partition("=")[2]
        elif arg != "--full":
            argv.append(arg)
    # A test that is ended from outside must not leave jobs behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not os.path.isdir("/proc/self"):
        sys.exit("these tests need Linux's /proc")
    runner = unittest.TextTestRunner(verbosity=2, resultclass=results.Result, stream=sys.stdout)
    suite = unittest.main(module="__main__", argv=argv, testRunner=runner, exit=False)
    path = os.environ.get("XML_OUTPUT_FILE")
    if path:
        results.write(path, os.path.basename(argv[0]), suite.result.cases)
    sys.exit(not suite.result.wasSuccessful())
