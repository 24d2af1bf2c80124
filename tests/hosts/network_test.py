"""The networks that tests of several hosts run in."""
import glob
import os
import socket
import subprocess
import sys
import threading
import time

import tests.cluster.harness as harness
import tests.hosts.network as network

PATIENCE = 0.3  # seconds after which a packet of this machine does not come any more


class NetworkTests(network.NetworkTest):

    def receiver(self, host, family=socket.AF_INET):
        end = host.socket(family, socket.SOCK_DGRAM)
        self.addCleanup(end.close)
        end.bind((host.address if family == socket.AF_INET else host.address6, 7))
        end.settimeout(PATIENCE)
        return end

    def arrives(self, sender, receiver):
        """Whether one packet, tried a few times, comes through."""
        try:
            with sender.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                for _ in range(3):
                    out.sendto(b"hello", receiver.getsockname())
                return receiver.recv(100) == b"hello"
        except (TimeoutError, OSError):
            return False
        finally:
            receiver.setblocking(False)
            try:
                while True:
                    receiver.recv(100)
            except OSError:
                receiver.settimeout(PATIENCE)

    def test_hosts_reach_each_other_and_no_other_network(self):
        with network.TestNetwork(hosts=3) as net, network.TestNetwork(hosts=2) as other:
            a, b, c = net.hosts
            at_b, at_c = self.receiver(b), self.receiver(c)
            strangers = self.receiver(other.hosts[1])
            self.assertTrue(self.arrives(a, at_b))
            self.assertTrue(self.arrives(a, at_c))
            self.assertTrue(self.arrives(b, at_c))
            with a.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                out.sendto(b"hello", (b.address, 7))
                self.assertEqual(at_b.recv(100), b"hello")
            with self.assertRaises(TimeoutError):
                strangers.recv(100)
            with a.socket(socket.AF_INET6, socket.SOCK_DGRAM) as out:
                at_b6 = self.receiver(b, socket.AF_INET6)
                out.sendto(b"six", (b.address6, 7))
                self.assertEqual(at_b6.recv(100), b"six")

    def test_cuts(self):
        with network.TestNetwork(hosts=2) as net:
            a, b = net.hosts
            at_a, at_b = self.receiver(a), self.receiver(b)
            for direction, to_b, to_a in ((None, True, True), ("both", False, False), (None, True, True),
                                          ("in", False, True), ("out", True, False), (None, True, True)):
                if direction is None:
                    net.restore(b)
                else:
                    net.cut(b, direction)
                self.assertEqual((self.arrives(a, at_b), self.arrives(b, at_a)), (to_b, to_a), direction)

    def test_a_connection_outlives_a_cut(self):
        with network.TestNetwork(hosts=2) as net:
            a, b = net.hosts
            with b.socket() as listener, a.socket() as near:
                listener.bind((b.address, 9))
                listener.listen(1)
                near.connect((b.address, 9))
                far = listener.accept()[0]
                with far:
                    net.cut(b)
                    near.send(b"x")
                    far.settimeout(PATIENCE)
                    with self.assertRaises(TimeoutError):
                        far.recv(1)
                    net.restore(b)
                    far.settimeout(harness.LIMIT)
                    self.assertEqual(far.recv(1), b"x")

    def test_rate(self):
        with network.TestNetwork(hosts=2) as net:
            a, b = net.hosts
            taken = {}
            for rate in ("80mbit", None):
                net.rate(b, rate)
                with b.socket() as listener, a.socket() as near:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind((b.address, 9))
                    listener.listen(1)
                    near.connect((b.address, 9))
                    far = listener.accept()[0]
                    began = time.monotonic()
                    sender = threading.Thread(target=near.sendall, args=(bytes(6 << 20),))
                    sender.start()
                    left = 6 << 20
                    while left > 0:
                        left -= len(far.recv(1 << 20))
                    taken[rate] = time.monotonic() - began
                    sender.join()
                    far.close()
            # 6 MiB at 10 MB/s, less what the bucket holds.
            self.assertGreater(taken["80mbit"], 0.5)
            self.assertLess(taken[None], taken["80mbit"] / 2)

    def test_programs_are_the_hosts(self):
        with network.TestNetwork(hosts=2) as net:
            a, b = net.hosts
            done = b.run("ip", "-o", "-4", "address", "show", "dev", "eth0")
            self.assertEqual(done.status, 0, done)
            self.assertIn(b.address, done.stdout)
            done = a.run("sh", "-c", "echo $SHERD_SHM_ROOT $MINE; echo no >&2; exit 3", env={"MINE": "7"})
            self.assertEqual((done.status, done.stdout, done.stderr), (3, a.shm + " 7\n", "no\n"))
            sleeper = a.start("sh", "-c", "sleep 1000 & echo up; wait")
            sleeper.wait_for_output("up")
            self.assertTrue(harness.is_running(sleeper.pid))
            self.assertNotEqual(a.shm, b.shm)
        self.assertFalse(harness.is_running(sleeper.pid))
        self.assertGone(net.name)

    def test_hosts_share_no_jobs(self):
        with network.TestNetwork(hosts=2) as net:
            for host in net.hosts:
                server = host.start(harness.program(harness.SHERDD), "--job", "same", "--expect", "1")
                server.wait_for_output("listens on", "stderr")
                self.assertEqual(len(host.jobs()), 1)
                self.assertTrue(host.jobs()[0].startswith(host.shm))
            self.assertEqual(net.hosts[0].run(harness.program(harness.SHERD), "gc").status, 0)
            for host in net.hosts:
                self.assertEqual(len(host.jobs()), 1)
                status = host.run(harness.program(harness.SHERD), "status", "--json")
                self.assertEqual(status.status, 0, status)
                # Who looks elsewhere finds nothing.
                status = host.run(harness.program(harness.SHERD), "status", env={"SHERD_SHM_ROOT": net.dir})
                self.assertEqual(status.status, 1, status)

    def test_what_a_killed_test_left_goes(self):
        code = ("import sys, signal; sys.path.insert(0, sys.argv[1])\n"
                "import tests.hosts.network as network\n"
                "net = network.TestNetwork(hosts=2).__enter__()\n"
                "p = net.hosts[0].start('sleep', '1000')\n"
                "print(net.name, p.pid, flush=True)\n"
                "signal.pause()\n")
        root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
        child = subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, encoding="utf-8")
        name, sleeper = child.stdout.readline().split()
        child.kill()
        child.wait()
        child.stdout.close()
        self.assertTrue(harness.is_running(int(sleeper)))
        with network.TestNetwork(hosts=1) as mine:
            with network.TestNetwork(hosts=1):  # sweeps the dead alone
                self.assertEqual(mine.hosts[0].run("true").status, 0)
        self.assertFalse(harness.is_running(int(sleeper)))
        self.assertGone(name)

    def assertGone(self, name):
        self.assertEqual(glob.glob("%s/%s*" % (network.NETNS, name)), [])
        self.assertFalse(os.path.exists(os.path.join(network.BASE, name)))


if __name__ == "__main__":
    harness.main()
