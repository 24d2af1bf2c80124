"""The relay that stands between two hosts of a test."""
import socket
import threading
import time
import unittest

import tests.cluster.harness as harness
import tests.hosts.relay as relay


class RelayTests(unittest.TestCase):

    def setUp(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.listener.settimeout(harness.LIMIT)

    def connect(self, r):
        near = socket.create_connection(r.address, timeout=harness.LIMIT)
        self.addCleanup(near.close)
        far = self.listener.accept()[0]
        self.addCleanup(far.close)
        far.settimeout(harness.LIMIT)
        return near, far

    def receive(self, end, size):
        data = b""
        while len(data) < size:
            piece = end.recv(size - len(data))
            self.assertTrue(piece, "closed")
            data += piece
        return data

    def test_passes_everything_on_in_order(self):
        with relay.Relay(self.listener.getsockname()) as r:
            near, far = self.connect(r)
            data = bytes(range(256)) * 40000
            sender = threading.Thread(target=near.sendall, args=(data,))
            sender.start()
            self.assertEqual(self.receive(far, len(data)), data)
            sender.join()
            far.sendall(b"back")
            self.assertEqual(self.receive(near, 4), b"back")
            near.shutdown(socket.SHUT_WR)
            self.assertEqual(far.recv(1), b"")
            far.sendall(b"end")
            far.close()
            self.assertEqual(self.receive(near, 3), b"end")
            self.assertEqual(near.recv(1), b"")
            self.assertEqual((r.bytes_up, r.bytes_down), (len(data), 7))

    def test_delay(self):
        with relay.Relay(self.listener.getsockname()) as r:
            near, far = self.connect(r)
            r.delay(0.1)
            began = time.monotonic()
            near.sendall(b"x")
            self.receive(far, 1)
            far.sendall(b"y")
            self.receive(near, 1)
            self.assertGreaterEqual(time.monotonic() - began, 0.2)

    def test_stall(self):
        with relay.Relay(self.listener.getsockname()) as r:
            near, far = self.connect(r)
            near.sendall(b"x")
            self.receive(far, 1)
            r.stall("up")
            near.sendall(b"abc")
            far.sendall(b"down")
            self.assertEqual(self.receive(near, 4), b"down")
            far.settimeout(0.2)
            with self.assertRaises(TimeoutError):
                far.recv(1)
            r.flow()
            far.settimeout(harness.LIMIT)
            self.assertEqual(self.receive(far, 3), b"abc")

    def test_cut(self):
        with relay.Relay(self.listener.getsockname()) as r:
            near, far = self.connect(r)
            near.sendall(b"x")
            self.receive(far, 1)
            r.cut()
            for end in (near, far):
                with self.assertRaises(ConnectionResetError):
                    end.recv(1)
            with self.assertRaises((ConnectionResetError, BrokenPipeError)):
                again = socket.create_connection(r.address, timeout=harness.LIMIT)
                self.addCleanup(again.close)
                again.recv(1)
            r.restore()
            near, far = self.connect(r)
            near.sendall(b"x")
            self.receive(far, 1)

    def test_nobody_at_the_target(self):
        address = self.listener.getsockname()
        self.listener.close()
        with relay.Relay(address) as r:
            with self.assertRaises(ConnectionResetError):  # the reset may be there before connect() is back
                near = socket.create_connection(r.address, timeout=harness.LIMIT)
                self.addCleanup(near.close)
                near.recv(1)


if __name__ == "__main__":
    harness.main()
