"""save and restore of a job of two hosts: one part for each host, restored at any size; deaths, and folders apart.

    bazel test //tests/hosts:save_test
"""
import contextlib
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

    def one_host(self, trainers, servers, steps, *args, pull=True):
        """One host with the same reduction tree: (its weights at the end, all that a pull of the last step has)."""
        groups = "%d,%d" % (trainers // 2, trainers // 2)
        with self.job(trainers, servers, [*self.args, *args, *(self.linger if pull else [])], steps=steps,
                      run_args=["--reduce-groups", groups]) as job:
            everything = None
            if pull:
                # The number of a restored step may be there before its values.
                job.wait_for("the values", lambda: "--restore" not in args or "restored step" in job.output("stderr"))
                everything = self.pulled(job.json, job.dir, steps)
            return job.finish().weights(), everything

    def pulled(self, cli, folder, step):
        """All that a pull has once the job stands at `step`, its last."""
        harness.wait_for("step %d" % step, lambda: cli("status")["step"] >= step)
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
            pair.finish()
            self.assertNotIn("not saved", pair.output("stderr", 0))
            saved = pair.weights()
        self.assertEqual(sorted(os.listdir(folder)), ["latest", "step-10", "step-5"])
        for tag in ("step-5", "step-10"):
            self.assertParts(folder, tag)
        # At any number of servers of one host; and what is only restored is what was pulled.
        weights, restored = self.one_host(2 * ranks, 3, self.steps, *args, "--restore", folder)
        self.assertSameWeights(restored, everything)
        weights, restored = self.one_host(2 * ranks, 2, self.steps, *args, "--restore", folder, "--restore-tag", "step-5")
        self.assertSameWeights(restored, everything)
        self.assertSameWeights(weights, saved)

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
            _, undisturbed = self.one_host(2, 2, result["step"])
            _, restored = self.one_host(2, 1, result["step"], "--restore", folder, "--restore-tag", result["tag"])
            self.assertSameWeights(restored, undisturbed, result)


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
            _, undisturbed = self.one_host(2, 2, step)
            _, restored = self.one_host(2, 2, step, "--restore", folder, "--restore-tag", tag)
            self.assertSameWeights(restored, undisturbed, tag)

    def test_a_host_that_does_not_see_the_directory(self):
        """Its name, and what to do; the checkpoint of before stays, and nothing else."""
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            raise unittest.SkipTest("a host with files of its own needs root and unshare")
        shared, apart = self.folder("shared"), self.folder("apart")
        os.mkdir(shared)
        os.mkdir(apart)
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
            self.stop(pair)
        with self.pair_apart(apart, ["--save-checkpoint", folder, "--save-every", 4]) as pair:
            # Training goes on without its checkpoint.
            pair.wait_for("the trainer's save", lambda: "not saved: host 1 does not see" in pair.output("stderr", 0))
            pair.wait_for_step(pair.log.last_step() + 3)
            self.stop(pair)
        self.assertEqual([name for name in sorted(os.listdir(folder)) if name[0] != "."], ["latest", tag])

    def pair_apart(self, apart, args):
        """Two hosts, the second of which has another file system at `apart`."""
        pair = two_hosts.TwoHosts(self, 1, 1, [*self.args, *args], steps=5000)
        pair.commands[1] = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs apart "$0" && exec "$@"', apart,
                            *pair.commands[1]]
        return pair


if __name__ == "__main__":
    harness.main()
