"""A model that is built sharded over two hosts: no host and no process has more than its share of it. By hand:

    bazel test //tests/hosts:shares --test_output=streamed

gpt2-xl (1.5 G parameters, bf16) takes what memory there is: as many of its blocks are trained as fit, the others are
frozen, and have neither gradients nor optimizer's state. What it measured stands in the output.
"""
import glob
import os
import time
import unittest

from tests.cluster import harness
from tests.hosts import network
from tests.hosts import two_hosts

WIDTHS = {"gpt2": (12, 768), "gpt2-xl": (48, 1600)}  # layers, width
CONTEXT = 16
VOCABULARY = 256
TOO_MUCH = 1.1
# What a trainer's program, its libraries and its activations take, and a server's.
PROGRAM = 600 << 20
GIB = float(1 << 30)
LOOK_AGAIN = 0.2  # seconds between two looks at all processes


def of_a_block(width):
    return 12 * width * width + 13 * width


class Share:
    """Bytes of one host of two, by arithmetic."""

    def __init__(self, size, frozen, max_live):
        layers, width = WIDTHS[size]
        self.elements = layers * of_a_block(width) + (VOCABULARY + CONTEXT + 2) * width
        self.trained = (layers - frozen) * of_a_block(width) + 2 * width
        if frozen == 0:
            self.trained = self.elements
        masters, rounded = 4 * self.elements / 2, 2 * self.elements / 2
        state = (8 + 4) * self.trained / 2  # moments; the reduced gradient
        exchange = 2 * 2 * self.trained / 2  # sums on their way out and in
        staging = 2 * 2 * of_a_block(width)
        self.host = masters + rounded + 2 * max_live + state + exchange + staging


def private(pid):
    """Bytes of memory that a process shares with nobody."""
    for line in "".join(harness.read_proc(pid, "status")).splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0


def pss(pid):
    """(all, shared memory): a process' part of what it has mapped, pages of several counted in proportion."""
    found = {}
    for line in "".join(harness.read_proc(pid, "smaps_rollup")).splitlines()[1:]:
        name, value = line.split()[:2]
        found[name] = 1024 * int(value)
    return found.get("Pss:", 0), found.get("Pss_Shmem:", 0)


def available():
    with open("/proc/meminfo") as f:
        return next(1024 * int(line.split()[1]) for line in f if line.startswith("MemAvailable:"))


class ShareTest(network.NetworkTest):
    batch = 2
    context = CONTEXT

    def training(self, steps=None):
        return ["--size", self.size, "--steps", str(steps), "--global-batch", str(self.batch), "--context",
                str(self.context)]

    def in_shared_memory(self, host):
        total = 0
        for path in glob.glob("%s/sherd-*/*/*" % host.shm):
            try:
                total += os.stat(path).st_blocks * 512
            except FileNotFoundError:
                pass
        return total

    def train(self, size, frozen, steps=2):
        self.size = size
        max_live = 4 * of_a_block(WIDTHS[size][1])
        share = Share(size, frozen, max_live)
        args = ["--stage", 3, "--precision", "bf16", "--init", "sharded", "--persistence-threshold", 0,
                "--max-reuse-distance", 0, "--max-live", max_live, "--prefetch-bucket", max_live // 2, "--freeze", frozen]
        most, processes, looked = {0: 0, 1: 0}, {}, [0.0]
        with network.TestNetwork(hosts=2) as net, two_hosts.TwoHosts(self, 1, 1, args, steps=100000,
                                                                         places=net.hosts) as pair:

            def look():
                if time.monotonic() < looked[0] + LOOK_AGAIN:
                    return False
                looked[0] = time.monotonic()
                for h, host in enumerate(net.hosts):
                    most[h] = max(most[h], self.in_shared_memory(host))
                    for kind, pid in pair.pids(h).items():
                        processes[h, kind] = max(processes.get((h, kind), 0), private(pid))
                return pair.log.last_step() >= steps

            pair.wait_for("step %d" % steps, look)
            parts = {(h, kind): pss(pid) for h in most for kind, pid in pair.pids(h).items()}
            for process in pair.processes:
                process.terminate()
            for process in pair.processes:
                harness.wait_for("the end", lambda: process.poll() is not None)
        print("%s: %.2f G parameters, %.2f G of them trained; a host's share %.2f GiB" % (
            size, share.elements / 1e9, share.trained / 1e9, share.host / GIB))
        for h in most:
            print("  host %d: at most %.2f GiB of shared memory, %.3f of its share" % (
                h, most[h] / GIB, most[h] / share.host))
            for kind in ("trainer", "server"):
                print("    %s: at most %.2f GiB private; Pss at the end %.2f GiB, %.2f of it shared memory" % (
                    kind, processes[h, kind] / GIB, *(b / GIB for b in parts[h, kind])), flush=True)
        for h in most:
            self.assertLessEqual(most[h], TOO_MUCH * share.host, "host %d" % h)
            for kind in ("trainer", "server"):
                # Nothing of the model is a process' own.
                self.assertLessEqual(processes[h, kind], PROGRAM + (TOO_MUCH - 1) * share.host, (h, kind))

    def test_gpt2(self):
        self.train("gpt2", frozen=0)

    def test_gpt2_xl(self):
        layers, width = WIDTHS["gpt2-xl"]
        room = 0.75 * available() - 2 * 2 * PROGRAM

        def fits(frozen):
            return 2 * Share("gpt2-xl", frozen, 4 * of_a_block(width)).host <= room

        frozen = next((n for n in range(layers) if fits(n)), None)
        if frozen is None:
            raise unittest.SkipTest("%.1f GiB of memory are available" % (available() / GIB))
        self.train("gpt2-xl", frozen)


if __name__ == "__main__":
    harness.main()
