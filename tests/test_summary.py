#!/usr/bin/env python3
"""The closing line counts what failed: a case, a crash, a timeout, a program without cases."""
import json
import os
import subprocess
import sys
import tempfile

SUMMARY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "summary.py")


def line_of(cases, programs):
    """The summary of one build: cases as (suite, name, kind), programs as (name, result)."""
    with tempfile.TemporaryDirectory() as build:
        logs = os.path.join(build, "meson-logs")
        os.mkdir(logs)
        with open(os.path.join(logs, "testlog.junit.xml"), "w", encoding="utf-8") as out:
            out.write("<testsuites>")
            for suite, name, kind in cases:
                inner = f"<{kind}/>" if kind else ""
                out.write(f'<testsuite name="assay.{suite}"><testcase name="{name}">{inner}'
                          "</testcase></testsuite>")
            out.write("</testsuites>")
        with open(os.path.join(logs, "testlog.json"), "w", encoding="utf-8") as out:
            for name, result in programs:
                out.write(json.dumps({"name": name, "result": result, "returncode": 1}) + "\n")
        done = subprocess.run([sys.executable, SUMMARY, build], capture_output=True, text=True,
                              check=False)
        return done.stdout.strip(), done.returncode


CASES = [
    ("all good", [("a / x", "1", None), ("a / x", "2", "skipped")], [("a / x", "OK")],
     "1 passed, 0 failed, 1 skipped", 0),
    ("a failed case is counted once", [("a / x", "1", "failure")], [("a / x", "FAIL")],
     "0 passed, 1 failed, 0 skipped", 1),
    ("a crash after good cases", [("a / x", "1", None)], [("a / x", "ERROR")],
     "1 passed, 1 failed, 0 skipped", 1),
    ("a timeout without cases", [], [("a / x", "TIMEOUT")], "0 passed, 1 failed, 0 skipped", 1),
    ("an interrupted program", [], [("a / x", "INTERRUPT")], "0 passed, 1 failed, 0 skipped", 1),
]


def main():
    print(f"1..{len(CASES)}")
    for number, (what, cases, programs, line, status) in enumerate(CASES, 1):
        got = line_of(cases, programs)
        print("ok" if got == (line, status) else f"# got {got}\nnot ok", number, "-", what)


main()
