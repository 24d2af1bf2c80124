"""Servers that are reached over TCP alone, started one by one as a person would without `sherd run`."""
import os
import subprocess

from tests.cluster import harness

STEPS = 1000000  # more than will be made


class Cluster:
    """Two servers that listen on TCP alone, and a trainer that reaches them there."""

    def __init__(self, test, access, listen=("--listen", "127.0.0.1:0")):
        self.test, self.access, self.listen = test, [str(a) for a in access], listen
        self.job = "%s-%d" % (test.job_prefix, os.getpid())
        self.processes, self.files, self.addresses = [], [], []

    def __enter__(self):
        try:
            self.serve("s0")
            self.serve("s1", "--join", self.addresses[0])
            environment = {"SHERD_ENDPOINT": self.addresses[1], "SHERD_JOB": self.job, "RANK": "0", "WORLD_SIZE": "1"}
            environment.update(zip(
                ({"--token-file": "SHERD_TOKEN_FILE", "--secret-file": "SHERD_SECRET_FILE", "--tls-ca": "SHERD_TLS_CA",
                  "--tls-cert": "SHERD_TLS_CERT", "--tls-key": "SHERD_TLS_KEY"}[flag] for flag in self.access[::2]),
                self.access[1::2]))
            self.log = os.path.join(self.test.dir, self.job + ".json")
            self.start(harness.TRAIN, "--text", self.test.text(), "--json", self.log, *self.test.training(STEPS),
                       env=environment)
            harness.wait_for("three steps", lambda: harness.StepLog(self.log).last_step() >= 3 or self.check())
            return self
        except BaseException:
            self.__exit__(1, None, None)
            raise

    def __exit__(self, kind, error, trace):
        for process in reversed(self.processes):
            process.kill()
            process.wait()
        for f in self.files:
            if kind is not None:
                with open(f.name, errors="replace") as text:
                    print("---- %s\n%s" % (f.name, text.read()))
            f.close()
        harness.run(harness.SHERD, "gc")
        if os.path.exists(self.log):
            os.remove(self.log)

    log = ""

    def check(self):
        for process in self.processes:
            if process.poll() is not None:
                raise AssertionError("%s ended, status %d" % (process.args[0], process.returncode))
        return False

    def start(self, program, *args, env=()):
        name = os.path.join(self.test.dir, "%s-%d" % (self.job, len(self.processes)))
        self.files.append(open(name, "w+"))
        self.processes.append(subprocess.Popen(
            [harness.program(program), *map(str, args)], env=harness.environment(env), stdin=subprocess.DEVNULL,
            stdout=self.files[-1], stderr=self.files[-1], cwd=self.test.dir))
        return name

    def serve(self, name, *args):
        said = self.start(harness.SHERDD, "--job", self.job, "--id", name, "--expect", 2, *self.listen, *self.access,
                          *args)
        mark = "listens on "

        def look():
            with open(said) as f:
                text = f.read()
            return text.split(mark)[1].split()[0] if mark in text and "\n" in text.split(mark)[1] else self.check()
        self.addresses.append(harness.wait_for("the address of " + name, look))

    def cli(self, command, server, access):
        return harness.run(harness.SHERD, *command, "--endpoint", self.addresses[server], *access)
