"""Out of memory and out of room: whoever meets it says so in a line, and training goes on or ends with it.

    bazel test //tests/cluster:resources_test
"""
import concurrent.futures
import contextlib
import os
import resource
import subprocess
import tempfile
import unittest

from tests.cluster import etcd
from tests.cluster import harness

CGROUPS = "/sys/fs/cgroup/memory"  # version 1; else the one of version 2 below
CGROUPS_2 = "/sys/fs/cgroup"


class MemoryGroup:
    """A memory cgroup of its own, as a container has one: the kernel kills who needs more.

    with MemoryGroup() as group: group.squeeze(pid)
    """

    def __enter__(self):
        first = os.path.isdir(CGROUPS)
        self.path = os.path.join(CGROUPS if first else CGROUPS_2, "sherd-test-%d" % os.getpid())
        self.limit = "memory.limit_in_bytes" if first else "memory.max"
        os.mkdir(self.path)
        return self

    def __exit__(self, *_):
        def removed():
            with contextlib.suppress(OSError):
                os.rmdir(self.path)
            return not os.path.isdir(self.path)
        harness.wait_for("the cgroup to be empty", removed)

    def write(self, name, value):
        with open(os.path.join(self.path, name), "w") as f:
            f.write(str(value))

    def squeeze(self, pid):
        """From now on `pid` gets no page more: what it had is charged elsewhere."""
        self.write(self.limit, 64 << 10)
        self.write("cgroup.procs", pid)


def can_squeeze():
    if os.geteuid() != 0:
        return False
    try:
        with MemoryGroup() as group:
            return os.path.exists(os.path.join(group.path, group.limit))
    except OSError:
        return False


