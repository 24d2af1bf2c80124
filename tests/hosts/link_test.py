"""Data connections between hosts: cuts, kills, strangers; as two processes in networks of their own see them."""
import os
import time

import tests.cluster.harness as harness
import tests.hosts.network as network
import tests.hosts.relay as relay

PEER = "tests/hosts/link_peer"
PORT = 4711


class Peer:
    """A link_peer and what it has said."""

    def __init__(self, host, *args):
        self.process = host.start(harness.program(PEER), "--host", host.index, *args)

    def lines(self, kind):
        """[(seconds, words)] of one kind."""
        found = []
        for line in self.process.output().split("\n")[:-1]:
            at, said, *words = line.split(" ", 2)
            if said == kind:
                found.append((float(at), " ".join(words)))
        return found

    def wait_for(self, kind, after=0, part="", limit=None):
        """The first line of a kind, and with `part` in it, that was said after a moment."""
        def look():
            if not self.process.running():
                raise AssertionError("the peer ended:\n%s" % self.process)
            return next((line for line in self.lines(kind) if line[0] >= after and part in line[1]), None)
        return harness.wait_for("%r from host" % (kind + " " + part), look, limit)


class LinkTests(network.NetworkTest):

    def secret(self, text="0123456789abcdef"):
        path = os.path.join(self.dir, "secret-" + text[:3])
        with open(path, "w") as f:
            f.write(text)
        os.chmod(path, 0o600)
        return path

    def start(self, net, address=None):
        a, b = net.hosts[:2]
        one = Peer(a, "--listen", "%s:%d" % (a.address, PORT), "--secret-file", self.secret())
        one.wait_for("listening")
        two = Peer(b, "--dial", "%s:%d" % (address or (a.address, PORT)), "--secret-file", self.secret())
        for peer in (one, two):
            peer.wait_for("frames")
        return one, two

    def assertGoesOn(self, peers):
        now = time.monotonic()
        for peer in peers:
            peer.wait_for("frames", now)

    def test_a_cut_is_named_on_both_sides_and_heals(self):
        with network.TestNetwork(hosts=2) as net:
            a, b = net.hosts
            peers = self.start(net)
            for direction in ("both", "in", "out"):
                with self.subTest(direction):
                    cut = time.monotonic()
                    net.cut(b, direction)
                    for peer, other in zip(peers, ("host 1 (", "host 0 (")):
                        # Silence of a hearer in the wrong direction begins when what is under way has run dry.
                        at, words = peer.wait_for("suspect", cut)
                        self.assertLess(at - cut, 2.0 if direction == "both" else 3.0)
                        self.assertIn(other, words)
                        self.assertIn("has said nothing for 1.", words)
                    healed = time.monotonic()
                    net.restore(b)
                    for peer in peers:
                        self.assertLess(peer.wait_for("alive", healed)[0] - healed, 3)
                    self.assertGoesOn(peers)
                    # The connection is the same: nobody closed it, nobody dialed again.
                    self.assertEqual([len(peer.lines("up")) for peer in peers], [1, 1])

    def test_a_cut_of_half_a_minute_closes_nothing(self):
        # TCP alone would count its retries, one a second, and give up after fifteen.
        with network.TestNetwork(hosts=2) as net:
            peers = self.start(net)
            cut = time.monotonic()
            net.cut(net.hosts[1])
            named = [peer.wait_for("suspect", cut) for peer in peers]
            # What passes is the kernels' time: nothing here happens until the silence is broken.
            self.assertEqual(net.hosts[1].run("sleep", "25").status, 0)
            self.assertEqual([peer.lines("closed") for peer in peers], [[], []], named)
            net.restore(net.hosts[1])
            self.assertGoesOn(peers)
            self.assertEqual([len(peer.lines("up")) for peer in peers], [1, 1])

    def test_a_killed_peer_is_known_at_once(self):
        with network.TestNetwork(hosts=2) as net:
            one, two = self.start(net)
            killed = time.monotonic()
            two.process.kill()
            self.assertLess(one.wait_for("closed", killed)[0] - killed, 1)
            again = Peer(net.hosts[1], "--dial", "%s:%d" % (net.hosts[0].address, PORT), "--secret-file", self.secret(),
                         "--incarnation", 2)
            self.assertGoesOn([one, again])
            # The one that was replaced comes back: it is refused, and the new one is left alone.
            stale = Peer(net.hosts[1], "--dial", "%s:%d" % (net.hosts[0].address, PORT), "--secret-file", self.secret())
            self.assertIn("incarnation 1 of host 1", stale.wait_for("dial")[1])
            self.assertGoesOn([one, again])

    def test_strangers_disturb_nobody(self):
        with network.TestNetwork(hosts=3) as net:
            a, _, c = net.hosts
            one, two = self.start(net)
            wrong = Peer(c, "--dial", "%s:%d" % (a.address, PORT), "--secret-file", self.secret("another secret!!"))
            self.assertIn("secret file", wrong.wait_for("dial")[1])
            wrong.process.kill()
            for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(500), b"SHERDLK\1" + b"\xff" * 104, b""):
                with c.socket() as s:
                    s.settimeout(harness.LIMIT)
                    s.connect((a.address, PORT))
                    try:
                        s.sendall(noise)
                        while s.recv(4096):  # until it is closed; who says nothing, after two seconds
                            if noise.startswith(b"SHERD"):
                                s.sendall(bytes(32))  # no proof
                    except ConnectionError:
                        pass
            many = [c.socket() for _ in range(100)]
            for s in many:
                s.connect((a.address, PORT))
            self.assertGoesOn([one, two])
            for s in many:
                s.close()
            # One line for the address, however often it tried.
            refused = [words for _, words in one.lines("refused")]
            self.assertEqual(len(refused), 1, refused)
            self.assertIn(c.address, refused[0])
            self.assertEqual((one.lines("closed"), two.lines("closed")), ([], []))
            self.assertEqual((len(one.lines("up")), len(two.lines("up"))), (1, 1))

    def test_through_a_relay(self):
        with network.TestNetwork(hosts=2) as net:
            a, b = net.hosts
            with relay.Relay((a.address, PORT), (b.address, 0), b.setns) as r:
                peers = self.start(net, r.address)
                r.delay(0.05)
                self.assertGoesOn(peers)
                r.delay(0)
                stalled = time.monotonic()
                r.stall()
                for peer in peers:
                    self.assertLess(peer.wait_for("suspect", stalled)[0] - stalled, 2)
                r.flow()
                for peer in peers:
                    peer.wait_for("alive", stalled)
                self.assertGoesOn(peers)
                cut = time.monotonic()
                r.cut()
                for peer in peers:
                    self.assertLess(peer.wait_for("closed", cut)[0] - cut, 1)
                r.restore()
                self.assertGoesOn(peers)


if __name__ == "__main__":
    harness.main()
