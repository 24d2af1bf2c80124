"""A push into a job of two hosts that is stopped in the middle.

    push = stopped_push.StoppedPush(pair, 1, make)      # both hosts have room for the values, and not all of them
    pair.kill(0, "server")
    push.go_on()
    done = push.finish()

make() writes a file of values and returns its path: others every time, as a push may be too quick to be stopped.
"""
import glob
import signal
import subprocess
import time

from tests.cluster import harness

UNNAMED = 1 << 62  # imports that are being filled have larger numbers


def imports(places):
    """The imports on each of these hosts, by number."""
    return [sorted(int(path.rpartition(".")[2]) for path in glob.glob("%s/sherd-*/*/import.*" % place.shm))
            for place in places]


class StoppedPush:
    """A push on a host that is stopped when both hosts have room for what it sends, before it has sent all."""

    def __init__(self, pair, host, make):
        self.pair = pair
        for _ in range(50):
            self.process = subprocess.Popen(
                [*pair.places[host].prefix(), harness.program(harness.SHERD), "push", make(), "--json"],
                env=harness.environment({"SHERD_SHM_ROOT": pair.places[host].shm}), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
            pair.test.addCleanup(self.process.stdout.close)
            pair.test.addCleanup(self.process.stderr.close)
            if self._stops():
                return
            self.process.wait()
        raise AssertionError("no push could be stopped in the middle")

    def _stops(self):
        """Lets it run in short bursts until both hosts have an import of its; False if it was too quick."""
        step = None
        while self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)
            if all(any(i >= UNNAMED for i in found) for found in imports(self.pair.places)):
                # What was sent whole would have its name, and be stored, by the time of a few more steps.
                step = self.pair.log.last_step() + 3
                self.pair.wait_for_step(step)
                if all(any(i >= UNNAMED for i in found) for found in imports(self.pair.places)):
                    return True
            self.process.send_signal(signal.SIGCONT)
            time.sleep(0.0003)
        return False

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def finish(self):
        out, err = self.process.communicate(timeout=harness.LIMIT)
        return harness.Finished(self.process.returncode, out, err)
