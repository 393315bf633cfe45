"""Benchmarks of whole grades, as ratios to a baseline of the same run.

  grade     a grade of a test that takes a second, against the bare test command in a prepared tree
            (goal 1.10)
  workers   a sweep with two workers against one (goal 1.9)

usage: bench_grade.py ASSAYD WORKER LIBEXEC
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from daemon import Daemon, Reply, UnixConnection  # noqa: E402

ROUNDS = 7
SWEEP = 16
# a second of work that is the same everywhere: count until the clock says so, in cpu time
TEST = """#!/bin/sh
python3 -c 'import time
end = time.process_time() + %s
while time.process_time() < end:
    pass
print("PASS slow" if open("value").read() == "2\\n" else "FAIL slow")'
"""
GOLD = ("diff --git a/value b/value\n--- a/value\n+++ b/value\n@@ -1 +1 @@\n-1\n+2\n")
TESTS = ("diff --git a/NOTES b/NOTES\nnew file mode 100644\n--- /dev/null\n+++ b/NOTES\n"
         "@@ -0,0 +1 @@\n+hidden\n")


def row(seconds):
    script = ("#!/bin/bash\nset -uxo pipefail\ncd /testbed\nrm -f NOTES\n"
              f"git apply -v - <<'EOF_114329324912'\n{TESTS}\nEOF_114329324912\n"
              ": '>>>>> Start Test Output'\n./test.sh\n: '>>>>> End Test Output'\nrm -f NOTES\n")
    return {"instance_id": "bench-1", "repo": "assay/bench", "base_commit": "0" * 39 + "1",
            "test_patch": TESTS, "patch": GOLD, "eval_script": script, "log_parser": "assay_plain",
            "FAIL_TO_PASS": ["slow"], "PASS_TO_PASS": [],
            "files": {"value": "1\n", "test.sh": {"text": TEST % seconds, "mode": "755"}}}


def call(daemon, method, path, body=None):
    connection = UnixConnection(daemon.socket, timeout=600)
    connection.request(method, path, body=body,
                       headers={"Content-Type": "application/x-ndjson"} if body else {})
    reply = Reply(connection.getresponse())
    connection.close()
    return reply


def sweep(daemon, n):
    line = json.dumps({"instance_id": "bench-1", "model_name_or_path": "gold", "model_patch": GOLD})
    started = time.monotonic()
    made = call(daemon, "POST", "/v1/sweeps?dataset=bench&cache=off", (line + "\n") * n)
    done = [r for r in call(daemon, "GET", f"/v1/sweeps/{made.json['id']}/results?follow=1").lines
            if r.get("object", "grade") == "grade"]
    wall = time.monotonic() - started
    assert len(done) == n and all(r["verdict"] == "resolved" for r in done), done[:1]
    return wall


def started(assayd, worker, seconds, workers):
    daemon = Daemon(assayd, worker=worker, workers=workers).start()
    assert call(daemon, "POST", "/v1/tasks/import?dataset=bench", json.dumps(row(seconds))).status < 300
    sweep(daemon, workers)  # checkout made, workers up
    return daemon


def bare(seconds):
    with tempfile.TemporaryDirectory() as tree:
        pathlib.Path(tree, "value").write_text("2\n")
        script = pathlib.Path(tree, "test.sh")
        script.write_text(TEST % seconds)
        script.chmod(0o755)
        begin = time.monotonic()
        subprocess.run(["/bin/bash", "-c", "set -uxo pipefail; ./test.sh"], cwd=tree, check=True,
                       capture_output=True)
        return time.monotonic() - begin


def main():
    assayd, worker, libexec = sys.argv[1:4]
    os.environ["ASSAY_LIBEXEC"] = libexec
    daemon = started(assayd, worker, 1.0, 1)
    grades, bares = [], []
    for _ in range(ROUNDS):
        bares.append(bare(1.0))
        grades.append(sweep(daemon, 1))
    daemon.kill(15)
    ratio = statistics.median(grades) / statistics.median(bares)
    print("1..2")
    print(f"# bare test {statistics.median(bares):.3f} s, whole grade {statistics.median(grades):.3f} s"
          f" (median of {ROUNDS}, interleaved)")
    print(f"ok 1 - whole grade / bare test command: {ratio:.3f} (goal 1.10)")

    walls = {}
    for workers in (1, 2):
        daemon = started(assayd, worker, 0.5, workers)
        walls[workers] = sweep(daemon, SWEEP)
        daemon.kill(15)
    print(f"# {SWEEP} grades of half a second: {walls[1]:.2f} s with 1 worker, {walls[2]:.2f} s with 2,"
          f" {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(f"ok 2 - throughput with 2 workers / 1: {walls[1] / walls[2]:.2f} (goal 1.9)")


main()
