"""Several hosts on one machine, for tests: network namespaces whose links can be slowed and cut.

    class MyTest(network.NetworkTest):                      # skipped, with the reason, where this cannot be
        def test_cut(self):
            with network.TestNetwork(hosts=2) as net:
                a, b = net.hosts
                server = a.start(harness.program("client/cli/sherd"), "run", "-n", "1", ...)
                done = b.run(harness.program("client/cli/sherd"), "status", "--endpoint", "%s:4711" % a.address)
                net.cut(b)                                  # b's cable is out: nothing comes or goes, nobody is told
                net.restore(b)
                net.cut(b, "in")                            # b still speaks, but hears nothing ("out": the reverse)
                net.rate(b, "200mbit")                      # both directions; None: as fast as it goes

Every host is a namespace with `lo` and `eth0` (host.address: 10.77.0.1, 10.77.0.2, ...; host.address6: fd77::1, ...),
joined by a bridge in a namespace of its own, so tests that run at once do not meet, and nothing of the machine's own
network changes. This process is in none of them: it reaches a host's servers through their unix sockets, or runs
programs there.

A program that a host runs gets SHERD_SHM_ROOT=host.shm: a directory of the host's own in /dev/shm, so that different
hosts share no memory. host.jobs() lists the directories of jobs in it.

At the end, however it comes, processes, namespaces and directories go; what a killed test process left goes with the
next TestNetwork of this machine. When the test fails, the output of all that was started is printed.

Needs root, ip, tc and nsenter, and a kernel with network namespaces, veth and bridges. Where that is not there a Relay
(tests/hosts/relay.py) between two addresses of the loopback can delay, stall and cut.
"""
import ctypes
import ctypes.util
import glob
import itertools
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import unittest

import tests.cluster.harness as harness

PREFIX = "sn-"
BASE = "/dev/shm"
NETNS = "/run/netns"
TOOLS = ("ip", "tc", "nsenter")
_numbers = itertools.count(1)


def _call(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          encoding="utf-8", errors="replace")
    if done.returncode != 0:
        raise RuntimeError("%s: %s" % (" ".join(command), done.stdout.strip()))
    return done.stdout


def _tool(name):
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")


def _start_ticks(pid):
    stat = harness.read_proc(pid, "stat")
    return stat[0].rsplit(")", 1)[-1].split()[19] if stat else None


def why_not():
    """Why there can be no TestNetwork here; None when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in TOOLS:
        if _tool(tool) is None:
            return "there is no program %s (Debian packages iproute2 and util-linux)" % tool
    try:
        with TestNetwork(hosts=1):
            return None
    except (RuntimeError, OSError) as error:
        return "no network namespaces here: %s" % error


class NetworkTest(harness.ClusterTest):
    """Base of the tests here: skipped where there can be no TestNetwork."""

    @classmethod
    def setUpClass(cls):
        reason = why_not()
        if reason is not None:
            raise unittest.SkipTest(reason)
        super().setUpClass()


class Process:
    """A program that was started in a host."""

    def __init__(self, host, command, env):
        self.command = command
        base = os.path.join(host.net.dir, "out-%d" % next(_numbers))
        self.files = {name: open("%s.%s" % (base, name), "w+", errors="replace") for name in ("stdout", "stderr")}
        # nsenter becomes the program: its pid is the program's. In a group of its own, so that all of it can go.
        self.process = subprocess.Popen(host.prefix() + list(map(str, command)), env=host.environment(env),
                                        stdin=subprocess.DEVNULL, stdout=self.files["stdout"],
                                        stderr=self.files["stderr"], cwd=host.net.dir, start_new_session=True)
        self.pid = self.process.pid

    def output(self, name="stdout"):
        with open(self.files[name].name, errors="replace") as f:
            return f.read()

    def running(self):
        return self.process.poll() is None

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """kill -9 of the program alone, not of what it started."""
        self.process.kill()
        self.process.wait()

    def wait_for_output(self, text, name="stdout", limit=None):
        """Waits until `text` stands in what it wrote; all of that."""
        def look():
            found = text in self.output(name)
            if not found and not self.running():
                raise AssertionError("%s ended, status %s, without saying %r:\n%s" % (
                    self.command[0], self.process.returncode, text, self))
            return found
        harness.wait_for("%r from %s" % (text, self.command[0]), look, limit)
        return self.output(name)

    def finish(self, limit=None):
        """Waits for the end: a harness.Finished."""
        harness.wait_for("the end of %s" % " ".join(map(str, self.command[:2])), lambda: not self.running(), limit)
        return harness.Finished(self.process.returncode, self.output("stdout"), self.output("stderr"))

    def __str__(self):
        return "$ %s\n%s%s" % (" ".join(map(str, self.command)), self.output("stdout"), self.output("stderr"))


class Host:
    """One host of a TestNetwork."""

    def __init__(self, net, index):
        self.net = net
        self.index = index
        self.name = "%s-h%d" % (net.name, index)
        self.port = "p%d" % index  # the bridge's end of the cable
        self.address = "10.77.0.%d" % (index + 1)
        self.address6 = "fd77::%x" % (index + 1)
        self.shm = os.path.join(net.dir, "h%d" % index)
        self.processes = []

    def prefix(self):
        """What starts a command in this host."""
        return [_tool("nsenter"), "--net=%s/%s" % (NETNS, self.name), "--"]

    def environment(self, env=()):
        return harness.environment({"SHERD_SHM_ROOT": self.shm, **dict(env)})

    def start(self, *command, env=()):
        """Starts a program in this host: a Process."""
        self.processes.append(Process(self, command, env))
        return self.processes[-1]

    def run(self, *command, env=(), limit=None):
        """Runs a program in this host to its end: a harness.Finished."""
        return self.start(*command, env=env).finish(limit)

    def jobs(self):
        """The directories of jobs in this host's memory."""
        return sorted(glob.glob("%s/sherd-%d/*" % (self.shm, os.geteuid())))

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM):
        """A socket of this host's network, for the test itself."""
        made = []

        def make():
            self.setns()
            made.append(socket.socket(family, kind))
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    def setns(self):
        """Puts this thread into the host's network: sockets that it makes from now on are the host's."""
        libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
        with open("%s/%s" % (NETNS, self.name)) as f:
            if libc.setns(f.fileno(), 0x40000000) != 0:  # CLONE_NEWNET
                raise OSError(ctypes.get_errno(), "setns " + self.name)


