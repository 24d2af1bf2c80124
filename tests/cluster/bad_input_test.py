"""What people do wrong: one clear line, the right exit status, and nothing left behind."""
import glob
import os
import shutil
import socket
import struct
import subprocess

from tests.cluster import harness

# Reached by a mount namespace of its own: a /dev/shm that is full, or not ours, without touching the host's.
PRIVATE = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]


def can_unshare():
    return os.geteuid() == 0 and shutil.which("unshare") and subprocess.run(
        PRIVATE + ["mount -t tmpfs -o size=1m tmpfs /dev/shm"], stderr=subprocess.DEVNULL).returncode == 0


class CommandLineTest(harness.ClusterTest):
    """Refused before anything starts."""

    def test_usage(self):
        sherd, sherdd, train, sample = harness.SHERD, harness.SHERDD, harness.TRAIN, harness.SAMPLE
        cases = [  # status, what the line must name, command
            (2, "--frobnicate", sherd, "status", "--frobnicate"),
            (2, "", sherd),
            (2, "frob", sherd, "frob"),
            (2, "-n", sherd, "run", "--", "true"),
            (2, "0", sherd, "run", "-n", 0, "--", "true"),
            (2, "-1", sherd, "run", "-n", -1, "--", "true"),
            (2, "0", sherd, "run", "-n", 1, "--servers", 0, "--", "true"),
            (2, "command", sherd, "run", "-n", 1),
            (1, "2,2 are 4 ranks, but the job has 3", sherd, "run", "-n", 3, "--reduce-groups", "2,2", "--", "true"),
            (1, "2,x", sherd, "run", "-n", 3, "--reduce-groups", "2,x", "--", "true"),
            (1, "1,2:f8", sherd, "run", "-n", 3, "--reduce-groups", "1,2:f8", "--", "true"),
            (1, "no-such-program", sherd, "run", "-n", 1, "--", "no-such-program"),
            (2, "fp64", sherd, "pull", "x", "--dtype", "fp64"),
            (2, "--rate", sherd, "pull", "x", "--rate", "fast"),
            (2, "--timeout", sherd, "status", "--timeout", "soon"),
            (2, "--servers", sherd, "resize"),
            (2, "--frobnicate", sherdd, "--job", "x", "--frobnicate"),
            (2, "--job", sherdd),
            (2, "a b", sherdd, "--job", "a b"),
            (2, "nowhere", sherdd, "--job", "x", "--listen", "nowhere"),
            (2, "--frobnicate", train, "--frobnicate"),
            (2, "--stage", train, "--stage", 4),
            (2, "huge", train, "--size", "huge"),
            (2, "--global-batch", train, "--global-batch", 0),
            (2, "--steps", train, "--steps", 0),
            (1, "/no/such/directory", train, "--reference", "--steps", 1, "--save", "/no/such/directory/x"),
            (1, "/no/such/text", train, "--reference", "--text", "/no/such/text"),
            (1, "SHERD_ENDPOINT", train, "--steps", 1),
            (2, "--file", sample),
            (1, "/no/such/file", sample, "--file", "/no/such/file"),
        ]
        for status, named, *command in cases:
            with self.subTest(" ".join(map(str, command))):
                self.assertFails(harness.run(*command), status, named)
        self.assertEqual(glob.glob(harness.SHM + "/x-*"), [])

    def test_text_shorter_than_a_context(self):
        path = os.path.join(self.dir, "short.txt")
        with open(path, "w") as f:
            f.write("in the beginning")
        self.assertFails(harness.run(harness.TRAIN, "--reference", "--text", path), 1, path)

    def test_what_is_no_file_is_not_waited_for(self):
        pipe = os.path.join(self.dir, "pipe")
        os.mkfifo(pipe, 0o600)
        self.addCleanup(os.remove, pipe)
        sherd, sherdd, train = harness.SHERD, harness.SHERDD, harness.TRAIN
        for path in (pipe, self.dir, "/dev/zero"):
            for command in ([sherd, "run", "-n", 1, "--config", path, "--", "true"],
                            [train, "--reference", "--text", path],
                            [harness.SAMPLE, "--file", path],
                            [sherd, "plan", "--params", "1B", "--config", path],
                            [sherd, "status", "--endpoint", "127.0.0.1:1", "--token-file", path],
                            [sherd, "status", "--endpoint", "127.0.0.1:1", "--tls-ca", path],
                            [sherdd, "--job", "x", "--token-file", path],
                            [sherdd, "--job", "x", "--secret-file", path],
                            [sherdd, "--job", "x", "--tls-cert", path, "--tls-key", path],
                            [sherd, "run", "-n", 1, "--listen", "127.0.0.1:7001", "--secret-file", path, "--", "true"]):
                with self.subTest(" ".join(map(str, command))):
                    done = harness.run(*command)
                    self.assertFails(done, done.status, path)
                    self.assertIn(done.status, (1, 2))
                    # Weights may be a folder.
                    folder = command[0] == harness.SAMPLE and path == self.dir
                    self.assertIn("holds neither" if folder else "regular file", done.stderr)
        self.assertEqual(glob.glob(harness.SHM + "/x-*"), [])

    def test_file_that_is_no_model(self):
        path = os.path.join(self.dir, "junk.safetensors")
        with open(path, "wb") as f:
            f.write(struct.pack("<Q", 1 << 40) + b"{}")
        self.assertFails(harness.run(harness.SAMPLE, "--file", path), 1, path)

    def test_server_that_is_not_there(self):
        nobody = "unix:" + os.path.join(self.dir, "none.sock")
        for command in (["status"], ["ls"], ["pull", os.path.join(self.dir, "x")], ["resize", "--servers", 2],
                        ["read", "w", "-o", os.path.join(self.dir, "x.npy")]):
            with self.subTest(command[0]):
                self.assertFails(harness.run(harness.SHERD, *command, "--endpoint", nobody), 1, "none.sock")
        done = harness.run(harness.TRAIN, "--text", self.text(), *self.training(),
                           env={"SHERD_ENDPOINT": nobody, "RANK": "0", "WORLD_SIZE": "1"})
        self.assertFails(done, 1, "none.sock")
        for endpoint in ("localhost:1", "127.0.0.1:1"):
            self.assertFails(harness.run(harness.SHERD, "status", "--endpoint", endpoint), 1, endpoint)
        for endpoint in ("nowhere", "unix:", ":", "host:99999"):
            self.assertFails(harness.run(harness.SHERD, "status", "--endpoint", endpoint), 1, endpoint)
        self.assertEqual([n for n in os.listdir(self.dir) if n.startswith("x")], [])

    def test_ranks_that_are_none(self):
        nobody = "unix:" + os.path.join(self.dir, "none.sock")
        for rank, world in (("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")):
            with self.subTest(rank=rank, world=world):
                done = harness.run(harness.TRAIN, "--text", self.text(), env={
                    "SHERD_ENDPOINT": nobody, "RANK": rank, "WORLD_SIZE": world})
                self.assertFails(done, 1, "RANK" if world != "0" else "WORLD_SIZE")

    def test_address_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = "127.0.0.1:%d" % taken.getsockname()[1]
            self.assertFails(harness.run(harness.SHERDD, "--job", "badport", "--listen", address), 1, address)
        self.assertEqual(harness.left_over("badport"), [])
        path = os.path.join(self.dir, "file.sock")
        open(path, "w").close()
        self.assertFails(harness.run(harness.SHERDD, "--job", "badport", "--listen", "unix:" + path), 1, path)
        self.assertTrue(os.path.isfile(path), "somebody's file was removed")
        self.assertEqual(harness.left_over("badport"), [])


