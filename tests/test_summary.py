#!/usr/bin/env python3
"""The closing line counts what failed: a case, a crash, a timeout, a program without cases."""
import json
import os
import subprocess
import sys
import tempfile

SUMMARY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "summary.py")


def write_log(logs, base, cases, programs):
    """Cases as (suite, name, kind), programs as (name, result)."""
    with open(os.path.join(logs, f"{base}.junit.xml"), "w", encoding="utf-8") as out:
        out.write("<testsuites>")
        for suite, name, kind in cases:
            inner = f"<{kind}/>" if kind else ""
            out.write(f'<testsuite name="assay.{suite}"><testcase name="{name}">{inner}'
                      "</testcase></testsuite>")
        out.write("</testsuites>")
    with open(os.path.join(logs, f"{base}.json"), "w", encoding="utf-8") as out:
        for name, result in programs:
            out.write(json.dumps({"name": name, "result": result, "returncode": 1,
                                  "stdout": "1..1\nok 1 - x\n# why it is so\n"}) + "\n")


def summary_of(first, second):
    """Of one build: the last line and the exit status, the programs to try again, and what was said."""
    with tempfile.TemporaryDirectory() as build:
        logs = os.path.join(build, "meson-logs")
        os.mkdir(logs)
        write_log(logs, "testlog", *first)
        if second:
            write_log(logs, "again", *second)
        done, failed = [subprocess.run([sys.executable, SUMMARY, *words, build], capture_output=True,
                                       text=True, check=False) for words in ([], ["--failed"])]
        return (done.stdout.strip(), done.returncode, failed.stdout.split()), done.stderr


GOOD, BAD = [("a / x", "1", None)], [("a / x", "1", "failure")]
CASES = [
    ("all good", ([*GOOD, ("a / x", "2", "skipped")], [("a / x", "OK")]), None,
     "1 passed, 0 failed, 1 skipped", 0, [], ""),
    ("a failed case is counted once", (BAD, [("a / x", "FAIL")]), None,
     "0 passed, 1 failed, 0 skipped", 1, ["x"], "why it is so"),
    ("a crash after good cases", (GOOD, [("a / x", "ERROR")]), None,
     "1 passed, 1 failed, 0 skipped", 1, ["x"], "why it is so"),
    ("a timeout without cases", ([], [("a / x", "TIMEOUT")]), None,
     "0 passed, 1 failed, 0 skipped", 1, ["x"], "TIMEOUT"),
    ("an interrupted program", ([], [("a / x", "INTERRUPT")]), None,
     "0 passed, 1 failed, 0 skipped", 1, ["x"], "INTERRUPT"),
    ("a second try that passes is named", (BAD, [("a / x", "FAIL")]), (GOOD, [("a / x", "OK")]),
     "1 passed, 0 failed, 0 skipped", 0, ["x"], "passed at the second try only"),
    ("a second try that fails is a failure", (BAD, [("a / x", "FAIL")]), (BAD, [("a / x", "FAIL")]),
     "0 passed, 1 failed, 0 skipped", 1, ["x"], "failed: "),
    ("a second try of another is none", ([*BAD, ("a / y", "1", None)], [("a / x", "FAIL"), ("a / y", "OK")]),
     ([("a / y", "1", None)], [("a / y", "OK")]), "1 passed, 1 failed, 0 skipped", 1, ["x"], "failed: "),
]


def main():
    print(f"1..{len(CASES)}")
    for number, (what, first, second, line, status, failed, words) in enumerate(CASES, 1):
        got, said = summary_of(first, second)
        good = got == (line, status, failed) and words in said
        print("ok" if good else f"# got {got}, {said}\nnot ok", number, "-", what)


main()
