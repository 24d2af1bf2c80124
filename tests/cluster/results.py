"""Results of a Python test in the XML file that Bazel wants."""
import time
import unittest
import xml.sax.saxutils


class Result(unittest.TextTestResult):
    """As unittest's, and keeps `cases` for write()."""

    outcome = ""  # a class that is skipped starts no test

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.cases = []

    def startTest(self, test):
        self.began = time.monotonic()
        self.outcome = ""
        super().startTest(test)

    def _tag(self, tag, text):
        self.outcome += "<%s message=%s/>" % (tag, xml.sax.saxutils.quoteattr(text))

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._tag("failure", str(err[1]))

    def addError(self, test, err):
        super().addError(test, err)
        self._tag("error", str(err[1]))

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._tag("failure", "%s: %s" % (subtest, err[1]))

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._tag("skipped", reason)

    def stopTest(self, test):
        super().stopTest(test)
        kind, _, name = test.id().rpartition(".")
        self.cases.append('<testcase name=%s classname=%s time="%.3f">%s</testcase>' % (
            xml.sax.saxutils.quoteattr(name), xml.sax.saxutils.quoteattr(kind), time.monotonic() - self.began,
            self.outcome))


def write(path, name, cases):
    with open(path, "w") as f:
        f.write("<testsuites><testsuite name=%s>%s</testsuite></testsuites>" % (
            xml.sax.saxutils.quoteattr(name), "".join(cases)))
