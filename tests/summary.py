#!/usr/bin/env python3
"""Reads the logs that meson leaves in BUILD/meson-logs and prints the closing line:
"N passed, N failed, N skipped". Exits 1 when anything failed.

The cases come from the JUnit file. A program that crashed, timed out or ended early leaves cases
that all passed, or none; what became of the program itself stands in testlog.json, so a failed
program without a failed case counts as one failure. Tested by test_summary.py.
"""
import json
import os
import sys
import xml.etree.ElementTree as tree

GOOD = {"OK", "SKIP", "EXPECTEDFAIL"}


def read_cases(path):
    """Returns (passed, skipped, failed names) and the suites that hold a failed case."""
    passed, skipped, failed, suites = 0, 0, [], set()
    for suite in tree.parse(path).getroot().iter("testsuite"):
        for case in suite.iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                failed.append(f"{suite.get('name')}: {case.get('name')}")
                suites |= {suite.get("name"), case.get("name")}
            elif case.find("skipped") is not None:
                skipped += 1
            else:
                passed += 1
    return passed, skipped, failed, suites


def read_programs(path, suites):
    """Returns the failed programs of which no case failed."""
    failed = []
    with open(path, encoding="utf-8") as log:
        for line in log:
            test = json.loads(line)
            name = test["name"]
            known = {name, "assay." + name, name.rsplit(" / ", 1)[-1]}
            if test["result"] not in GOOD and not known & suites:
                failed.append(f"{name}: {test['result']}, exit status {test['returncode']}")
    return failed


def main(builds):
    passed, skipped, failed = 0, 0, []
    for build in builds:
        logs = os.path.join(build, "meson-logs")
        good, left, bad, suites = read_cases(os.path.join(logs, "testlog.junit.xml"))
        bad += read_programs(os.path.join(logs, "testlog.json"), suites)
        passed, skipped = passed + good, skipped + left
        failed += [f"{build}: {name}" for name in bad]
    for name in failed:
        print("failed:", name, file=sys.stderr)
    print(f"{passed} passed, {len(failed)} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
