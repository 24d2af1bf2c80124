"""save and restore: any size, and every way in which a disk, a file or a person can be wrong.

    bazel test //tests/cluster:save_test [--test_arg=--seed=N]
    bazel run //tests/cluster:saves [-- --seed=N]       every pair of sizes; 20 kills
"""
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import unittest.mock

from tests.cluster import harness
from tests.cluster import safetensors

FULL = "--full" in sys.argv
KILLS = 20 if FULL else 3


class SaveCase(harness.ClusterTest):
    steps = 20
    args = ["--stage", 2, "--accumulation", 2]

    def folder(self, name="ck"):
        """A new directory for checkpoints."""
        self.folders = getattr(self, "folders", 0) + 1
        return os.path.join(self.dir, "%s-%s-%d" % (self.id().rpartition(".")[2][:40], name, self.folders))

    def saved(self, folder, trainers=2, servers=2, **more):
        """A job that was saved at steps 10 and 20; its undisturbed end."""
        with self.job(trainers, servers, [*self.args, "--save-checkpoint", folder, "--save-every", 10], **more) as job:
            return job.finish()

    def manifest(self, folder, tag):
        with open(os.path.join(folder, tag, "manifest.json")) as f:
            return json.load(f)["manifest"]

    def restored(self, folder, trainers=2, servers=2, *args, **more):
        with self.job(trainers, servers, [*self.args, "--restore", folder, *args], **more) as job:
            return job.finish()

    def another_model(self):
        """With twice the context its table of positions has another shape."""
        return unittest.mock.patch.object(type(self), "context", 2 * type(self).context)

    def assertDoesNotRestore(self, folder, named, *args):
        """A job that is to begin from there fails, and says why in one line."""
        with self.job(1, 2, [*self.args, "--restore", folder, *args]) as job:
            job.finish(status=1)
            lines = [line for line in job.output("stderr").splitlines() if line.startswith("train_gpt: ")]
            self.assertEqual(len(lines), 1, job.output("stderr"))
            self.assertIn(named, lines[0])
            return lines[0]