class RunningJobTest(harness.ClusterTest):
    steps = 5000

    def end(self, job):
        job.process.send_signal(2)
        job.finish(status=128 + 2)

    def test_name_in_use(self):
        with self.job(1, 1) as job:
            job.wait_for_step(1)
            done = harness.run(harness.SHERD, "run", "-n", 1, "--job", job.name, "--", "true")
            self.assertFails(done, 1, job.name)
            self.assertFails(harness.run(harness.SHERDD, "--job", job.name), 1, job.name)
            # A server under the name of one that lives, and a trainer of another job.
            path = os.path.join(self.dir, "other.sock")
            done = harness.run(harness.SHERDD, "--job", job.name, "--job-dir", job.job_dir(), "--id", "s0",
                               "--listen", "unix:" + path, "--log-level", "off")
            self.assertFails(done, 1, "s0")
            self.assertFalse(os.path.exists(path))
            done = harness.run(harness.TRAIN, "--text", self.text(), *self.training(), env={
                "SHERD_ENDPOINT": job.endpoints(), "SHERD_JOB": "another", "RANK": "0", "WORLD_SIZE": "1"})
            self.assertFails(done, 1, "another")
            job.wait_for_step(job.log.last_step() + 1)
            self.end(job)

    def test_questions_without_answer(self):
        with self.job(1, 1) as job:
            job.wait_for_step(1)
            out = os.path.join(self.dir, "x.npy")
            for named, *command in [
                    ("nobody", "read", "nobody", "-o", out),
                    ("momentum", "read", "wte.weight", "--plane", "momentum", "-o", out),
                    ("3 dimensions", "read", "wte.weight", "--slice", "0:9,0:1,0", "-o", out),
                    ("1:x", "read", "wte.weight", "--slice", "1:x", "-o", out),
                    ("/no/such", "read", "wte.weight", "-o", "/no/such/x.npy"),
                    ("/no/such", "pull", "/no/such/x.safetensors"),
                    ("momentum", "stat", "wte.weight", "--plane", "momentum"),
            ]:
                with self.subTest(" ".join(command)):
                    self.assertFails(job.cli(*command), 1, named)
            self.assertFalse(os.path.exists(out))
            self.end(job)

    def test_segment_of_another_version(self):
        with self.job(1, 1, run_args=["--restarts", 1]) as job:
            job.wait_for_step(1)
            with open(os.path.join(job.job_dir(), "control"), "r+b") as f:
                f.seek(8)  # after the magic
                f.write(struct.pack("<I", 77))
            job.kill("trainer", 0)  # its replacement meets the segment
            job.finish(status=1)
            lines = [line for line in job.output("stderr").splitlines() if line.startswith("train_gpt:")]
            self.assertEqual(len(lines), 1, job.output("stderr"))
            self.assertIn("version 77", lines[0])

    def test_different_learning_rates(self):
        script = 'exec "$0" "$@" --lr 0.00$((RANK + 1))'
        train = ["sh", "-c", script, harness.program(harness.TRAIN), "--text", self.text(), *self.training()]
        with self.job(2, 1, command=train) as job:
            job.finish(status=1)
            lines = [line for line in job.output("stderr").splitlines() if "train_gpt:" in line]
            self.assertIn(len(lines), (1, 2), job.output("stderr"))  # one a rank, unless the other was ended first
            for part in ("lr", "0.001", "0.002"):
                self.assertIn(part, lines[0])

    def test_different_models(self):
        script = 'exec "$0" "$@" --context 1$RANK'
        train = ["sh", "-c", script, harness.program(harness.TRAIN), "--text", self.text(), *self.training()[:-2]]
        with self.job(2, 1, command=train) as job:
            job.finish(status=1)
            self.assertIn("wpe.weight", job.output("stderr"))