class TestNetwork:
    """See above. Hosts are 0..hosts-1."""

    def __init__(self, hosts):
        self.name = "%s%d-%d" % (PREFIX, os.getpid(), next(_numbers))
        self.dir = os.path.join(BASE, self.name)
        self.switch = self.name + "-sw"
        self.hosts = [Host(self, i) for i in range(hosts)]
        self.rates, self.cuts = {}, {}

    def __enter__(self):
        sweep()
        os.mkdir(self.dir, 0o700)
        # Whole when it has its name: sweep() may look at any moment.
        owner = os.path.join(self.dir, "owner")
        with open(owner + ".new", "w") as f:
            f.write("%d %s" % (os.getpid(), _start_ticks(os.getpid())))
        os.rename(owner + ".new", owner)
        try:
            self._build()
        except BaseException:
            remove(self.name)
            raise
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None:
            for host in self.hosts:
                for process in host.processes:
                    print("---- host %d (%s)\n%s" % (host.index, "running" if process.running() else
                                                     "status %d" % process.process.returncode, process), flush=True)
        remove(self.name)
        for process in itertools.chain.from_iterable(host.processes for host in self.hosts):
            process.process.wait()
            for f in process.files.values():
                f.close()

    def _build(self):
        _call(_tool("ip"), "netns", "add", self.switch)
        self._ip(self.switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        self._ip(self.switch, "link", "set", "br0", "up")
        for host in self.hosts:
            os.mkdir(host.shm, 0o700)
            _call(_tool("ip"), "netns", "add", host.name)
            self._ip(self.switch, "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            self._ip(self.switch, "link", "set", host.port, "master", "br0", "up")
            self._ip(host.name, "link", "set", "lo", "up")
            self._ip(host.name, "address", "add", host.address + "/24", "dev", "eth0")
            self._ip(host.name, "address", "add", host.address6 + "/64", "dev", "eth0", "nodad")
            self._ip(host.name, "link", "set", "eth0", "up")

    def _ip(self, namespace, *args):
        return _call(_tool("ip"), "-n", namespace, *args)

    def _shape(self, host):
        """Makes the cable what was asked for. Cut in both directions it ends in a port that is not the bridge's; in
        one, in a queue that holds nothing."""
        cut = self.cuts.get(host)
        self._ip(self.switch, "link", "set", host.port, *(("nomaster",) if cut == "both" else ("master", "br0")))
        for direction, namespace, device in (("out", host.name, "eth0"), ("in", self.switch, host.port)):
            tc = [_tool("tc"), "-n", namespace, "qdisc"]
            if cut == direction:
                _call(*tc, "replace", "dev", device, "root", "bfifo", "limit", "1")
            elif self.rates.get(host) is not None:
                _call(*tc, "replace", "dev", device, "root", "tbf", "rate", self.rates[host], "burst", "256kb",
                      "latency", "100ms")
            elif "noqueue" not in _call(*tc, "show", "dev", device):
                _call(*tc, "del", "dev", device, "root")

    def rate(self, host, rate):
        """Limits a host's cable in each direction ("200mbit", "1gbit": tc's words); None lifts the limit."""
        self.rates[host] = rate
        self._shape(host)

    def cut(self, host, direction="both"):
        """Packets are lost without a word from now on: "in", those to the host; "out", those of it; or both."""
        if direction not in ("in", "out", "both"):
            raise ValueError(direction)
        self.cuts[host] = direction
        self._shape(host)

    def restore(self, host):
        self.cuts[host] = None
        self._shape(host)

    def destroy(self, host):
        """The machine is gone, without a word to anybody: cable, processes and memory."""
        self.cut(host)
        kill_all(host.name)
        shutil.rmtree(host.shm, ignore_errors=True)


def sweep():
    """Removes what killed test processes left."""
    for path in glob.glob("%s/%s*" % (BASE, PREFIX)):
        try:
            with open(os.path.join(path, "owner")) as f:
                pid, ticks = f.read().split()
        except (FileNotFoundError, NotADirectoryError):
            continue  # it comes into being, or goes, at this moment
        if _start_ticks(int(pid)) != ticks:
            remove(os.path.basename(path))


def kill_all(space, patience=10):
    """Kills what runs in a namespace: again until there is nothing, as one may have started another."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        pids = [int(p) for p in _call(_tool("ip"), "netns", "pids", space).split()]
        pids = [p for p in pids if harness.is_running(p) and p != os.getpid()]
        if not pids:
            break
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(harness.LOOK_AGAIN)


def remove(name):
    """Kills what runs in a network's hosts, removes them, and then what they kept in memory."""
    spaces = [os.path.basename(p) for p in glob.glob("%s/%s-*" % (NETNS, name))]
    for space in spaces:
        kill_all(space)
    for space in spaces:
        _call(_tool("ip"), "netns", "del", space)
    shutil.rmtree(os.path.join(BASE, name), ignore_errors=True)