class SizesTest(SaveCase):

    def test_any_size(self):
        """Saved at W = 2, M = 2. The same W goes on bit for bit, whatever M; another W within rounding."""
        folder = self.folder()
        whole = self.saved(folder)
        self.assertEqual(sorted(os.listdir(folder)), ["latest", "step-10", "step-20"])
        with open(os.path.join(folder, "latest")) as f:
            self.assertEqual(f.read(), "step-20\n")
        self.assertEqual(int(self.manifest(folder, "step-10")["step"]), 10)
        sizes = [(w, m) for w in (1, 2, 3, 4) for m in (1, 2, 3, 4)] if FULL else [
            (2, 2), (2, 1), (2, 3), (1, 2), (3, 4), (4, 1)]
        for trainers, servers in sizes:
            with self.subTest(trainers=trainers, servers=servers):
                job = self.restored(folder, trainers, servers, "--restore-tag", "step-10")
                self.assertEqual(min(job.log.records()), 11)
                if trainers == 2:
                    self.assertSameWeights(job.weights(), whole.weights())
                    self.assertEqual(job.log.losses(), whole.log.losses()[10:])
                else:
                    self.assertCloseLosses(job.log.losses(), whole.log.losses()[10:], 1e-5)
                    # The smallest differences of sums come through the square root of a second moment.
                    self.assertCloseWeights(job.weights(), whole.weights(), 1e-3)

    def test_any_optimizer_and_precision(self):
        """Other planes, a schedule, a loss scale, 16-bit parameters that are made anew: bit for bit."""
        for optimizer, precision, schedule in [("lamb", "fp32", "OneCycle"), ("muon", "bf16", "cosine"),
                                               ("adamw", "fp16", "LRRangeTest")]:
            with self.subTest(optimizer=optimizer, precision=precision):
                how = ["--optimizer", optimizer, "--precision", precision, "--schedule", schedule]
                folder = self.folder()
                with self.job(2, 2, [*self.args, *how, "--save-checkpoint", folder, "--save-every", 10]) as job:
                    whole = job.finish()
                job = self.restored(folder, 2, 3, "--restore-tag", "step-10", *how)
                self.assertEqual(job.log.losses(), whole.log.losses()[10:])
                self.assertSameWeights(job.weights(), whole.weights())

    def test_parts_are_safetensors_and_hold_the_state(self):
        self.check_parts("fp32")

    def test_weights_in_16_bits_are_saved_as_masters(self):
        self.check_parts("bf16")

    def check_parts(self, precision):
        """Planes are put together from the parts; train_gpt --save wrote the same parameters."""
        folder = self.folder()
        with self.job(2, 3, [*self.args, "--save-checkpoint", folder, "--precision", precision]) as job:
            job.finish()
            weights = job.weights()
        manifest = self.manifest(folder, "step-20")
        self.assertEqual([p["name"] for p in manifest["parts"]], ["part-%05d-of-00003.safetensors" % i for i in range(3)])
        planes = {}
        for part in manifest["parts"]:
            tensors, metadata = safetensors.read(os.path.join(folder, "step-20", part["name"]))
            self.assertIn(" of 3", metadata["sherd_part"])
            for name, tensor in tensors.items():
                plane, unit = name.split("/")
                planes.setdefault((plane, int(unit)), b"")
                planes[plane, int(unit)] += tensor.data
        self.assertEqual({plane for plane, _ in planes}, {"param", "exp_avg", "exp_avg_sq"})
        for number, unit in enumerate(manifest["job"]["layout"]["units"]):
            at = 0
            for spec in unit["tensors"]:
                data = weights[spec["name"]].data
                self.assertEqual(planes["param", number][at:at + len(data)], data, spec["name"])
                at += (len(data) + 1023) // 1024 * 1024  # tensors begin at blocks of 256 elements

    def test_saved_again_as_restored(self):
        """Nothing gets lost on the way: what was restored and saved soon, at other sizes, goes on as what was saved."""
        folder, again = self.folder(), self.folder("again")
        self.saved(folder)
        with self.job(3, 3, [*self.args, "--restore", folder], steps=5000) as job:
            # A step is done: so the values are there. Its number alone may be there before them.
            job.wait_for("the first step", lambda: job.json("status")["step"] >= 21)
            saved = job.json("save", again)
            job.process.send_signal(signal.SIGINT)
            job.finish(status=128 + signal.SIGINT)
        # As many steps later as it took: the same as a run that goes on from there by itself.
        with self.job(3, 1, [*self.args, "--restore", folder], steps=saved["step"] + 5) as job:
            want = job.finish().weights()
        self.assertSameWeights(self.restored(again, 3, 2, steps=saved["step"] + 5).weights(), want)

    def test_weights_only_begins_anew(self):
        folder = self.folder()
        self.saved(folder)
        job = self.restored(folder, 2, 2, "--weights-only", "--lr", 0, "--weight-decay", 0, steps=3)
        self.assertEqual(sorted(job.log.records()), [1, 2, 3])
        whole = self.restored(folder, 1, 1, "--lr", 0, "--weight-decay", 0, steps=20)
        self.assertSameWeights(job.weights(), whole.weights())

    def test_partial_match_is_reported(self):
        """A model with another context: the table of positions differs, the rest is restored."""
        folder = self.folder()
        self.saved(folder)
        with self.another_model():
            self.assertDoesNotRestore(folder, "wpe")
            with self.job(1, 1, [*self.args, "--restore", folder, "--partial", "--weights-only", "--lr", 0,
                                 "--weight-decay", 0], steps=1) as job:
                job.finish()
                self.assertIn("of another shape, begin with initial values: wpe", job.output("stderr"))
                got = job.weights()
            with self.job(1, 1, [*self.args, "--lr", 0, "--weight-decay", 0], steps=1) as job:
                fresh = job.finish().weights()
        kept = self.restored(folder, 1, 1).weights()  # no step is left to do
        for name in got:
            self.assertEqual(got[name], (fresh if name.startswith("wpe") else kept)[name], name)


