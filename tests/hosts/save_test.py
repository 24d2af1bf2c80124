"""save and restore of a job of two hosts: one part for each host, restored at any size; deaths, and folders apart.

    bazel test //tests/hosts:save_test
"""
import contextlib
import glob
import json
import os
import shutil
import subprocess
import unittest

from tests.cluster import harness
from tests.cluster import safetensors
from tests.hosts import two_hosts


class Saves(two_hosts.TwoHostsTest):
    args = ["--stage", 2, "--accumulation", 2]
    # The last step stands while rank 0 makes up a text.
    linger = ["--generate", 20000]

    def folder(self, name="ck"):
        """A new directory for checkpoints."""
        self.folders = getattr(self, "folders", 0) + 1
        return os.path.join(self.dir, "%s-%s-%d" % (self.id().rpartition(".")[2][:40], name, self.folders))

    def manifest(self, folder, tag):
        with open(os.path.join(folder, tag, "manifest.json")) as f:
            return json.load(f)["manifest"]

    def assertParts(self, folder, tag):
        """Nothing but what the manifest names is there: a part for each host."""
        manifest = self.manifest(folder, tag)
        self.assertEqual(len(manifest["parts"]), 2)
        self.assertEqual(sorted(os.listdir(os.path.join(folder, tag))),
                         sorted(["manifest.json", "state.safetensors", *(part["name"] for part in manifest["parts"])]))

    def one_host(self, trainers, servers, steps, *args):
        """All that a pull of the last step has of one host with the same reduction tree."""
        with self.job(trainers, servers, [*self.args, *args, *self.linger], steps=steps,
                      run_args=["--reduce-groups", self.groups(trainers)]) as job:
            job.wait_for("step %d" % steps, lambda: (job.log.last_step() >= steps or "restored step %d" % steps in
                                                     job.output("stderr")))
            everything = self.pulled(job.json, job.dir, steps)
            job.interrupt()
            return everything

    def groups(self, trainers):
        return "%d,%d" % (trainers // 2, trainers // 2)

    def pulled(self, cli, folder, step):
        """All that a pull has of a job that stands at `step`, its last."""
        path = os.path.join(folder, "pulled.safetensors")
        self.assertEqual(cli("pull", path, "--with-optimizer")["step"], step)
        return safetensors.read(path)[0]

    def stop(self, pair):
        for process in pair.processes:
            process.terminate()
            process.wait(timeout=harness.LIMIT)


class SaveTest(Saves):
    steps = 10

    def check_trainers_saves(self, ranks, servers, *args):
        """--save-checkpoint: the saved steps hold what the job had, and go on from there as it did."""
        folder = self.folder()
        more = ["--save-checkpoint", folder, "--save-every", 5]
        with two_hosts.TwoHosts(self, ranks, servers, [*self.args, *args, *self.linger, *more]) as pair:
            pair.wait_for_step(self.steps)
            everything = self.pulled(lambda *a: pair.json(1, *a), pair.dir, self.steps)
            self.assertNotIn("not saved", pair.output("stderr", 0))
            pair.wait_for("the last save", lambda: "saved step 10" in pair.output("stderr", 0))
            self.stop(pair)
        self.assertEqual(sorted(os.listdir(folder)), ["latest", "step-10", "step-5"])
        for tag in ("step-5", "step-10"):
            self.assertParts(folder, tag)
        # At any number of servers of one host; and what is only restored is what was pulled.
        for servers, tag in ((3, "step-10"), (2, "step-5")):
            restored = self.one_host(2 * ranks, servers, self.steps, *args, "--restore", folder, "--restore-tag", tag)
            self.assertSameWeights(restored, everything, tag)

    def test_a_trainers_saves(self):
        self.check_trainers_saves(1, 1)

    def test_a_trainers_saves_in_16_bits_of_two_servers_each(self):
        self.check_trainers_saves(2, 2, "--precision", "bf16", "--stochastic-rounding")

    def test_from_either_hosts_address_while_steps_go_on(self):
        folder, saved = self.folder(), []
        with two_hosts.TwoHosts(self, 1, 2, self.args, steps=5000) as pair:
            for host in (0, 1):
                pair.wait_for_step(pair.log.last_step() + 3)
                saved.append(pair.json(host, "save", folder, "--keep", 2, "--rate", "8M"))
            # In the place of one that is there; the oldest goes.
            saved.append(pair.json(1, "save", folder, "--keep", 2, "--tag", saved[1]["tag"]))
            pair.wait_for_step(saved[-1]["step"] + 1)
            self.stop(pair)
        self.assertEqual(sorted(os.listdir(folder)), sorted([saved[0]["tag"], saved[1]["tag"], "latest"]))
        for result in (saved[0], saved[2]):
            self.assertParts(folder, result["tag"])
            self.assertEqual(int(self.manifest(folder, result["tag"])["step"]), result["step"])
            undisturbed = self.one_host(2, 2, result["step"])
            restored = self.one_host(2, 1, result["step"], "--restore", folder, "--restore-tag", result["tag"])
            self.assertSameWeights(restored, undisturbed, result)


class RestoreTest(Saves):
    steps = 10

    def saved(self, folder, ranks, servers, *args):
        """Two hosts that save every fifth step: (losses, weights) of their end."""
        with two_hosts.TwoHosts(self, ranks, servers,
                                [*self.args, *args, "--save-checkpoint", folder, "--save-every", 5]) as pair:
            pair.finish()
            return pair.log.losses(), pair.weights()

    def restored(self, folder, ranks, servers, *args, steps=None):
        with two_hosts.TwoHosts(self, ranks, servers, [*self.args, *args, "--restore", folder], steps=steps) as pair:
            pair.finish()
            return pair.log.losses(), pair.weights()

    def check_goes_on(self, ranks, servers, *args):
        """Two hosts, then again two, and two, one and two: the bits of those that nobody disturbed."""
        folder, other = self.folder(), self.folder("one")
        losses, weights = self.saved(folder, ranks, servers, *args)
        got = self.restored(folder, ranks, 3 - servers, *args, "--restore-tag", "step-5")
        self.assertEqual(got[0], losses[5:])
        self.assertSameWeights(got[1], weights)
        more = ["--restore", folder, "--restore-tag", "step-5", "--save-checkpoint", other, "--save-every", 7]
        with self.job(2 * ranks, 3, [*self.args, *args, *more],
                      run_args=["--reduce-groups", self.groups(2 * ranks)]) as job:
            job.finish()
        got = self.restored(other, ranks, servers, *args, "--restore-tag", "step-7")
        self.assertEqual(got[0], losses[7:])
        self.assertSameWeights(got[1], weights)

    def test_goes_on(self):
        self.check_goes_on(1, 1)

    def test_goes_on_in_fp16_with_two_ranks_and_servers_each(self):
        self.check_goes_on(2, 2, "--precision", "fp16", "--schedule", "cosine")

    def test_saved_again_as_restored(self):
        """No step in between: all that was read stands on both hosts."""
        folder, again = self.folder(), self.folder("again")
        self.saved(folder, 1, 1)
        with two_hosts.TwoHosts(self, 1, 1, [*self.args, *self.linger, "--restore", folder]) as pair:
            pair.wait_for("the values", lambda: ("restored step" in pair.output("stderr", 0) and
                                                 "has its part" in pair.logs(1)))
            pulled = self.pulled(lambda *a: pair.json(1, *a), pair.dir, self.steps)
            self.assertEqual(pair.json(1, "save", again)["step"], self.steps)
            self.stop(pair)
        self.assertSameWeights(pulled, self.one_host(2, 2, self.steps))
        self.assertSameWeights(self.one_host(2, 2, self.steps + 2, "--restore", again),
                               self.one_host(2, 2, self.steps + 2))

    def test_weights_only_begins_anew(self):
        folder = self.folder()
        self.saved(folder, 1, 1)
        _, weights = self.restored(folder, 1, 1, "--weights-only", steps=3)
        with self.job(2, 2, [*self.args, "--restore", folder, "--weights-only"], steps=3,
                      run_args=["--reduce-groups", "1,1"]) as job:
            self.assertSameWeights(weights, job.finish().weights())

    def test_whoever_dies_while_the_job_begins(self):
        folder = self.folder()
        losses, weights = self.saved(folder, 1, 1)
        more = ["--restore", folder, "--restore-tag", "step-5"]
        with two_hosts.TwoHosts(self, 1, 1, [*self.args, *more]) as pair:
            pair.kill(1, "trainer")
            pair.kill(1, "server")
            pair.kill(0, "server")
            pair.kill(0, "trainer")
            pair.finish()
            self.assertEqual(pair.log.losses(), losses[5:])
            self.assertSameWeights(pair.weights(), weights)


class RunningTest(Saves):
    steps = 10
    still = ["--lr", 0, "--weight-decay", 0]

    def check_restores(self, folder, servers, disturb=lambda pair: None, args=()):
        """Into a job whose steps change no parameter, from either host: both hosts' trainers go on with the checkpoint's."""
        with two_hosts.TwoHosts(self, 1, servers, [*self.args, *args, *self.still], steps=5000) as pair:
            for host in (1, 0):
                pair.wait_for_step(pair.log.last_step() + 3)
                restoring = subprocess.Popen(
                    [harness.program(harness.SHERD), "restore", folder, "--json"],
                    env=harness.environment({"SHERD_SHM_ROOT": pair.places[host].shm}), stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
                self.addCleanup(restoring.stdout.close)
                disturb(pair)
                self.assertEqual(restoring.wait(timeout=harness.LIMIT), 0, restoring.stdout)
                restored = json.loads(restoring.stdout.read())
                self.assertEqual((restored["saved_step"], restored["missing"], restored["extra"]), (10, [], []))
            last = restored["step"] + 3
            pair.wait_for_step(last)
            path = os.path.join(pair.dir, "pulled.safetensors")
            step = pair.json(1, "pull", path, "--with-optimizer")["step"]
            pulled = safetensors.read(path)[0]
            losses = pair.log.losses()
            self.stop(pair)
            for host in (0, 1):
                self.assertEqual(glob.glob("%s/sherd-*/*/import.*" % pair.places[host].shm), [])
        with self.job(2, 2, [*self.args, *args, *self.still, "--restore", folder, "--weights-only"], steps=last,
                      run_args=["--reduce-groups", "1,1"]) as job:
            weights = job.finish().weights()
            self.assertEqual(losses[restored["step"]:last], job.log.losses()[restored["step"]:])
        self.assertSameWeights({name: pulled[name] for name in weights}, weights)
        self.assertEqual(pulled["step/ln_f.bias"].floats(), [10 + step - restored["step"]])

    def test_restores_a_running_job(self):
        folder = self.folder()
        with self.job(2, 3, [*self.args, "--save-checkpoint", folder]) as job:
            job.finish()
        self.check_restores(folder, 2)
        self.check_restores(folder, 1, args=["--precision", "bf16"])

    def test_a_server_dies_while_it_reads(self):
        folder = self.folder()
        with two_hosts.TwoHosts(self, 1, 1, [*self.args, "--save-checkpoint", folder]) as pair:
            pair.finish()
        self.check_restores(folder, 1, lambda pair: pair.kill(1, "server"))


class TroubleTest(Saves):
    steps = 10

    def start_save(self, pair, asked, folder, tag):
        """A slow save, once host 1 is at work on its part."""
        saving = subprocess.Popen(
            [harness.program(harness.SHERD), "save", folder, "--rate", "2M", "--tag", tag],
            env=harness.environment({"SHERD_SHM_ROOT": pair.places[asked].shm}), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        self.addCleanup(saving.stdout.close)

        def at_work():
            for name in os.listdir(folder) if os.path.isdir(folder) else []:
                with contextlib.suppress(FileNotFoundError):
                    if name.startswith(".saving") and any(
                            "part-00001" in part for part in os.listdir(os.path.join(folder, name))):
                        return True
            return False
        pair.wait_for("host 1 to write its part", at_work)
        return saving

    def test_a_server_dies_while_it_writes(self):
        """The next one of its host writes the part again; if it is the coordinator, the save begins again."""
        folder, tags = self.folder(), []
        with two_hosts.TwoHosts(self, 1, 1, self.args, steps=5000) as pair:
            pair.wait_for_step(2)
            for asked in (0, 1):
                for host in (0, 1):
                    tags.append("asked-%d-killed-%d" % (asked, host))
                    saving = self.start_save(pair, asked, folder, tags[-1])
                    pair.kill(host, "server")
                    self.assertEqual(saving.wait(timeout=harness.LIMIT), 0, (tags[-1], saving.stdout.read()))
            self.stop(pair)
        self.assertEqual(sorted(os.listdir(folder)), sorted([*tags, "latest"]))
        for tag in tags:
            self.assertParts(folder, tag)
        for tag in (tags[1], tags[-1]):
            step = int(self.manifest(folder, tag)["step"])
            undisturbed = self.one_host(2, 2, step)
            restored = self.one_host(2, 2, step, "--restore", folder, "--restore-tag", tag)
            self.assertSameWeights(restored, undisturbed, tag)

    def test_a_host_that_does_not_see_the_directory(self):
        """Its name, and what to do; the checkpoint of before stays, and nothing else."""
        shared, apart = self.folder("shared"), self.apart()
        folder = os.path.join(apart, "ck")
        with two_hosts.TwoHosts(self, 1, 1, self.args, steps=5000) as pair:
            pair.wait_for_step(2)
            tag = pair.json(0, "save", folder)["tag"]
            self.stop(pair)
        with self.pair_apart(apart, []) as pair:
            for host in (0, 1):
                pair.wait_for_step(pair.log.last_step() + 3)
                done = pair.cli(host, "save", folder)
                self.assertEqual(done.status, 1, done)
                self.assertRegex(done.stderr, r"\A[^\n]*host 1 does not see [^\n]*%s: save into a directory of a file "
                                 r"system that all hosts share[^\n]*\n\Z" % folder)
            self.assertEqual(sorted(os.listdir(folder)), sorted(["latest", tag]))
            self.assertParts(folder, tag)
            pair.json(1, "save", shared)
            done = pair.cli(1, "restore", folder)
            self.assertEqual(done.status, 1, done)
            self.assertRegex(done.stderr, r"\A[^\n]*host 1 does not see the checkpoint: [^\n]*%s[^\n]*\n\Z" % folder)
            self.stop(pair)
        with self.pair_apart(apart, ["--save-checkpoint", folder, "--save-every", 4]) as pair:
            # Training goes on without its checkpoint.
            pair.wait_for("the trainer's save", lambda: "not saved: host 1 does not see" in pair.output("stderr", 0))
            pair.wait_for_step(pair.log.last_step() + 3)
            self.stop(pair)
        self.assertEqual([name for name in sorted(os.listdir(folder)) if name[0] != "."], ["latest", tag])

    def test_a_host_that_does_not_see_the_checkpoint(self):
        apart = self.apart()
        folder = os.path.join(apart, "ck")
        with two_hosts.TwoHosts(self, 1, 1, [*self.args, "--save-checkpoint", folder], steps=4) as pair:
            pair.finish()
        with self.pair_apart(apart, ["--restore", folder]) as pair:
            for process in pair.processes:
                harness.wait_for("the end of both hosts", lambda: process.poll() is not None)
                self.assertEqual(process.returncode, 1)
            self.assertRegex(pair.output("stderr", 1), r"(?m)^[^\n]*train_gpt: host 1 does not see the checkpoint: "
                             r"[^\n]*%s[^\n]* a file system that all hosts share" % folder)

    def apart(self):
        """A directory that another host may see otherwise."""
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            raise unittest.SkipTest("a host with files of its own needs root and unshare")
        path = self.folder("apart")
        os.mkdir(path)
        return path

    def pair_apart(self, apart, args):
        """Two hosts, the second of which has another file system at `apart`."""
        pair = two_hosts.TwoHosts(self, 1, 1, [*self.args, *args], steps=5000)
        pair.commands[1] = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs apart "$0" && exec "$@"', apart,
                            *pair.commands[1]]
        return pair


if __name__ == "__main__":
    harness.main()
