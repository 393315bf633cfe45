#!/usr/bin/env python3
"""Reads the logs that meson leaves in BUILD/meson-logs and prints the closing line:
"N passed, N failed, N skipped". Exits 1 when anything failed.

    summary.py BUILD...
    summary.py --failed BUILD    the names of the programs that failed, for a second try

The cases come from the JUnit file. A program that crashed, timed out or ended early leaves cases
that all passed, or none; what became of the program itself stands in testlog.json, so a failed
program without a failed case counts as one failure.

A second try is logged as `again` beside the first. What it passes counts as passed, and is named
with what it said the first time: such a test, or what it tests, is to be mended. Tested by
test_summary.py.
"""
import json
import os
import sys
import xml.etree.ElementTree as tree

GOOD = {"OK", "SKIP", "EXPECTEDFAIL"}
LINES_MAX = 40  # of what a failed program said


class Program:
    def __init__(self):
        self.passed, self.skipped, self.failed, self.text = 0, 0, [], ""


def read_log(logs, base):
    """Returns {name: Program}; names as in testlog.json."""
    programs = {}
    for suite in tree.parse(os.path.join(logs, f"{base}.junit.xml")).getroot().iter("testsuite"):
        program = programs.setdefault(suite.get("name").removeprefix("assay."), Program())
        for case in suite.iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                program.failed.append(case.get("name"))
            elif case.find("skipped") is not None:
                program.skipped += 1
            else:
                program.passed += 1
    with open(os.path.join(logs, f"{base}.json"), encoding="utf-8") as log:
        for line in log:
            test = json.loads(line)
            program = programs.setdefault(test["name"], Program())
            said = [text for text in test.get("stdout", "").split("\n")
                    if text and not text.startswith(("ok ", "1.."))]
            said += test.get("stderr", "").strip().split("\n")[-LINES_MAX // 2:]
            program.text = "\n".join("    " + text[:600] for text in said[-LINES_MAX:] if text)
            if test["result"] not in GOOD and not program.failed:
                program.failed.append(f"{test['result']}, exit status {test['returncode']}")
    return programs


def say(word, build, name, program):
    for case in program.failed:
        print(f"{word}: {build}: {name}: {case}", file=sys.stderr)
    print(program.text, file=sys.stderr)


def main(builds):
    passed, failed, skipped = 0, 0, 0
    for build in builds:
        logs = os.path.join(build, "meson-logs")
        programs = read_log(logs, "testlog")
        again = read_log(logs, "again") if os.path.exists(os.path.join(logs, "again.json")) else {}
        for name, program in sorted(programs.items()):
            second = again.get(name, program)
            if program.failed and not second.failed:
                say("passed at the second try only", build, name, program)
            elif second.failed:
                say("failed", build, name, second)
            passed, skipped = passed + second.passed, skipped + second.skipped
            failed += len(second.failed)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


def print_failed(build):
    for name, program in read_log(os.path.join(build, "meson-logs"), "testlog").items():
        if program.failed:
            print(name.rsplit(" / ", 1)[-1])
    return 0


if __name__ == "__main__":
    sys.exit(print_failed(sys.argv[2]) if sys.argv[1] == "--failed" else main(sys.argv[1:]))