class RunningTest(SaveCase):

    def test_save_and_restore_a_running_job(self):
        folder = self.folder()
        with self.job(2, 2, self.args, steps=5000) as job:
            job.wait_for_step(3)
            first = job.json("save", folder, "--keep", 2, "--rate", "8M")
            job.wait_for_step(first["step"] + 5)
            restored = job.json("restore", folder)
            self.assertEqual((restored["saved_step"], restored["missing"], restored["extra"]), (first["step"], [], []))
            self.assertGreater(restored["step"], first["step"])
            # Resizes, deaths and more saves; the newest two stay.
            job.json("resize", "--servers", 1)
            second = job.json("save", folder, "--keep", 2)
            third = job.json("save", folder, "--keep", 2, "--tag", "by-hand")
            self.assertEqual(third["removed"], [first["tag"]])
            self.assertEqual(sorted(os.listdir(folder)), sorted(["latest", second["tag"], "by-hand"]))
            self.assertGreater(third["step"], second["step"])
            self.assertEqual(len(self.manifest(folder, "by-hand")["parts"]), 1)
            job.process.send_signal(signal.SIGINT)
            job.finish(status=128 + signal.SIGINT)
        # What was saved while steps went on is one step, whole: it goes on as the job did.
        steps = third["step"] + 3
        want = self.restored(folder, 2, 1, "--restore-tag", second["tag"], steps=steps).weights()
        with self.subTest("only if nothing was restored in between"):
            self.assertSameWeights(self.restored(folder, 2, 3, steps=steps).weights(), want)

    def test_a_server_dies_while_it_writes(self):
        """The coordinator stands in for another server; when it dies itself, the save begins again."""
        folder = self.folder()
        with self.job(2, 2, self.args, steps=5000) as job:
            job.wait_for_step(2)
            for number in (0, 1):
                saving = job.start_cli("save", folder, "--rate", "2M", "--tag", "kill-%d" % number)
                job.wait_for("the save to have begun", lambda: any(
                    name.startswith(".saving") for name in os.listdir(folder)) if os.path.isdir(folder) else False)
                job.kill("server", number)
                self.assertEqual(saving.wait(timeout=harness.LIMIT), 0)
            job.process.send_signal(signal.SIGINT)
            job.finish(status=128 + signal.SIGINT)
        self.assertEqual(sorted(os.listdir(folder)), ["kill-0", "kill-1", "latest"])
        for tag in ("kill-0", "kill-1"):
            step = int(self.manifest(folder, tag)["step"])
            self.restored(folder, 2, 1, "--restore-tag", tag, steps=step + 2)


    def test_a_trainer_dies_between_asking_and_the_cut(self):
        """Its successor asks for the same: every checkpoint is there, of a training as if nothing had happened."""
        folder, want = self.folder(), self.saved(self.folder("whole"))
        asked = lambda: any(name.startswith(".saving") for name in os.listdir(folder))
        with self.job(2, 2, [*self.args, "--save-checkpoint", folder, "--save-every", 1]) as job:
            job.wait_for_step(3)
            # Without the other no step ends: rank 0 asks for the one in hand, and waits.
            job.signal("trainer", 1, signal.SIGSTOP)
            newest = "step-%d" % job.json("status")["step"]
            job.wait_for("the save of the step in hand", lambda: os.path.isdir(os.path.join(folder, newest)) and asked())
            job.kill("trainer", 0)
            job.signal("trainer", 1, signal.SIGCONT)
            job.finish()
            self.assertNotIn("not saved", job.output("stderr"))
            self.assertSameWeights(job.weights(), want.weights())
        self.assertEqual(sorted(os.listdir(folder)), sorted(["latest", *("step-%d" % s for s in range(1, 21))]))

    def test_a_trainer_dies_around_the_last_save(self):
        """However far it came: when training has ended there is a checkpoint of its last step."""
        seed = harness.seed()
        for number in range(3):
            rng = random.Random("%d %d" % (seed, number))
            folder = self.folder()
            with self.subTest(seed=seed, number=number):
                with self.job(2, 2, [*self.args, "--save-checkpoint", folder], steps=8) as job:
                    job.wait_for_step(7)
                    time.sleep(rng.random() * 0.06)  # chosen at random: waits for nothing
                    job.kill_if_running("trainer", 0)
                    job.finish()
                self.assertEqual(sorted(os.listdir(folder)), ["latest", "step-8"])
                self.assertEqual(int(self.manifest(folder, "step-8")["step"]), 8)


