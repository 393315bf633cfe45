#!/usr/bin/env python3
"""A worker that does what the patch tells it: speaks the protocol of docs/protocol.md on fd 3.

The first line of the patch is a script of words: "resolved", "unresolved", "patch_failed", "suspect",
"fail" (failed, not retryable), "flaky" (failed, retryable), "crash", "crash1" (only at attempt 1),
"hang", "garbage", "huge" (a 100 MB line), "wrongid", "badreward", "link" (a file that is a symlink),
"outside", "slow" (0.2 s), "biglog", "storm" (phases without end). Each call is logged in STATE/runs.log.
"""
import json
import os
import socket
import sys
import time

sock = socket.socket(fileno=3)
reader = sock.makefile("rb")


def send(obj):
    sock.sendall(json.dumps(obj).encode() + b"\n")


def fake_result(job, word):
    resolved = word in ("resolved", "slow", "biglog", "link", "outside")
    scratch = job["scratch"]
    log = os.path.join(scratch, "test_output.txt")
    with open(log, "w", encoding="utf-8") as out:
        out.write("line 1\nline 2\nPASSED test_a\n")
        if word == "biglog":
            out.write("x" * 3_000_000)
    files = {"test_output.txt": log}
    if word == "link":
        os.symlink("/etc/passwd", os.path.join(scratch, "secret"))
        files["secret"] = os.path.join(scratch, "secret")
    if word == "outside":
        files["passwd"] = "/etc/passwd"
        files["dots"] = scratch + "/../../assay.db"
    verdict = word if word in ("unresolved", "patch_failed", "suspect") else "resolved"
    return {"event": "done", "id": job["id"], "state": "done", "verdict": verdict,
            "reward": 1.0 if resolved else 0.0,
            "components": {"binary": float(resolved), "f2p": float(resolved), "p2p": 1.0}, "mask": False,
            "tests": {"f2p": {"passed": int(resolved), "failed": int(not resolved), "missing": 0},
                      "p2p": {"passed": 1, "failed": 0, "missing": 0}, "unexpected": []},
            "statuses": {"test_a": "PASSED" if resolved else "FAILED", "test_b": "PASSED"},
            "report": {job["task"]["instance_id"]: {"resolved": resolved}},
            "timing": {"prepare_ms": 1, "apply_ms": 1, "run_ms": 2, "grade_ms": 1, "wall_ms": 5},
            "usage": {"cpu_ms": 3, "mem_peak_bytes": 1000}, "outcome": {"exit_code": 0},
            "box": {"mode": "fake"}, "evidence": [], "error": None, "files": files}


def failed(job, retryable):
    return {"event": "done", "id": job["id"], "state": "failed", "verdict": "none", "reward": None,
            "mask": True, "error": {"code": "fake_failure", "detail": "as told", "retryable": retryable}}


def handle(job, word):
    if word == "crash" or (word == "crash1" and job["attempt"] == 1):
        os._exit(11)
    if word == "hang":
        time.sleep(1000)
    if word == "garbage":
        sock.sendall(b"\x00\xff not json\n")
        time.sleep(1000)
    if word == "huge":
        try:
            for _ in range(100):
                sock.sendall(b"x" * 1_000_000)
        except OSError:
            sys.exit(1)
        time.sleep(1000)
    if word == "storm":
        while True:
            send({"event": "phase", "id": job["id"], "phase": "run"})
    if word == "slow":
        time.sleep(0.2)
    if word in ("fail", "flaky"):
        return failed(job, word == "flaky")
    result = fake_result(job, "resolved" if word == "crash1" else word)
    if word == "wrongid":
        result["id"] = "grd_00000000000000000000000000"
    if word == "badreward":
        result["reward"] = 1e300
    return result


def main():
    send({"event": "ready", "pid": os.getpid()})
    for line in reader:
        job = json.loads(line)
        if job["op"] == "exit":
            return
        word = "resolved"
        if job["patch_file"]:
            with open(job["patch_file"], encoding="utf-8") as patch:
                word = patch.readline().split()[0]
        with open(os.path.join(job["state_dir"], "runs.log"), "a", encoding="utf-8") as log:
            log.write(f"{job['id']} {job['attempt']} {word}\n")
        for phase in ("prepare", "apply", "run", "grade"):
            send({"event": "phase", "id": job["id"], "phase": phase})
        send(handle(job, word))


main()
