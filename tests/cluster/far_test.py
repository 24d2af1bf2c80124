"""Calls from afar whose connection is cut in the middle, or silent: they go on when it is back, or end in one line.

    bazel test //tests/cluster:far_test
"""
import contextlib
import os
import signal
import subprocess

from tests.cluster import harness
from tests.cluster import safetensors
from tests.cluster.tcp_cluster import Cluster
from tests.hosts import relay


class FarTest(harness.ClusterTest):

    def setUp(self):
        token = os.path.join(self.dir, "token")
        if not os.path.exists(token):
            with open(token, "w") as f:
                f.write("a" * 32 + "\n")
            os.chmod(token, 0o600)
        self.access = ["--token-file", token]
        self.out = os.path.join(self.dir, self.id().rsplit(".", 1)[1])
        os.mkdir(self.out)

    @contextlib.contextmanager
    def linked(self):
        """A cluster, and a relay before one of its servers."""
        with Cluster(self, self.access) as cluster:
            host, port = cluster.addresses[0].rsplit(":", 1)
            with relay.Relay((host, int(port))) as link:
                yield cluster, link

    def begin(self, link, *command):
        args = [harness.program(harness.SHERD), *map(str, command), "--endpoint", "%s:%d" % link.address, *self.access]
        return subprocess.Popen(args, env=harness.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, encoding="utf-8")

    def ends(self, call):
        stdout, stderr = call.communicate(timeout=harness.LIMIT)
        return harness.Finished(call.returncode, stdout, stderr)

    def some_was_pulled(self, call):
        self.assertIsNone(call.poll(), "it ended too early")
        return any(os.path.getsize(os.path.join(self.out, name)) for name in os.listdir(self.out))

    def pull(self, link, *more):
        path = os.path.join(self.out, "w.safetensors")
        call = self.begin(link, "pull", path, "--rate", "256K", *more)
        harness.wait_for("some of the pull", lambda: self.some_was_pulled(call))
        return path, call

    def assertUndisturbed(self, cluster):
        self.assertFalse(cluster.check())
        step = harness.StepLog(cluster.log).last_step()
        harness.wait_for("more steps", lambda: harness.StepLog(cluster.log).last_step() >= step + 3)
        self.assertEqual(cluster.cli(["status"], 0, self.access).status, 0)

    def test_a_pull_goes_on_when_the_link_is_back(self):
        for number in range(3):
            with self.subTest(number), self.linked() as (cluster, link):
                path, call = self.pull(link)
                link.cut()
                if number == 1:  # and what is in hand arrives at a process that does not run
                    call.send_signal(signal.SIGSTOP)
                    self.assertUndisturbed(cluster)
                    call.send_signal(signal.SIGCONT)
                link.restore()
                if number == 2:
                    link.cut()
                    link.restore()
                done = self.ends(call)
                self.assertEqual(done.status, 0, done)
                self.assertTrue(safetensors.read(path)[0])
                os.remove(path)
                self.assertUndisturbed(cluster)

    def test_a_pull_waits_while_the_link_is_silent(self):
        with self.linked() as (cluster, link):
            path, call = self.pull(link)
            link.stall()
            self.assertUndisturbed(cluster)
            link.flow()
            done = self.ends(call)
            self.assertEqual(done.status, 0, done)
            self.assertTrue(safetensors.read(path)[0])

    def test_a_cut_for_good_ends_in_one_line(self):
        with self.linked() as (cluster, link):
            for how in (link.cut, link.stall):
                with self.subTest(how.__name__):
                    path, call = self.pull(link, "--timeout", 4)
                    how()
                    self.assertFails(self.ends(call), 1, "%s:%d" % link.address)
                    self.assertFalse(os.path.exists(path), "half a file under the whole one's name")
                    link.restore()
                    link.flow()
                    self.assertUndisturbed(cluster)

    def test_a_push_that_is_cut_changes_nothing_or_all(self):
        with self.linked() as (cluster, link):
            path, call = self.pull(link)
            self.assertEqual(self.ends(call).status, 0)
            for how in (link.cut, link.stall):
                with self.subTest(how.__name__):
                    sent = link.bytes_up
                    link.delay(0.2)
                    call = self.begin(link, "push", path, "--weights-only", "--timeout", 4)
                    harness.wait_for("some of the push", lambda: link.bytes_up > sent + 2000)
                    how()
                    done = self.ends(call)
                    self.assertLessEqual(done.stderr.count("\n"), 1, done)
                    link.delay(0)
                    link.restore()
                    link.flow()
                    self.assertUndisturbed(cluster)
            done = harness.wait_for("room for another push", lambda: self.pushed(cluster, path))
            self.assertEqual(done.status, 0, done)

    def pushed(self, cluster, path):
        done = cluster.cli(["push", path, "--weights-only"], 0, self.access)
        return done if done.status == 0 else None


if __name__ == "__main__":
    harness.main()