class PrivateMemoryTest(harness.ClusterTest):
    def setUp(self):
        if not can_unshare():
            self.skipTest("needs root and mount namespaces")

    def run_privately(self, prepare):
        """`sherd run` with a /dev/shm of its own; then what is left in it, on stdout."""
        script = ("set -e; mount -t tmpfs -o size=3m tmpfs /dev/shm; %s; set +e; \"$0\" run -n 1 --job private -- \"$@\"; "
                  "s=$?; find /dev/shm -mindepth 2; exit $s" % prepare)
        p = subprocess.run([*PRIVATE, script, harness.program(harness.SHERD), harness.program(harness.TRAIN), "--text",
                            self.text(), *self.training()], env=harness.environment(), timeout=harness.LIMIT,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        self.assertEqual(harness.processes_of("private"), {})
        return harness.Finished(p.returncode, p.stdout, p.stderr)

    def test_full_shared_memory(self):
        done = self.run_privately("true")
        self.assertEqual((done.status, done.stdout), (1, ""), done)
        lines = [line for line in done.stderr.splitlines() if line.startswith("train_gpt:")]
        self.assertEqual(len(lines), 1, done)
        self.assertRegex(lines[0], r"/dev/shm.*(free|room)|(free|room).*/dev/shm")

    def test_directory_of_somebody_else(self):
        for prepare, named in [("mkdir -m 700 /dev/shm/sherd-0; chown 1234 /dev/shm/sherd-0", "uid 1234"),
                               ("mkdir -m 777 /dev/shm/sherd-0", "mode"),
                               ("ln -s /tmp /dev/shm/sherd-0", "link"),
                               ("touch /dev/shm/sherd-0", "not a directory")]:
            with self.subTest(prepare):
                self.assertFails(self.run_privately(prepare), 1, named)


if __name__ == "__main__":
    harness.main()
