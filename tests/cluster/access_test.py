"""Control ports over TCP: who may call, with a token, TLS or both, and what everybody else is told."""
import os
import shutil
import socket
import subprocess
import unittest

from tests.cluster import harness
from tests.cluster.tcp_cluster import Cluster


def openssl(*args):
    done = subprocess.run(["openssl", *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    if done.returncode != 0:
        raise AssertionError("openssl %s: %s" % (args[0], done.stdout))


class Authority:
    """Signs certificates."""

    def __init__(self, directory, name):
        self.base = os.path.join(directory, name)
        self.ca = self.base + "-ca.pem"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                "-keyout", self.base + "-ca.key", "-out", self.ca, "-subj", "/CN=" + name)

    def certificate(self, name, addresses):
        """(certificate, key)"""
        cert, key, request = (self.base + "-%s.%s" % (name, kind) for kind in ("pem", "key", "csr"))
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out",
                request, "-subj", "/CN=" + name)
        with open(self.base + ".ext", "w") as f:
            f.write("subjectAltName=" + addresses)
        openssl("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self.base + "-ca.key", "-CAcreateserial",
                "-days", "2", "-out", cert, "-extfile", self.base + ".ext")
        return cert, key


class AccessTest(harness.ClusterTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if shutil.which("openssl") is None:
            raise unittest.SkipTest("there is no program openssl to make certificates with")
        cls.authority, cls.stranger = Authority(cls.dir, "right"), Authority(cls.dir, "wrong")
        cls.cert, cls.key = cls.authority.certificate("member", "IP:127.0.0.1,DNS:localhost")
        cls.token, cls.other = cls.write("token", "a" * 32), cls.write("other", "b" * 32)

    @classmethod
    def write(cls, name, text):
        path = os.path.join(cls.dir, name)
        with open(path, "w") as f:
            f.write(text + "\n")
        os.chmod(path, 0o600)
        return path

    def commands(self):
        out = os.path.join(self.dir, "out")
        return [["status"], ["ls"], ["stat", "ln_f.*"], ["read", "ln_f.weight", "-o", out + ".npy"],
                ["pull", out + ".safetensors"], ["push", out + ".safetensors", "--weights-only"],
                ["save", out + "-saves"], ["restore", out + "-saves"], ["plan"], ["top", "--timeout", "1"]]

    def assertAllWork(self, cluster, access):
        """Every command, by each server: one of the two passes on what the coordinator must do."""
        for command in self.commands():
            for server in (0, 1):
                with self.subTest(command=command[0], server=server):
                    done = cluster.cli(command, server, access)
                    self.assertEqual(done.status, 0 if command[0] != "top" else done.status, done)
                    self.assertNotIn("token", done.stderr)

    def assertAllRefused(self, cluster, access, named, commands=None):
        for command in commands or self.commands():
            with self.subTest(command=command[0]):
                done = cluster.cli(command, 0, access)
                self.assertEqual(done.status, 1, done)
                self.assertEqual(done.stderr.count("\n"), 1, done)
                self.assertIn(named, done.stderr)

    def test_token(self):
        access = ["--token-file", self.token]
        with Cluster(self, access) as cluster:
            self.assertAllWork(cluster, access)
            self.assertAllRefused(cluster, [], "--token-file")
            self.assertAllRefused(cluster, ["--token-file", self.other], "the token is not this server's")
            self.assertAllRefused(cluster, ["--token-file", self.dir + "/none"], self.dir + "/none", [["status"]])
            os.chmod(self.other, 0o644)
            self.assertAllRefused(cluster, ["--token-file", self.other], "chmod 600", [["status"]])
            os.chmod(self.other, 0o600)
            # The environment does as well; and one's own job goes on.
            done = harness.run(harness.SHERD, "status", env={"SHERD_ENDPOINT": cluster.addresses[0],
                                                             "SHERD_TOKEN_FILE": self.token})
            self.assertEqual(done.status, 0, done)
            self.assertFalse(cluster.check())

    def test_tls_both_ways_and_token(self):
        tls = ["--tls-ca", self.authority.ca, "--tls-cert", self.cert, "--tls-key", self.key]
        access = ["--token-file", self.token, *tls]
        with Cluster(self, access) as cluster:
            self.assertAllWork(cluster, access)
            status = [["status"]]
            self.assertAllRefused(cluster, tls, "--token-file", status)
            plain, no_certificate = access[:2], access[:4]
            cert, key = self.stranger.certificate("stranger", "IP:127.0.0.1")
            for wrong in (plain, no_certificate,
                          [*plain, "--tls-ca", self.stranger.ca, "--tls-cert", self.cert, "--tls-key", self.key],
                          [*plain, "--tls-ca", self.authority.ca, "--tls-cert", cert, "--tls-key", key]):
                self.assertAllRefused(cluster, wrong, cluster.addresses[0], status)
            self.assertFalse(cluster.check())

    def test_a_port_that_other_hosts_reach_asks_who_calls(self):
        listen = ["--listen", "0.0.0.0:0", "--allow-remote"]
        for access in ([], ["--tls-cert", self.cert, "--tls-key", self.key]):
            with self.subTest(access=access):
                done = harness.run(harness.SHERDD, "--job", "open", *listen, *access)
                self.assertFails(done, 2, "give --token-file")
        os.chmod(self.other, 0o644)
        done = harness.run(harness.SHERDD, "--job", "open", *listen, "--token-file", self.other)
        self.assertFails(done, 1, "chmod 600")
        os.chmod(self.other, 0o600)
        self.assertEqual(harness.left_over("open"), [])
        access = ["--token-file", self.token]
        with Cluster(self, access, listen) as cluster:
            self.assertEqual(cluster.cli(["status"], 0, access).status, 0)
            self.assertAllRefused(cluster, [], "--token-file", [["status"], ["ls"]])

    def test_noise_disturbs_nobody(self):
        access = ["--token-file", self.token]
        with Cluster(self, access) as cluster:
            host, port = cluster.addresses[0].split(":")
            for noise in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 64, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096):
                with socket.create_connection((host, int(port)), timeout=harness.LIMIT) as s:
                    try:
                        s.sendall(noise)
                        s.shutdown(socket.SHUT_WR)
                        while s.recv(4096):
                            pass
                    except OSError:  # reset, or gone between the two
                        pass
            self.assertEqual(cluster.cli(["status"], 0, access).status, 0)
            self.assertFalse(cluster.check())


if __name__ == "__main__":
    harness.main()
