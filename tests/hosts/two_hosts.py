"""A job of two hosts on this machine's loopback: two `sherd run`, each with shared memory of its own.

    with TwoHosts(test, ranks=1, servers=1, args=["--stage", 1]) as pair:
        pair.wait_for_step(5)
        pair.kill(1, "server")
        pair.finish()

`places`: how to run a program on each host (two_hosts.Loopback, or hosts of a network.TestNetwork). `hosts`: more
than two of them.
"""
import contextlib
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile

from tests.cluster import harness
from tests.cluster import safetensors


class TwoHostsTest(harness.ClusterTest):
    """Base of the tests here."""

    def check_kills(self, pair, want):
        """kill -9 of trainers and servers on either side, over 40 steps: the weights are those of a job undisturbed."""
        with pair:
            for step, host, kind in ((4, 1, "trainer"), (9, 1, "server"), (15, 0, "trainer"), (21, 0, "server"),
                                     (27, 1, "server"), (32, 1, "trainer")):
                pair.wait_for_step(step)
                pair.kill(host, kind)
            pair.finish()
            self.assertSameWeights(pair.weights(), want)


class Loopback:
    """A host that is a directory: all of them have this machine's loopback."""

    address = "127.0.0.1"

    def __init__(self, shm):
        self.shm = shm
        os.mkdir(shm, 0o700)

    def prefix(self):
        return []


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class TwoHosts:
    count = 0

    def __init__(self, test, ranks, servers, args=(), run_args=(), steps=None, places=None, hosts=2,
                 command=None):
        TwoHosts.count += 1
        self.test = test
        self.name = "%s-two-%d-%d" % (test.job_prefix, os.getpid(), TwoHosts.count)
        self.dir = os.path.join(test.dir, self.name)
        os.mkdir(self.dir)
        self.shm = None
        if places is None:
            # A path of sockets must be short.
            self.shm = tempfile.mkdtemp(prefix="sh-", dir="/dev/shm")
            places = [Loopback(os.path.join(self.shm, "h%d" % h)) for h in range(hosts)]
        self.places = list(places)
        self.log = harness.StepLog(os.path.join(self.dir, "steps.json"))
        self.saved = os.path.join(self.dir, "final.safetensors")
        secret = os.path.join(self.dir, "secret")
        with open(os.open(secret, os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
            f.write("a secret of the tests, %d\n" % os.getpid())
        train = command or [harness.program(harness.TRAIN), "--text", test.text(), "--json", self.log.path,
                            "--save", self.saved, *test.training(steps), *map(str, args)]
        self.address = "%s:%d" % (places[0].address, free_port())  # of the first host
        self.commands = [
            [harness.program(harness.SHERD), "run", "-n", str(ranks), "--servers", str(servers), "--job", self.name,
             "--dir", os.path.join(self.dir, "run%d" % h), "--listen" if h == 0 else "--join",
             self.address, *([] if hosts == 2 else ["--hosts", str(hosts), "--host-index", str(h)]), "--secret-file", secret, *map(str, run_args), "--", *train]
            for h in range(hosts)]

    def __enter__(self):
        self.files = []
        self.processes = [self.start(h) for h in range(len(self.commands))]
        return self

    def start(self, h):
        files = [open(os.path.join(self.dir, "%s%d" % (name, h)), "a+") for name in ("stdout", "stderr")]
        self.files += files
        env = harness.environment({"SHERD_SHM_ROOT": self.places[h].shm})
        return subprocess.Popen(self.places[h].prefix() + self.commands[h], env=env, stdin=subprocess.DEVNULL,
                                stdout=files[0], stderr=files[1], cwd=self.dir)

    def replace(self, h, place):
        """A fresh machine takes the place of one that is gone."""
        self.processes[h].wait()
        self.places[h] = place
        self.processes[h] = self.start(h)

    def __exit__(self, kind, error, trace):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for h in range(len(self.processes)):
            for pid in self.pids(h).values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if kind is not None:
            for h in range(len(self.processes)):
                print("---- host %d of %s\n%s%s" % (h, self.name, self.output("stdout", h), self.output("stderr", h)))
                print("---- its servers\n%s" % "\n".join(self.logs(h).split("\n")[-80:]))
            print("----")
        for f in self.files:
            f.close()
        if self.shm is not None:
            shutil.rmtree(self.shm, ignore_errors=True)

    def output(self, name, host):
        with open(os.path.join(self.dir, "%s%d" % (name, host)), errors="replace") as f:
            return f.read()

    def logs(self, host):
        """What the servers of a host have logged."""
        text = ""
        for path in sorted(glob.glob(os.path.join(self.dir, "run%d" % host, "logs", "*"))):
            with open(path, errors="replace") as f:
                text += f.read()
        return text

    def wait_for(self, what, look):
        def look_or_fail():
            value = look()
            for h, process in enumerate(self.processes):
                if not value and process.poll() is not None:
                    raise AssertionError("host %d ended early, status %d\n%s" % (
                        h, process.returncode, self.output("stderr", h)))
            return value
        return harness.wait_for("%s (job %s, step %d)" % (what, self.name, self.log.last_step()), look_or_fail)

    def wait_for_step(self, step):
        self.wait_for("step %d" % step, lambda: self.log.last_step() >= step)

    def pids(self, host):
        """{"server" or "trainer": pid}: the last of each kind on a host."""
        found = {}
        for path in glob.glob("/proc/[0-9]*"):
            pid = int(os.path.basename(path))
            command = harness.read_proc(pid, "cmdline")
            env = dict(e.split("=", 1) for e in harness.read_proc(pid, "environ") if "=" in e)
            if not command or env.get("SHERD_SHM_ROOT") != self.places[host].shm or not harness.is_running(pid):
                continue
            name = os.path.basename(command[0])
            if name == os.path.basename(harness.SHERDD):
                found["server"] = pid
            elif name in harness.TRAINERS and "RANK" in env:
                found["trainer"] = pid
        return found

    def trainers(self):
        """{rank: pid} of both hosts."""
        found = {}
        for path in glob.glob("/proc/[0-9]*"):
            pid = int(os.path.basename(path))
            env = dict(e.split("=", 1) for e in harness.read_proc(pid, "environ") if "=" in e)
            if env.get("SHERD_SHM_ROOT") not in [place.shm for place in self.places] or "RANK" not in env:
                continue
            command = harness.read_proc(pid, "cmdline")
            if os.path.basename(command[0] if command else "") in harness.TRAINERS:
                found[int(env["RANK"])] = pid
        return found

    def kill(self, host, kind):
        """kill -9 of a process, and waits until it is gone."""
        pid = self.wait_for("a %s on host %d" % (kind, host), lambda: self.pids(host).get(kind))
        os.kill(pid, signal.SIGKILL)
        harness.wait_for("pid %d to die" % pid, lambda: not harness.is_running(pid))

    def cli(self, host, *args):
        """A `sherd` command on a host, to its end."""
        done = subprocess.run(self.places[host].prefix() + [harness.program(harness.SHERD), *map(str, args)],
                              env=harness.environment({"SHERD_SHM_ROOT": self.places[host].shm}),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              encoding="utf-8", errors="replace", timeout=harness.LIMIT)
        return harness.Finished(done.returncode, done.stdout, done.stderr)

    def json(self, host, *args):
        done = self.cli(host, *args, "--json")
        self.test.assertEqual(done.status, 0, done)
        return json.loads(done.stdout)

    def finish(self):
        """Waits for the end of both; expects success, and that nothing is left."""
        for h, process in enumerate(self.processes):
            harness.wait_for("the end of host %d, at step %d" % (h, self.log.last_step()),
                             lambda: process.poll() is not None, limit=3 * harness.LIMIT)
            self.test.assertEqual(process.returncode, 0, self.output("stderr", h))
            self.test.assertEqual(glob.glob("%s/sherd-*/*" % self.places[h].shm), [])
            self.test.assertEqual(self.pids(h), {})
        return self

    def weights(self):
        return safetensors.read(self.saved)[0]
