"""Tests of test_summary.py: a stand-in for bazel writes the build events of a run."""
import contextlib
import io
import json
import os
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import test_summary  # noqa: E402  (found by the line above)

PASSED, FAILED, SKIPPED = "", "<failure message='x&#10; y'/>", "<skipped/>"


class Run:
    """A directory with a `bazel` that reports the given events and exits with the given status."""

    def __init__(self, directory, events, status):
        self.dir = pathlib.Path(directory)
        (self.dir / "events").write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in events))
        bazel = self.dir / "bazel"
        bazel.write_text("#!/bin/sh\nfor a; do case $a in --build_event_json_file=*) cp " +
                         f"'{self.dir}/events' \"${{a#*=}}\";; esac; done\necho \"$@\" >'{self.dir}/args'\n"
                         f"exit {status}\n")
        bazel.chmod(0o755)

    def main(self, *argv):
        """(exit status, lines printed)"""
        out, path = io.StringIO(), os.environ["PATH"]
        os.environ["PATH"] = f"{self.dir}:{path}"
        try:
            with contextlib.redirect_stdout(out):
                status = test_summary.main(list(argv))
        finally:
            os.environ["PATH"] = path
        return status, out.getvalue().splitlines()


class TestSummary(unittest.TestCase):

    def setUp(self):
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.dir = pathlib.Path(tmp.name)

    def result(self, label, status, *cases, shard=0):
        xml = self.dir / f"{label.strip('/').replace('/', '_').replace(':', '_')}.{shard}.xml"
        xml.write_text("<testsuites><testsuite>" + "".join(f"<testcase classname='K' name='c'>{c}</testcase>" for c in cases) +
                       "</testsuite></testsuites>")
        return {"id": {"testResult": {"label": label, "run": 1, "shard": shard}},
                "testResult": {"status": status, "testActionOutput": [{"name": "test.xml", "uri": xml.as_uri()}]}}

    def run_with(self, events, status=0, args=("run",)):
        return Run(self.dir, events, status).main(*args)

    def test_counts_cases(self):
        events = [self.result("//a:t", "PASSED", PASSED, PASSED, SKIPPED),
                  self.result("//b:t", "PASSED", PASSED, shard=1), self.result("//b:t", "PASSED", PASSED, shard=2)]
        self.assertEqual(self.run_with(events), (0, ["4 passed, 0 failed, 1 skipped"]))

    def test_failed_cases_are_named_with_what_they_say(self):
        events = [self.result("//a:t", "FAILED", PASSED, FAILED, "<failure message='%s'/>" % ("b" * 9999 + "e"))]
        status, lines = self.run_with(events, 3)
        self.assertEqual((status, lines[1:]), (1, ["FAILED //a:t K.c: x y", "1 passed, 2 failed, 0 skipped"]))
        self.assertRegex(lines[0], r"^FAILED //a:t K.c: b{300} \[...\] b{299}e$")

    def test_a_crash_or_time_out_is_one_failure(self):
        torn = self.result("//b:t", "TIMEOUT")
        pathlib.Path(self.dir / "b_t.0.xml").write_text("<testsuites><tests")
        events = [self.result("//a:t", "FAILED", PASSED), torn]
        self.assertEqual(self.run_with(events, 3)[1],
                         ["FAILED //a:t FAILED", "FAILED //b:t TIMEOUT", "1 passed, 2 failed, 0 skipped"])

    def test_what_does_not_build_is_one_failure(self):
        events = [self.result("//a:t", "PASSED", PASSED),
                  {"id": {"targetCompleted": {"label": "//b:t"}}, "completed": {}},
                  {"id": {"testSummary": {"label": "//b:t"}}, "testSummary": {"overallStatus": "NO_STATUS"}}]
        self.assertEqual(self.run_with(events, 1), 
                         (1, ["FAILED //b:t does not build", "1 passed, 1 failed, 0 skipped"]))

    def test_bazel_that_fails_without_a_word_is_one_failure(self):
        self.assertEqual(self.run_with([], 2), (1, ["0 passed, 1 failed, 0 skipped"]))
        self.assertEqual(self.run_with([self.result("//a:t", "PASSED", PASSED), '{"id": {"tor'], 8)[1][-1],
                         "1 passed, 1 failed, 0 skipped")

    def test_a_later_attempt_counts(self):
        events = [self.result("//a:t", "FAILED", FAILED), self.result("//a:t", "PASSED", PASSED)]
        self.assertEqual(self.run_with(events), (0, ["1 passed, 0 failed, 0 skipped"]))

    def test_nothing_passed_is_not_good(self):
        self.assertEqual(self.run_with([self.result("//a:t", "PASSED", SKIPPED)])[0], 1)

    def test_arguments_go_to_bazel(self):
        self.run_with([], 0, ("run", "--stage", "x", "--", "--config=y", "--", "//a/...", "-//a/b"))
        args = (self.dir / "args").read_text()
        self.assertIn("test --keep_going --build_event_json_file=", args)
        self.assertTrue(args.endswith("--config=y -- //a/... -//a/b\n"), args)

    def test_total(self):
        tally = str(self.dir / "tally")
        self.run_with([self.result("//a:t", "PASSED", PASSED, SKIPPED)], 0,
                      ("run", "--tally", tally, "--stage", "tests"))
        self.run_with([], 0, ("add", "--tally", tally, "--stage", "format", "passed"))
        self.run_with([], 0, ("add", "--tally", tally, "--stage", "cuda", "skipped"))
        self.assertEqual(self.run_with([], 0, ("total", "--tally", tally)), (0, ["2 passed, 0 failed, 2 skipped"]))
        self.run_with([], 0, ("add", "--tally", tally, "--stage", "tidy", "failed"))
        self.assertEqual(self.run_with([], 0, ("total", "--tally", tally)),
                         (1, ["failed: tidy", "2 passed, 1 failed, 2 skipped"]))
        self.run_with([self.result("//b:t", "FAILED", FAILED)], 3, ("run", "--tally", tally, "--stage", "tests"))
        self.assertEqual(self.run_with([], 0, ("total", "--tally", tally)),
                         (1, ["FAILED tests: //b:t K.c: x y", "failed: tidy tests", "2 passed, 2 failed, 2 skipped"]))


if __name__ == "__main__":
    unittest.main()