class KillTest(SaveCase):

    def test_kill_of_everything_at_random_instants(self):
        """The newest whole checkpoint restores, every time; the next save clears up."""
        seed = harness.seed()
        undisturbed = self.saved(self.folder("whole"), steps=60)
        for number in range(KILLS):
            rng = random.Random("%d %d" % (seed, number))
            folder = self.folder()
            with self.subTest(seed=seed, number=number):
                with self.job(2, 2, [*self.args, "--save-checkpoint", folder, "--save-every", 1], steps=5000,
                              run_args=["--restarts", 0]) as job:
                    job.wait_for_step(rng.randrange(2, 30))
                    time.sleep(rng.random() * 0.03)  # chosen at random: waits for nothing
                    job.process.kill()
                    for pid in harness.processes_of(job.name).values():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    job.process.wait()
                    harness.wait_for("all to be dead", lambda: not harness.processes_of(job.name))
                    for path in harness.left_over(job.name):
                        if path.startswith("/"):
                            shutil.rmtree(path, ignore_errors=True)
                with open(os.path.join(folder, "latest")) as f:
                    newest = f.read().strip()
                step = int(self.manifest(folder, newest)["step"])
                print("killed; latest is %s of %s" % (newest, sorted(os.listdir(folder))))
                more = ["--save-checkpoint", folder, "--keep", 1]
                job = self.restored(folder, 2, rng.choice([1, 2, 3]), *more, steps=60)
                self.assertEqual(min(job.log.records()), step + 1)
                self.assertSameWeights(job.weights(), undisturbed.weights())
                self.assertEqual(sorted(os.listdir(folder)), ["latest", "step-60"])


