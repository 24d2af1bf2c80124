"""Real etcd servers for a test: on free ports of the loopback, their data in memory, gone at the end."""
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request

from tests.cluster import harness

PROGRAM = "/usr/bin/etcd"


def installed():
    return os.access(PROGRAM, os.X_OK)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Etcd:
    """with Etcd(3) as etcd: ... etcd.url("prefix"), etcd.kill(etcd.leader())"""

    def __init__(self, servers, flags=()):
        self.count = servers
        self.flags = flags
        self.processes = [None] * servers

    def __enter__(self):
        self.dir = tempfile.mkdtemp(prefix="sherd-etcd-", dir="/dev/shm")
        ports = free_ports(2 * self.count)
        self.clients = ["127.0.0.1:%d" % p for p in ports[:self.count]]
        self.peers = ["http://127.0.0.1:%d" % p for p in ports[self.count:]]
        for server in range(self.count):
            self.start(server)
        self.leader()
        return self

    def __exit__(self, *_):
        for server in range(self.count):
            self.kill(server)
        shutil.rmtree(self.dir, ignore_errors=True)

    def start(self, server):
        client = "http://" + self.clients[server]
        cluster = ",".join("e%d=%s" % pair for pair in enumerate(self.peers))
        with open(os.path.join(self.dir, "log%d" % server), "a") as log:
            self.processes[server] = subprocess.Popen(
                [PROGRAM, "--name", "e%d" % server, "--data-dir", os.path.join(self.dir, "e%d" % server),
                 "--listen-client-urls", client, "--advertise-client-urls", client,
                 "--listen-peer-urls", self.peers[server], "--initial-advertise-peer-urls", self.peers[server],
                 "--initial-cluster", cluster, "--initial-cluster-token", self.dir, "--logger", "zap",
                 *self.flags],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, server):
        process = self.processes[server]
        if process is not None:
            process.kill()
            process.wait()
        self.processes[server] = None

    def signal(self, server, number):
        self.processes[server].send_signal(number)

    def stop(self, server):
        self.signal(server, signal.SIGSTOP)

    def go_on(self, server):
        self.signal(server, signal.SIGCONT)

    def url(self, prefix="", clients=None):
        """`clients`: other addresses, that lead there."""
        return "etcd://%s%s" % (",".join(clients or self.clients), "/" + prefix if prefix else "")

    def call(self, path, **body):
        """A call of etcd's JSON gateway, to whichever server answers first."""
        for server, address in enumerate(self.clients):
            if self.processes[server] is None:
                continue
            request = urllib.request.Request("http://%s/v3/%s" % (address, path), json.dumps(body).encode())
            with urllib.request.urlopen(request, timeout=harness.LIMIT) as reply:
                return json.loads(reply.read())
        raise AssertionError("no server of etcd runs")

    def fill(self):
        """Stores values until etcd takes no more, and raises its alarm."""
        value = base64.b64encode(os.urandom(512 << 10)).decode()
        for number in range(1000):
            key = base64.b64encode(b"/ballast/%d" % number).decode()
            try:
                self.call("kv/put", key=key, value=value)
            except urllib.error.HTTPError:
                return
        raise AssertionError("etcd takes everything")

    def make_room(self):
        """Deletes what fill() stored, compacts and ends the alarm."""
        key, end = base64.b64encode(b"/ballast/").decode(), base64.b64encode(b"/ballast0").decode()
        revision = self.call("kv/deleterange", key=key, range_end=end)["header"]["revision"]
        self.call("kv/compaction", revision=revision, physical=True)
        self.call("maintenance/defragment")
        for alarm in self.call("maintenance/alarm").get("alarms", []):
            self.call("maintenance/alarm", action="DEACTIVATE", memberID=alarm["memberID"], alarm=alarm["alarm"])

    def keys(self, prefix):
        """How many keys begin with `prefix`."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        body = {"key": base64.b64encode(prefix.encode()).decode(), "range_end": base64.b64encode(end.encode()).decode()}
        request = urllib.request.Request("http://%s/v3/kv/range" % self.clients[0], json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=harness.LIMIT) as reply:
            return int(json.loads(reply.read()).get("count", 0))

    def leader(self):
        """The server that leads, once there is one."""

        def look():
            for server, address in enumerate(self.clients):
                if self.processes[server] is None:
                    continue
                try:
                    with urllib.request.urlopen("http://%s/metrics" % address, timeout=2) as reply:
                        if "\netcd_server_is_leader 1" in reply.read().decode():
                            return (server,)
                except OSError:
                    pass
            return None

        return harness.wait_for("a leader of etcd", look)[0]