class ResourcesTest(harness.ClusterTest):
    steps = 2000  # some twenty seconds: nobody is to be done before three successors stand
    args = ["--stage", 2]
    run_args = ["--restarts", 100]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        with cls("test_out_of_memory").job(2, 2, cls.args) as job:
            cls.want = job.finish().weights()

    def small_disk(self, size):
        path = tempfile.mkdtemp(prefix="sh-", dir="/tmp")  # a socket's path must be short
        self.addCleanup(os.rmdir, path)
        mount = ["mount", "-t", "tmpfs", "-o", "size=%d" % size, "tmpfs", path]
        if os.geteuid() != 0 or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode != 0:
            self.skipTest("mounting a small file system takes root")
        self.addCleanup(subprocess.run, ["umount", path], check=True)
        return path

    def fill(self, path):
        """Leaves no room there; returns the file that takes it."""
        ballast = os.path.join(path, "ballast")
        with open(ballast, "wb") as f, contextlib.suppress(OSError):
            while True:
                f.write(bytes(1 << 16))
        with open(ballast, "ab", buffering=0) as f, contextlib.suppress(OSError):
            while True:
                f.write(bytes(4096))
        return ballast

    def assertEndsAsUndisturbed(self, job):
        job.finish()
        self.assertSameWeights(job.weights(), self.want)

    def test_out_of_memory(self):
        """The kernel's killer takes a trainer, then a server, then the coordinator."""
        if not can_squeeze():
            self.skipTest("a memory cgroup takes root and a kernel that has them")
        with self.job(2, 2, self.args, run_args=self.run_args) as job:
            leader = job.coordinator()
            for kind, index in (("trainer", 1), ("server", 1 - leader), ("server", leader)):
                job.wait_for_step(job.log.last_step() + 5)
                pid = job.pid(kind, index)
                with MemoryGroup() as group:
                    group.squeeze(pid)
                    # What it has it may use; what a question makes it take more is too much.
                    job.wait_for("the kernel to kill %s %d" % (kind, index), lambda: (
                        kind == "trainer" or job.cli("stat").status is not None) and not harness.is_running(pid))
                job.wait_for_successor(kind, index, pid)
                self.assertIn("%s: killed by signal 9 (KILL)" % (
                    "trainer 1" if kind == "trainer" else "server s%d" % index), job.output("stderr"))
            self.assertEndsAsUndisturbed(job)

    def test_out_of_memory_who_asks(self):
        """The kernel takes a command wherever it needs too much: nothing is half there, and the next one works."""
        if not can_squeeze():
            self.skipTest("a memory cgroup takes root and a kernel that has them")
        with self.job(2, 2, self.args, run_args=self.run_args, steps=50000) as job:
            job.wait_for_step(3)
            path = os.path.join(job.dir, "w.safetensors")
            self.assertEqual(job.cli("pull", path).status, 0)
            with open(path, "rb") as f:
                whole = len(f.read())
            killed = set()
            for command in (["pull", path], ["push", path, "--weights-only"], ["save", os.path.join(job.dir, "ck")],
                            ["resize", "--servers", 2]):
                for kib in (512, 1 << 10, 2 << 10, 3 << 10, 4 << 10, 6 << 10, 64 << 10):
                    with MemoryGroup() as group:
                        group.write(group.limit, kib << 10)
                        call = subprocess.Popen(
                            [harness.program(harness.SHERD), *map(str, command), "--endpoint", job.endpoints()],
                            env=harness.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, preexec_fn=lambda: group.write("cgroup.procs", os.getpid()))
                        status = call.wait(timeout=harness.LIMIT)
                    self.assertIn(status, (0, -9), "%s with %d KiB" % (command, kib))
                    if status != 0:
                        killed.add(command[0])
                    self.assertEqual(os.path.getsize(path), whole)
                done = job.cli(*command)
                self.assertEqual(done.status, 0, done)
            self.assertEqual(killed, {"pull", "push", "save", "resize"}, "it wanted no memory")
            job.wait_for_step(job.log.last_step() + 3)
            job.interrupt()

    @unittest.skipUnless(etcd.installed(), "etcd is not installed: see tools/packages.txt")
    def test_out_of_memory_etcd(self):
        """Without its store the job trains on; what has to be committed waits until it is back."""
        if not can_squeeze():
            self.skipTest("a memory cgroup takes root and a kernel that has them")
        with etcd.Etcd(1) as e, self.job(2, 2, self.args, run_args=[*self.run_args, "--store", e.url("memory")]) as job:
            job.wait_for_step(3)
            pid = e.processes[0].pid
            with MemoryGroup() as group:
                group.squeeze(pid)
                with contextlib.suppress(OSError):
                    e.fill()
                harness.wait_for("the kernel to kill etcd", lambda: not harness.is_running(pid))
                e.kill(0)
            dead = job.kill("trainer", 1)  # what takes its place has to be committed
            job.waits_for(e.clients[0])
            e.start(0)
            job.wait_for_successor("trainer", 1, dead)
            self.assertEndsAsUndisturbed(job)

    def test_a_server_that_cannot_allocate(self):
        """malloc fails in a server: it ends or answers with an error, and never with a wrong value."""
        with self.job(2, 2, self.args, run_args=self.run_args) as job:
            job.wait_for_step(3)
            pid = job.pid("server", 1)
            # What it has it keeps; it gets no more.
            resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))
            # Callers at once take a thread each, and what they are sent.
            paths = [os.path.join(job.dir, "w%d.safetensors" % i) for i in range(24)]
            with concurrent.futures.ThreadPoolExecutor(len(paths)) as callers:
                said = list(callers.map(lambda path: job.cli("pull", path), paths))
            for done in said:
                # A snapshot that the server could not keep is lost, which the CLI says when it takes another.
                errors = [line for line in done.stderr.splitlines()
                          if not line.endswith("starting over with a new one")]
                self.assertEqual(len(errors), 0 if done.status == 0 else 1, done)
            replaced = not harness.is_running(pid)
            print("pulls ended with", [d.status for d in said], "the server", "was replaced" if replaced else "lives")
            self.assertTrue(replaced or any(d.status != 0 for d in said), "it wanted no memory")
            job.wait_for("server 1", lambda: harness.processes_of(job.name).get(("server", 1)))
            self.assertEndsAsUndisturbed(job)

    def test_shared_memory_is_full(self):
        """What needs more room is refused in one line and leaves nothing; a member that comes waits until there is some;
        the rest goes on."""
        root = self.small_disk(64 << 20)
        with self.job(2, 2, self.args, run_args=self.run_args, shm_root=root, steps=50000) as job:
            job.wait_for_step(3)
            ballast = self.fill(root)
            path = os.path.join(job.dir, "w.safetensors")
            for command in (["pull", path], ["save", os.path.join(job.dir, "ck")]):
                done = job.cli(*command)
                self.assertFails(done, 1, root)
                self.assertRegex(done.stderr, r"needs \d+ bytes for .* free")
            job.wait_for_step(job.log.last_step() + 3)
            dead = job.kill("trainer", 1)
            self.assertIn(root, job.waits_for("the store to take epoch"))
            os.truncate(ballast, os.path.getsize(ballast) - (256 << 10))
            job.wait_for_successor("trainer", 1, dead)
            job.wait_for_step(job.log.last_step() + 3)
            for kind, index in (("server", job.coordinator()), ("trainer", 0)):
                job.wait_for_successor(kind, index, job.kill(kind, index))
                job.wait_for_step(job.log.last_step() + 3)
            resizing = job.start_cli("resize", "--trainers", 3)
            job.wait_for("the third trainer to give up", lambda: "the job goes on without it" in job.output("stderr"))
            self.assertRegex(job.output("stderr"), r"needs \d+ bytes for .* free")
            self.assertEqual(job.json("resize", "--trainers", 2)["trainers"], 2)
            self.assertEqual(resizing.wait(timeout=harness.LIMIT), 1)
            self.assertEqual([n for n in sorted(os.listdir(job.job_dir())) if n.startswith(("snap.", "import."))], [])
            os.remove(ballast)
            self.assertEqual(job.cli("pull", path).status, 0)
            job.interrupt()

    def test_no_room_to_begin(self):
        root = self.small_disk(128 << 10)
        done = harness.run(harness.SHERD, "run", "-n", "1", "--", "/bin/true", env={"SHERD_SHM_ROOT": root})
        self.assertEqual(done.status, 1, done)
        self.assertEqual(done.stderr.count("\n"), 1, done)
        self.assertIn(root, done.stderr)
        self.assertEqual(os.listdir(root), [])

    def test_logs_on_a_full_disk(self):
        """Servers that cannot log train on."""
        disk = self.small_disk(1 << 20)
        job = self.job(2, 2, self.args, run_args=self.run_args)
        os.symlink(disk, os.path.join(job.dir, "run"))
        with job:
            job.wait_for_step(3)
            self.fill(disk)
            for index in (0, 1):
                dead = job.kill("server", index)
                job.wait_for_successor("server", index, dead)
            self.assertEndsAsUndisturbed(job)


if __name__ == "__main__":
    harness.main()