class DamageTest(SaveCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.good = os.path.join(cls.dir, "good")
        case = cls("test_damaged_files_are_named")
        case.saved(cls.good)

    def copy(self):
        folder = self.folder()
        shutil.copytree(self.good, folder)
        return folder

    def edit(self, path, change):
        with open(path, "r+b") as f:
            data = bytearray(f.read())
            data = change(data) or data
            f.seek(0)
            f.truncate()
            f.write(data)

    def test_damaged_files_are_named(self):
        part = "step-20/part-00001-of-00002.safetensors"
        state = "step-20/state.safetensors"
        manifest = "step-20/manifest.json"

        def flip(data):
            data[len(data) // 2] ^= 4

        def newer(data):
            return data.replace(b'"sherd_checkpoint":1', b'"sherd_checkpoint":2')

        cases = {
            "a bit of a part": (part, flip, part + " is damaged: bytes"),
            "a part cut short": (part, lambda d: d[:-100], part + " is damaged: it has"),
            "a manifest cut short": (manifest, lambda d: d[:-10], manifest + " is damaged"),
            "a bit of the manifest": (manifest, flip, manifest + " is damaged"),
            "an empty manifest": (manifest, lambda d: bytearray(b" "), manifest + " is damaged"),
            "a newer format": (manifest, newer, "has format 2 but this program reads up to 1"),
            "latest": ("latest", lambda d: bytearray(b"../..\n"), "latest is damaged"),
        }
        still = ["--lr", 0, "--weight-decay", 0]
        with self.job(1, 2, [*self.args, *still], steps=50000) as job:
            job.wait_for_step(1)
            before, after = os.path.join(job.dir, "before.safetensors"), os.path.join(job.dir, "after.safetensors")
            job.json("pull", before)
            for what, (name, change, named) in cases.items():
                with self.subTest(what):
                    folder = self.copy()
                    self.edit(os.path.join(folder, name), change)
                    done = job.cli("restore", folder)
                    self.assertFails(done, 1, named)
                    # What can be seen without reading all of it, is told with what would do.
                    self.assertTrue("step-10" in done.stderr or "a bit of a part" == what, done)
            for name in (part, state, manifest):
                with self.subTest("missing", name=name):
                    folder = self.copy()
                    os.remove(os.path.join(folder, name))
                    self.assertFails(job.cli("restore", folder), 1, name + " is missing")
            self.assertFails(job.cli("restore", folder + "x"), 1, folder + "x")
            job.json("pull", after)
            self.assertSameWeights(safetensors.read(after)[0], safetensors.read(before)[0], "half restored")
            # The one before is as good as ever.
            self.assertEqual(job.json("restore", folder, "--tag", "step-10")["saved_step"], 10)
            job.process.send_signal(signal.SIGINT)
            job.finish(status=128 + signal.SIGINT)

    def test_a_job_does_not_begin_from_damage(self):
        for name in ("step-20/part-00001-of-00002.safetensors", "step-20/state.safetensors"):
            with self.subTest(name):
                folder = self.copy()
                self.edit(os.path.join(folder, name), lambda d: d.__setitem__(len(d) // 2, d[len(d) // 2] ^ 1))
                self.assertDoesNotRestore(folder, name + " is damaged: bytes")
        self.restored(folder, 1, 1, "--restore-tag", "step-10")

    def test_wrong_places_and_models(self):
        none = self.folder("none")
        self.assertDoesNotRestore(none, none)
        os.mkdir(none)
        self.assertDoesNotRestore(none, "no save was completed there")
        self.assertDoesNotRestore(self.good, "there is no checkpoint", "--restore-tag", "step-7")
        self.assertDoesNotRestore(self.good, "tag", "--restore-tag", "../x")
        self.assertDoesNotRestore(os.path.join(self.good, "latest"), "it is no directory")
        with self.another_model():
            self.assertDoesNotRestore(self.good, "has shape")

    def test_where_nothing_can_be_saved(self):
        folder = self.copy()
        file = os.path.join(folder, "a-file")
        with open(file, "w") as f:
            f.write("mine\n")
        with self.job(1, 2, self.args, steps=5000) as job:
            job.wait_for_step(1)
            self.assertFails(job.cli("save", file), 1, "it is no directory")
            self.assertFails(job.cli("save", os.path.join(folder, "no", "where")), 1, "no such file or directory")
            self.assertFails(job.cli("save", "/proc/sherd"), 1, "/proc/sherd")
            self.assertFails(job.cli("save", folder, "--tag", ".hidden"), 1, "tag \".hidden\"")
            self.assertFails(job.cli("save", folder, "--tag", "a-file"), 1, "that is no directory")
            os.symlink("step-10", os.path.join(folder, "link"))
            self.assertFails(job.cli("save", folder, "--tag", "link"), 1, "that is no directory")
            # One server's part comes to an end in the middle, as on a disk that others fill.
            pid = job.pid("server", 1 - int(job.json("status")["coordinator"]["id"][1:]))
            before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 20, before[1]))
            self.assertFails(job.cli("save", folder, "--tag", "too-large"), 1, "larger than this file system or process")
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
            self.assertEqual(sorted(os.listdir(folder)), ["a-file", "latest", "link", "step-10", "step-20"])
            self.restored(folder, 1, 1, steps=22)
            # Through a link, over a checkpoint that is there; retention leaves what is not its own.
            link = self.folder("link")
            os.symlink(folder, link)
            with open(os.path.join(folder, "step-10", "notes.txt"), "w") as f:
                f.write("mine too\n")
            saved = job.json("save", link, "--tag", "step-20", "--keep", 1)
            self.assertEqual((saved["path"], saved["removed"]), (os.path.join(link, "step-20"), []))
            self.assertEqual(sorted(os.listdir(folder)), ["a-file", "latest", "link", "step-10", "step-20"])
            self.assertEqual(int(self.manifest(folder, "step-20")["step"]), saved["step"])
            job.process.send_signal(signal.SIGINT)
            job.finish(status=128 + signal.SIGINT)

    def test_full_disk(self):
        """A save for which there is no room says so, and what was saved there before stays."""
        disk = self.folder("disk")
        os.mkdir(disk)
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk]
        if os.geteuid() != 0 or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode != 0:
            self.skipTest("mounting a small file system takes root")
        self.addCleanup(subprocess.run, ["umount", disk], check=True)
        folder = os.path.join(disk, "ck")
        with self.job(1, 2, self.args, steps=50000) as job:
            job.wait_for_step(1)
            saved = job.json("save", folder)
            job.wait_for_step(saved["step"] + 1)
            self.assertFails(job.cli("save", folder), 1, "no space left on the device")
            self.assertEqual(sorted(os.listdir(folder)), ["latest", saved["tag"]])
            self.assertEqual(job.json("restore", folder)["saved_step"], saved["step"])
            job.process.send_signal(signal.SIGINT)
            job.finish(status=128 + signal.SIGINT)


if __name__ == "__main__":
    harness.main()
