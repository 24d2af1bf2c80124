"""Training over two hosts that share no network but a cable: it is cut, and strangers try the ports.

    bazel test //tests/hosts:cable_test

Needs network namespaces (tests/hosts/network.py); skipped with the reason where there are none.
"""
import glob
import json
import os
import struct
import threading
import time

from tests.cluster import harness
from tests.cluster import safetensors
from tests.hosts import network
from tests.hosts import stopped_push
from tests.hosts import two_hosts

LINK_PEER = "tests/hosts/link_peer"


class CableTest(network.NetworkTest):
    steps = 60
    args = ["--stage", 2, "--accumulation", 2]
    single_host = None

    def assertBitsOfOneHost(self, pair):
        """The weights and losses are those of one host with the same reduction tree."""
        if CableTest.single_host is None:
            with self.job(2, 2, self.args, run_args=["--reduce-groups", "1,1"]) as job:
                job.finish()
                CableTest.single_host = job.log.losses(), job.weights()
        self.assertEqual(pair.log.losses(), CableTest.single_host[0])
        self.assertSameWeights(pair.weights(), CableTest.single_host[1])

    def time_until_named(self, pair, limit):
        """{host: seconds until `sherd status` there says that the other one is silent}"""
        began, took = time.monotonic(), {}

        def look(host):
            while time.monotonic() - began < harness.LIMIT and host not in took:
                status = pair.json(host, "status")
                if "host %d" % (1 - host) in status["waiting_for"]:
                    took[host] = time.monotonic() - began
        threads = [threading.Thread(target=look, args=(host,)) for host in (0, 1)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(sorted(took), [0, 1], "not named in time")
        self.assertLess(max(took.values()), limit, took)

    def test_a_cut_is_named_on_both_sides_and_training_goes_on(self):
        with network.TestNetwork(hosts=2) as net:
            with two_hosts.TwoHosts(self, 1, 1, self.args, places=net.hosts) as pair:
                pair.wait_for_step(5)
                # A hearer of the direction that still works hears what is under way, and what is sent again. Half a
                # second is for programs to start on a machine that does other work too.
                for direction, limit in (("both", 2.5), ("in", 4), ("out", 4)):
                    with self.subTest(direction):
                        net.cut(net.hosts[1], direction)
                        try:
                            self.time_until_named(pair, limit)
                            before = pair.log.last_step()
                        finally:
                            net.restore(net.hosts[1])
                        pair.wait_for_step(before + 3)
                pair.finish()
                self.assertBitsOfOneHost(pair)

    def start_pull(self, pair, host, name, *args):
        """A slow pull on a host, once some of it is there."""
        process = pair.places[host].start(harness.program(harness.SHERD), "pull", os.path.join(pair.dir, name), "--rate",
                                          "1M", *args)
        pair.wait_for("the pull to have begun", lambda: [
            n for n in os.listdir(pair.dir) if name in n and os.path.getsize(os.path.join(pair.dir, n)) > 200000])
        return process

    def test_a_cut_during_a_pull(self):
        """It goes on once the cable is back, or ends and says which host is silent; it is never a mixture."""
        pulled = []
        with network.TestNetwork(hosts=2) as net:
            with two_hosts.TwoHosts(self, 1, 1, self.args, places=net.hosts, steps=1500) as pair:
                pair.wait_for_step(3)
                for host in (0, 1):
                    pulling = self.start_pull(pair, host, "resumed-%d.safetensors" % host)
                    net.cut(net.hosts[1])
                    self.time_until_named(pair, 2.5)
                    net.restore(net.hosts[1])
                    done = pulling.finish()
                    self.assertEqual(done.status, 0, done)
                    pulled.append(safetensors.read(os.path.join(pair.dir, "resumed-%d.safetensors" % host)))
                    pair.wait_for_step(pair.log.last_step() + 3)
                    net.cut(net.hosts[1])
                    self.time_until_named(pair, 2.5)
                    # Whoever asks now is told whom it waits for.
                    for command in (("pull", os.path.join(pair.dir, "never.safetensors")), ("stat", "ln_f.bias")):
                        done = pair.cli(host, *command, "--timeout", "4s")
                        self.assertEqual(done.status, 1, done)
                        self.assertIn("host %d" % (1 - host), done.stderr)
                    self.assertEqual([n for n in os.listdir(pair.dir) if "never" in n], [])
                    late = pair.places[host].start(harness.program(harness.SHERD), "pull",
                                                   os.path.join(pair.dir, "late-%d.safetensors" % host))
                    net.restore(net.hosts[1])
                    done = late.finish()
                    self.assertEqual(done.status, 0, done)
                    pulled.append(safetensors.read(os.path.join(pair.dir, "late-%d.safetensors" % host)))
                    pair.wait_for_step(pair.log.last_step() + 3)
                for process in pair.processes:
                    process.terminate()
                    process.wait(timeout=harness.LIMIT)
        for tensors, metadata in pulled:
            with self.job(2, 2, self.args, run_args=["--reduce-groups", "1,1"],
                          steps=int(metadata["sherd_step"])) as job:
                self.assertSameWeights(tensors, job.finish().weights(), metadata)

    def start_save(self, pair, host, folder, *args):
        """A slow save on a host, once the second one is at work on its part."""
        saving = pair.places[host].start(harness.program(harness.SHERD), "save", folder, "--rate", "1M", *args)
        pair.wait_for("host 1 to write its part", lambda: glob.glob(os.path.join(folder, ".saving*", "part-00001*")))
        return saving

    def test_a_cut_during_a_save(self):
        """It goes on once the cable is back, or ends, says which host is silent and leaves nothing."""
        folder = os.path.join(self.dir, "cut-saves")
        with network.TestNetwork(hosts=2) as net:
            with two_hosts.TwoHosts(self, 1, 1, self.args, places=net.hosts, steps=3000) as pair:
                pair.wait_for_step(3)
                for host in (0, 1):
                    saving = self.start_save(pair, host, folder, "--tag", "resumed-%d" % host)
                    net.cut(net.hosts[1])
                    self.time_until_named(pair, 2.5)
                    net.restore(net.hosts[1])
                    done = saving.finish()
                    self.assertEqual(done.status, 0, done)
                    pair.wait_for_step(pair.log.last_step() + 3)
                    saving = self.start_save(pair, host, folder, "--tag", "never", "--timeout", "4s")
                    net.cut(net.hosts[1])
                    done = saving.finish()
                    self.assertEqual(done.status, 1, done)
                    self.assertRegex(done.stderr, r"\A[^\n]*host %d[^\n]*\n\Z" % (1 - host))
                    harness.wait_for("what was written to go", lambda: glob.glob(os.path.join(folder, ".*")) == [])
                    net.restore(net.hosts[1])
                    pair.wait_for_step(pair.log.last_step() + 3)
                for process in pair.processes:
                    process.terminate()
                    process.wait(timeout=harness.LIMIT)
        self.assertEqual(sorted(os.listdir(folder)), ["latest", "resumed-0", "resumed-1"])
        for tag in ("resumed-0", "resumed-1"):
            with open(os.path.join(folder, tag, "manifest.json")) as f:
                step = int(json.load(f)["manifest"]["step"])
            ends = []
            for args in (["--restore", folder, "--restore-tag", tag], []):
                with self.job(2, 2, [*self.args, *args], run_args=["--reduce-groups", "1,1"], steps=step + 3) as job:
                    ends.append(job.finish().weights())
            self.assertSameWeights(*ends)

    def test_a_cut_during_a_push(self):
        """It begins again once the cable is back, or ends and says which host is silent; nothing is left of it."""
        still = ["--lr", 0, "--weight-decay", 0]
        with self.job(2, 2, [*self.args, *still], steps=1, run_args=["--reduce-groups", "1,1"]) as job:
            values = job.finish().weights()
        path = os.path.join(self.dir, "cut-push.safetensors")

        def make():
            bias = values["ln_f.bias"]
            value = bias.floats()[0] + 1
            data = struct.pack("<f", value) * (len(bias.data) // 4)
            values["ln_f.bias"] = safetensors.Tensor("F32", bias.shape, data)
            safetensors.write(path, values)
            return path
        with network.TestNetwork(hosts=2) as net:
            with two_hosts.TwoHosts(self, 1, 1, [*self.args, *still], places=net.hosts, steps=50000) as pair:
                pair.wait_for_step(3)
                for host in (0, 1):
                    # The caller dies while nobody can tell the other host.
                    push = stopped_push.StoppedPush(pair, host, make)
                    net.cut(net.hosts[1])
                    push.process.kill()
                    push.finish()
                    pair.wait_for("imports to go", lambda: stopped_push.imports(pair.places) == [[], []])
                    done = pair.cli(host, "push", path, "--timeout", "4s")
                    self.assertEqual(done.status, 1, done)
                    self.assertRegex(done.stderr, r"\A[^\n]*host %d[^\n]*\n\Z" % (1 - host))
                    net.restore(net.hosts[1])
                    pair.wait_for_step(pair.log.last_step() + 3)
                    push = stopped_push.StoppedPush(pair, host, make)
                    net.cut(net.hosts[1])
                    push.go_on()
                    self.time_until_named(pair, 2.5)
                    net.restore(net.hosts[1])
                    done = push.finish()
                    self.assertEqual(done.status, 0, done)
                    pulled = os.path.join(pair.dir, "pulled.safetensors")
                    pair.json(1 - host, "pull", pulled)
                    self.assertSameWeights(safetensors.read(pulled)[0], values)
                    pair.wait_for("imports to go", lambda: stopped_push.imports(pair.places) == [[], []])
                for process in pair.processes:
                    process.terminate()
                    process.wait(timeout=harness.LIMIT)

    def noise(self, host, address):
        name, port = address.rsplit(":", 1)
        # A scanner's, the beginning of TLS, a header that promises too much, and nothing at all.
        for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(500), b"SHERDLK\1" + b"\xff" * 104, b""):
            for _ in range(5):
                with host.socket() as s:
                    s.settimeout(harness.LIMIT)
                    s.connect((name, int(port)))
                    try:
                        s.sendall(noise)
                        while noise and s.recv(4096):
                            pass
                    except ConnectionError:
                        pass

    def test_strangers_disturb_nobody(self):
        with network.TestNetwork(hosts=3) as net:
            stranger = net.hosts[2]
            with two_hosts.TwoHosts(self, 1, 1, self.args, places=net.hosts) as pair:
                pair.wait_for_step(1)
                address = pair.json(0, "status")["hosts"][0]["data_address"]
                self.noise(stranger, address)
                self.noise(stranger, pair.address)
                secret = os.path.join(self.dir, "another secret")
                with open(os.open(secret, os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
                    f.write("not the secret of the job")
                wrong = stranger.start(harness.program(LINK_PEER), "--host", 1, "--dial", address, "--secret-file",
                                       secret)
                wrong.wait_for_output("secret file")
                wrong.kill()
                joins = stranger.run(harness.program(harness.SHERD), "run", "-n", 1, "--job", pair.name, "--join",
                                     pair.address, "--secret-file", secret, "--", "true")
                self.assertNotEqual(joins.status, 0)
                self.assertIn("secret", joins.stderr)
                pair.finish()
                self.assertBitsOfOneHost(pair)
                refused = [line for line in pair.logs(0).split("\n") if "refused a data connection from" in line]
                self.assertEqual(len(refused), 1, refused)
                self.assertIn(stranger.address, refused[0])


if __name__ == "__main__":
    harness.main()
