#!/usr/bin/env python3
"""The files of deploy/ as far as they can be checked without the systems that they are for."""
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(os.path.realpath(__file__)).parent.parent
DEPLOY = ROOT / "deploy"

try:
    import yaml
except ImportError:
    yaml = None


def options_of(*sources):
    """Long flags that the programs declare, as their sources say."""
    found = set()
    for source in sources:
        text = (ROOT / source).read_text(encoding="utf-8")
        for names in re.findall(r'add_(?:option|flag)\(\s*"([^"]*)"', text):
            found.update(re.findall(r"--[a-z-]+", names))
    return found


SHERD = options_of("client/cli/main.cc")
SHERDD = options_of("server/sherdd_main.cc")
TRAIN = options_of("client/examples/train_options.cc")


class Deploy(unittest.TestCase):

    def run_tool(self, *command):
        if shutil.which(command[0]) is None:
            self.skipTest("%s is not installed" % command[0])
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")

    def test_systemd_units(self):
        units = sorted((DEPLOY / "systemd").glob("*.service"))
        self.assertEqual(len(units), 2)
        with tempfile.TemporaryDirectory() as there:
            for unit in units:
                # What is to be installed is not installed here.
                text = unit.read_text(encoding="utf-8").replace("/usr/local/bin/sherdd", "/bin/true")
                (pathlib.Path(there) / unit.name).write_text(text.replace("/usr/local/bin/sherd", "/bin/true"))
            done = self.run_tool("systemd-analyze", "verify", *(os.path.join(there, u.name) for u in units))
            # It looks at the machine's other units too.
            ours = [line for line in done.stdout.splitlines() if "sherd" in line]
            self.assertEqual(ours, [])

    def test_shell_scripts(self):
        scripts = [*DEPLOY.glob("*.sh"), *(DEPLOY / "slurm").iterdir()]
        self.assertGreaterEqual(len(scripts), 2)
        for script in scripts:
            done = self.run_tool("bash", "-n", str(script))
            self.assertEqual((done.returncode, done.stdout), (0, ""), script)

    def test_slurm_script_says_how_it_is_used(self):
        done = self.run_tool("bash", str(DEPLOY / "slurm" / "train.sbatch"))
        self.assertEqual(done.returncode, 2, done.stdout)
        self.assertIn("usage: sbatch train.sbatch", done.stdout)

    @unittest.skipIf(yaml is None, "python3-yaml is not installed")
    def test_kubernetes(self):
        kinds = {}
        for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
            for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
                self.assertIn("apiVersion", document, path)
                self.assertIn("name", document["metadata"], path)
                kinds.setdefault(document["kind"], []).append(document)
        pod = kinds["Job"][0]["spec"]["template"]["spec"]
        container = pod["containers"][0]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        self.assertEqual(volumes[mounted["/dev/shm"]]["emptyDir"]["medium"], "Memory")
        self.assertEqual(sorted(volumes), sorted(mounted.values()))
        done = self.run_tool("bash", "-n", "-c", container["args"][0])
        self.assertEqual((done.returncode, done.stdout), (0, ""))
        etcd = kinds["StatefulSet"][0]
        self.assertEqual(etcd["spec"]["serviceName"], kinds["Service"][0]["metadata"]["name"])
        self.assertEqual(etcd["spec"]["selector"]["matchLabels"], etcd["spec"]["template"]["metadata"]["labels"])

    def test_flags_exist(self):
        known = SHERD | SHERDD | TRAIN | {"--help"}
        self.assertIn("--save-checkpoint", TRAIN)
        for path in (DEPLOY / "systemd" / "sherdd@.service", DEPLOY / "systemd" / "sherd-run@.service",
                     DEPLOY / "kubernetes" / "job.yaml", DEPLOY / "slurm" / "train.sbatch"):
            text = path.read_text(encoding="utf-8")
            used = {flag for line in text.splitlines() if not line.startswith("#SBATCH")
                    for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)}
            self.assertEqual(sorted(used - known), [], path)

    def test_container(self):
        text = (DEPLOY / "container" / "Containerfile").read_text(encoding="utf-8")
        # Lines that the last goes on in are one.
        steps = [line.split()[0] for line in re.sub(r"\\\n", " ", text).splitlines()
                 if line.strip() and not line.startswith("#")]
        self.assertEqual(set(steps) - {"FROM", "RUN", "WORKDIR", "COPY", "USER", "CMD"}, set())
        self.assertEqual(steps[0], "FROM")
        for target in re.findall(r"//([\w/]+):(\w+)", text):
            self.assertIn('name = "%s"' % target[1], (ROOT / target[0] / "BUILD").read_text(encoding="utf-8"))


if __name__ == "__main__":
    unittest.main()
