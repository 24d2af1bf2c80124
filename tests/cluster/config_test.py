"""Jobs started with DeepSpeed's configuration: files as others ship them train, wrong ones are one line."""
import glob
import json
import os

from tests.cluster import harness


def shipped(name):
    return harness.program("client/config/testdata/%s.json" % name)


class ConfigTest(harness.ClusterTest):
    steps = 12

    def write(self, **config):
        path = os.path.join(self.dir, "ds.json")
        with open(path, "w") as f:
            json.dump(config, f)
        return path

    def configured(self, path, args=(), trainers=2):
        return self.job(trainers, 2, args, run_args=["--config", path])

    def test_shipped_files_train(self):
        with self.job(2, 2, ["--stage", 2]) as plain:
            want = plain.finish()
        for name in ("stage0", "stage2", "stage2_offload", "stage3", "stage3_offload"):
            with self.subTest(name), self.configured(shipped(name)) as job:
                job.finish()
                # Everything "auto" is what the flags have, and no stage changes a bit.
                self.assertEqual(job.log.losses(), want.log.losses())
                self.assertSameWeights(job.weights(), want.weights())
                said = [line for line in job.output("stderr").splitlines() if line.startswith("sherd run: ")]
                self.assertTrue(all(name in line for line in said), said)

    def test_schedulers_and_fp16(self):
        for name in ("stage1_scheduler", "stage3_offload_scheduler"):
            with self.subTest(name), self.configured(shipped(name), ["--lr", "0.004"]) as job:
                job.finish()
                records = job.log.records()
                self.assertEqual(sorted(records), list(range(1, self.steps + 1)))
                rates = [records[s]["lr"] for s in sorted(records) if not records[s].get("skipped")]
                self.assertEqual(rates[0], 0)  # warm-up begins there
                self.assertEqual(max(rates), 0.004)
                self.assertEqual(rates[-1] < 0.004, "stage1" in name)  # WarmupDecayLR falls, WarmupLR stays
                self.assertLess(records[self.steps]["loss"], records[1]["loss"])

    def test_cycle_and_range_test(self):
        third, half = (1e-3 - 1e-4) / 3, (1e-3 - 1e-4) / 2
        for name, want in (
                ("one_cycle", [1e-4] * 2 + [1e-4 + third] * 2 + [1e-4 + 2 * third] * 2 + [1e-3] + [1e-4 + half] * 2 +
                 [1e-4] * 2 + [8e-5]),
                ("lr_range_test", [1e-4 * (1 + 5 * n / 4) for n in range(12)])):
            with self.subTest(name), self.configured(shipped(name)) as job:
                records = job.finish().log.records()
                for step, rate in enumerate(want, 1):
                    self.assertAlmostEqual(records[step]["lr"], rate, delta=1e-12, msg=step)

    def test_precision(self):
        for section, dtype in (("bf16", "bf16"), ("fp16", "fp16")):
            config = {section: {"enabled": True}, "zero_optimization": {"stage": 2}}
            if dtype == "fp16":
                config[section].update(initial_scale_power=10)
            with self.subTest(dtype), self.job(2, 1, ["--precision", dtype, "--stage", 2] + (
                    ["--loss-scale", 1024] if dtype == "fp16" else [])) as job:
                want = job.finish().weights()
            # No overflow at this scale, so dynamic and static are the same steps.
            with self.subTest(dtype + " by configuration"), self.configured(self.write(**config)) as job:
                self.assertSameWeights(job.finish().weights(), want)

    def test_values_of_a_file_are_those_of_flags(self):
        flags = ["--stage", 1, "--clip", "0.5", "--accumulation", 2, "--optimizer", "sgd", "--lr", "0.05",
                 "--weight-decay", "0.01"]
        with self.job(2, 2, flags) as job:
            want = job.finish().weights()
        path = self.write(
            train_batch_size=4, gradient_accumulation_steps=2, gradient_clipping=0.5, zero_optimization={"stage": 1},
            optimizer={"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}})
        with self.configured(path) as job:
            self.assertSameWeights(job.finish().weights(), want)

    def test_wrong_files_are_one_line(self):
        cases = [
            ("did you mean \"zero_optimization.stage\"", dict(zero_optimization={"stagee": 2})),
            ("zero_optimization.stage is \"two\": it must be an integer in 0..3",
             dict(zero_optimization={"stage": "two"})),
            ("4 x 2 x 2 is 16, not 30", dict(train_batch_size=30, train_micro_batch_size_per_gpu=4,
                                           gradient_accumulation_steps=2)),
            ("keep one", dict(fp16={"enabled": True}, bf16={"enabled": True})),
            ("tensor parallelism is not there", dict(tensor_parallel={"autotp_size": 2})),
        ]
        for named, config in cases:
            with self.subTest(named):
                done = harness.run(harness.SHERD, "run", "-n", 2, "--job", "cfg", "--config", self.write(**config),
                                   "--", harness.program(harness.TRAIN))
                self.assertFails(done, 1, named)
                self.assertEqual(harness.left_over("cfg"), [])
        done = harness.run(harness.SHERD, "run", "-n", 2, "--config", "/no/such.json", "--", "true")
        self.assertFails(done, 1, "/no/such.json")
        with self.configured(self.write(gradient_clipping=0.25), ["--clip", 2]) as job:
            job.finish(status=1)
            lines = [line for line in job.output("stderr").splitlines() if "train_gpt:" in line]
            self.assertTrue(lines and all("--clip says 2" in line and "0.25" in line for line in lines), lines)


class PlanTest(harness.ClusterTest):
    steps = 5000

    def test_plan_of_a_running_job_is_what_it_has_reserved(self):
        with self.job(2, 1, ["--stage", 2]) as job:
            job.wait_for_step(2)
            plan = job.json("plan", "--stage", 2)
            self.assertEqual(plan["job"]["stage"], 2)
            segments = plan["plans"][0]["sherd"]["segments"]
            for name in ("plane.param", "plane.exp_avg", "plane.exp_avg_sq", "grad", "stamps", "staging"):
                files = glob.glob(os.path.join(job.job_dir(), name + ("*" if name == "staging" else "")))
                self.assertTrue(files, name)
                # A file is its segment in whole pages, and one page that says what it is.
                reserved = sum(os.stat(path).st_size - 4096 for path in files)
                self.assertLessEqual(segments[name], reserved, name)
                self.assertLess(reserved, segments[name] + 4096 * len(files), name)
            text = job.cli("plan").stdout
            self.assertIn("2*", text)
            self.assertFails(job.cli("plan", "--world", 3), 1, "--world")
            job.process.send_signal(2)
            job.finish(status=128 + 2)

    def test_usage(self):
        for named, *flags in [("--params", "--params", "7.5Q"), ("give one", "--params", "1B", "--model", "x"),
                              ("--stage", "--params", "1B", "--stage", 4),
                              ("--local-world", "--params", "1B", "--world", 2, "--local-world", 3),
                              ("--endpoint", "--params", "1B", "--endpoint", "unix:x")]:
            with self.subTest(named):
                self.assertFails(harness.run(harness.SHERD, "plan", *flags), 2, named)
        self.assertFails(harness.run(harness.SHERD, "plan", "--model", "/no/such"), 1, "/no/such")


if __name__ == "__main__":
    harness.main()
