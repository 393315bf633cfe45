"""End to end over the real socket, with a worker that crashes, hangs and lies on command. Prints TAP."""
import json
import os
import pathlib
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from daemon import Daemon, rows, run_cases, task_row

ASSAYD = os.path.abspath(sys.argv[1])
CASES = []


def case(function):
    CASES.append(function)
    return function


def check(condition, what=""):
    if not condition:
        raise AssertionError(what)


def same(got, wanted):
    check(got == wanted, f"got {got!r}, wanted {wanted!r}")


def with_tasks(daemon, count=5):
    reply = daemon.call("POST", "/v1/tasks/import?dataset=demo", rows(task_row(i) for i in range(count)))
    same(reply.status, 200)


def sweep(daemon, words, query="", count=5):
    lines = [{"instance_id": f"acme__calc-{i % count}", "model_patch": f"{word} {i}\n" if word else "",
              "model_name_or_path": "m", "custom_id": str(i)} for i, word in enumerate(words)]
    reply = daemon.call("POST", "/v1/sweeps?dataset=demo" + query, rows(lines))
    same(reply.status, 202)
    return reply.json["id"]


def results(daemon, sweep_id, timeout=60):
    lines = daemon.call("GET", f"/v1/sweeps/{sweep_id}/results?follow=1", timeout=timeout).lines
    return {int(line["custom_id"]): line for line in lines}


def check_problem(reply, status, code):
    same(reply.status, status)
    same(reply.headers["Content-Type"].split(";")[0], "application/problem+json")
    same(reply.json["code"], code)
    same(reply.json["status"], status)
    check(reply.json["request_id"] == reply.headers["X-Request-Id"])


@case
def health_and_version_answer():
    with Daemon(ASSAYD) as daemon:
        for path in ("/_ping", "/livez", "/readyz", "/health", "/version", "/metrics", "/v1/info"):
            reply = daemon.call("GET", path)
            same(reply.status, 200)
            check(reply.headers["X-Request-Id"].startswith("req_"))
            same(reply.headers["Assay-Api"], "1.0")
        check(b"assay_queue_depth" in daemon.call("GET", "/metrics").body)
        same(os.stat(daemon.socket).st_mode & 0o777, 0o600)
        same(os.stat(daemon.state).st_mode & 0o777, 0o700)


@case
def errors_are_problems():
    with Daemon(ASSAYD) as daemon:
        with_tasks(daemon)
        check_problem(daemon.call("GET", "/v1/grade"), 404, "route_unknown")
        check_problem(daemon.call("DELETE", "/v1/grades"), 405, "method_not_allowed")
        same(daemon.call("DELETE", "/v1/grades").headers["Allow"], "POST, GET")
        check_problem(daemon.call("POST", "/v1/grades", "{"), 400, "json_invalid")
        check_problem(daemon.call("POST", "/v1/grades", "[]"), 400, "json_invalid")
        check_problem(daemon.call("POST", "/v1/grades", '{"task":"a","task":"b"}'), 400, "json_invalid")
        check_problem(daemon.call("POST", "/v1/grades", {}), 400, "field_missing")
        check_problem(daemon.call("POST", "/v1/grades", {"task": "nope", "patch": ""}), 404, "not_found")
        check_problem(daemon.call("GET", "/v1/grades/grd_00000000000000000000000000"), 404, "not_found")
        check_problem(daemon.call("GET", "/v1/tasks?limt=3"), 400, "field_unknown")
        same(daemon.call("GET", "/v1/tasks?limt=3").json["did_you_mean"], "limit")
        check_problem(daemon.call("GET", "/v1/tasks?limit=0"), 400, "field_invalid")
        good = {"task": "acme__calc-1", "patch": "resolved\n"}
        for field, value in (("mode", "easy"), ("cache", "maybe"), ("patch", 7), ("priority", 1000),
                             ("limits", {"wall_s": 0}), ("limits", 3), ("environments", "relative")):
            check_problem(daemon.call("POST", "/v1/grades", {**good, field: value}), 400, "field_invalid")
        reply = daemon.call("POST", "/v1/grades", {**good, "limitz": {}})
        check_problem(reply, 400, "field_unknown")
        check("limits" in reply.json["detail"])
        check_problem(daemon.call("POST", "/v1/grades", {**good, "limits": {"wall": 5}}), 400, "field_unknown")
        check_problem(daemon.call("POST", "/v1/tasks/acme__calc-1/validate", "x" * 2_000_000), 413, "body_too_large")
        check_problem(daemon.call("GET", "/v1/tasks/" + "a" * 600), 414, "target_too_long")
        same(daemon.runs(), [])


RAW = [
    (b"GET /_ping HTTP/1.1\r\nHost: a\r\n\r\n", b"200"),
    (b"GET /_ping HTTP/1.0\r\n\r\n", b"200"),
    (b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
    (b"GET /v1/tasks/../grades HTTP/1.1\r\nHost: a\r\n\r\n", b"400 404 200"),
    (b"GET /_ping HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 200 + b"\r\n", b"431"),
    (b"GET /_ping HTTP/1.1\r\nHost: a\r\nX-A: " + b"b" * 20000 + b"\r\n\r\n", b"431"),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"414"),
    (b"POST /v1/grades HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n{}   ", b"400"),
    (b"POST /v1/grades HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", b"400"),
    (b"POST /v1/grades HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
    (b"POST /v1/grades HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"501 400"),
    (b"POST /v1/grades HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n", b"413"),
    (b"BREW /_ping HTTP/1.1\r\nHost: a\r\n\r\n", b"405"),
    (b"GARBAGE\r\n\r\n", b"400"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, b"400"),
]


@case
def hostile_http_is_refused_and_the_daemon_lives():
    with Daemon(ASSAYD) as daemon:
        for data, wanted in RAW:
            got = daemon.raw(data)
            status = got.split(b" ", 2)[1] if got.startswith(b"HTTP/") else b""
            check(status in wanted.split() or (not got and wanted == b"400"), f"{data[:70]!r}: {got[:200]!r}")
            same(daemon.call("GET", "/_ping").status, 200)
        check(daemon.process.poll() is None)


@case
def one_connection_serves_many_requests():
    with Daemon(ASSAYD) as daemon:
        connection = daemon.connect()
        connection.connect()
        first = connection.sock
        for path, status in [("/_ping", 200), ("/v1/tasks", 200), ("/v1/grades/grd_none", 404), ("/version", 200)]:
            connection.request("GET", path)
            reply = connection.getresponse()
            reply.read()
            same(reply.status, status)
            check(connection.sock is first, f"{path}: hung up on")
        # two at once, each answered in its turn
        first.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        got = b""
        while got.count(b"HTTP/1.1 200") < 2:
            got += first.recv(4096) or check(False, got)
        connection.close()
        for sent in (b"", b"GET /_pi", b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"):
            for after in (b"", b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"):
                daemon.raw(after + sent)
        deadline = time.monotonic() + 20
        while b'assay_http_connections{kind="unix"} 1\n' not in daemon.call("GET", "/metrics").body:
            check(time.monotonic() < deadline, "a connection whose client left is still open")
            time.sleep(0.02)


@case
def bad_rows_are_reported_by_line_and_the_rest_is_stored():
    with Daemon(ASSAYD) as daemon:
        text = rows([task_row(1)]) + "{broken\n" + rows([{"instance_id": "x"}, task_row(2, FAIL_TO_PASS=3), task_row(3)])
        reply = daemon.call("POST", "/v1/tasks/import?dataset=demo&on_error=stop", text)
        same((reply.json["stored"], reply.json["rejected"]), (False, 3))
        same(daemon.call("GET", "/v1/tasks").json["data"], [])
        reply = daemon.call("POST", "/v1/tasks/import?dataset=demo", text)
        same((reply.json["imported"], [bad["line"] for bad in reply.json["skipped"]]), (2, [2, 3, 4]))
        same(daemon.call("POST", "/v1/tasks/import?dataset=demo", text).json["unchanged"], 2)
        changed = rows([task_row(1, test_patch="other\n")])
        same(daemon.call("POST", "/v1/tasks/import?dataset=demo", changed).json["skipped"][0]["code"], "task_exists_differs")
        same(daemon.call("POST", "/v1/tasks/import?dataset=demo&replace=1", changed).json["imported"], 1)
        for name in ("acme__calc-1", "demo/acme__calc-1", "demo%2Facme__calc-1"):
            same(daemon.call("GET", "/v1/tasks/" + name).json["instance_id"], "acme__calc-1")


@case
def every_kind_of_worker_ends_in_the_right_verdict():
    wanted = {"resolved": ("done", "resolved", 1.0, False), "unresolved": ("done", "unresolved", 0.0, False),
              "patch_failed": ("done", "patch_failed", 0.0, False), "suspect": ("done", "suspect", 0.0, False),
              "crash1": ("done", "resolved", 1.0, False), "": ("done", "unresolved", 0.0, False)}
    masked = ("crash", "flaky", "fail", "garbage", "badreward", "wrongid", "huge", "hang", "storm")
    words = list(wanted) + list(masked)
    with Daemon(ASSAYD, overhead_s=1, wall_s=1) as daemon:
        with_tasks(daemon)
        got = results(daemon, sweep(daemon, words))
        same(len(got), len(words))
        for number, word in enumerate(words):
            line = got[number]
            same((word, line["state"], line["verdict"], line["reward"], line["mask"]),
                 (word, *wanted.get(word, ("failed", None, None, True))))
        attempts = {word: [run for run in daemon.runs() if run[2] == word] for word in masked}
        same({word: len(runs) for word, runs in attempts.items()},
             {word: 1 if word == "fail" else 3 for word in masked})
        check("" not in [run[2] for run in daemon.runs()])
        same(os.listdir(daemon.state + "/scratch"), [])


@case
def files_outside_the_scratch_directory_are_not_kept():
    with Daemon(ASSAYD) as daemon:
        with_tasks(daemon)
        got = results(daemon, sweep(daemon, ["link", "outside"]))
        for line, bad in ((got[0], ["secret"]), (got[1], ["passwd", "dots"])):
            check("sha256" in line["files"]["test_output.txt"])
            for name in bad:
                check("problem" in line["files"][name], line["files"])
                same(daemon.call("GET", f"/v1/grades/{line['id']}/files/{name}").status, 404)


@case
def a_grade_can_be_waited_for_and_looked_at():
    with Daemon(ASSAYD) as daemon:
        with_tasks(daemon)
        ask = {"task": "acme__calc-1", "patch": "slow\n"}
        reply = daemon.call("POST", "/v1/grades", ask, {"Prefer": "wait=10"})
        same((reply.status, reply.json["verdict"], reply.json["cached"]), (200, "resolved", False))
        same(reply.headers["Preference-Applied"], "wait")
        again = daemon.call("POST", "/v1/grades", ask)
        same((again.status, again.json["cached"], again.json["id"]), (200, True, reply.json["id"]))
        grade = reply.json["id"]
        same(daemon.call("GET", f"/v1/grades/{grade}/log").body, b"line 1\nline 2\nPASSED test_a\n")
        same(daemon.call("GET", f"/v1/grades/{grade}/log?tail_lines=1").body, b"PASSED test_a\n")
        same(daemon.call("GET", f"/v1/grades/{grade}/log?from_byte=14").body, b"PASSED test_a\n")
        tests = {line["name"]: (line["list"], line["status"]) for line in daemon.call("GET", f"/v1/grades/{grade}/tests").lines}
        same(tests, {"test_a": ("f2p", "PASSED"), "test_b": ("p2p", "PASSED")})
        same(daemon.call("GET", f"/v1/grades/{grade}/explain").json["verdict"], "resolved")
        check_problem(daemon.call("POST", f"/v1/grades/{grade}/cancel"), 409, "state_conflict")
        check_problem(daemon.call("POST", f"/v1/grades/{grade}/retry"), 409, "state_conflict")
        same(daemon.call("POST", "/v1/grades", {**ask, "cache": "refresh"}, {"Prefer": "wait=10"}).json["repeat"], 1)
        check_problem(daemon.call("POST", "/v1/grades", {**ask, "patch": "new\n", "cache": "only"}), 404, "not_found")
        group = daemon.call("POST", "/v1/grades/group", {"task": "acme__calc-1", "patches": [
            {"patch": "slow\n", "custom_id": "a"}, {"patch": "", "custom_id": "b"}]})
        same([(g["custom_id"], g["verdict"]) for g in group.json["data"]], [("a", "resolved"), ("b", "unresolved")])


@case
def equal_patches_run_once():
    with Daemon(ASSAYD) as daemon:
        with_tasks(daemon)
        line = {"instance_id": "acme__calc-1", "model_patch": "slow same\n", "model_name_or_path": "m"}
        reply = daemon.call("POST", "/v1/sweeps?dataset=demo", rows([line] * 20)).json
        same((reply["total"], reply["duplicate"]), (20, 19))
        second = daemon.call("POST", "/v1/sweeps?dataset=demo", rows([line] * 3)).json
        lines = daemon.call("GET", f"/v1/sweeps/{reply['id']}/results?follow=1").lines
        same(len(lines), 20)
        same(len({item["id"] for item in lines}), 1)
        same(len(daemon.call("GET", f"/v1/sweeps/{second['id']}/results?follow=1").lines), 3)
        same(len(daemon.runs()), 1)


@case
def an_idempotency_key_gives_the_first_answer():
    with Daemon(ASSAYD) as daemon:
        with_tasks(daemon)
        key = {"Idempotency-Key": "abc"}
        ask = {"task": "acme__calc-1", "patch": "resolved\n", "cache": "off"}
        first = daemon.call("POST", "/v1/grades", ask, key)
        second = daemon.call("POST", "/v1/grades", ask, key)
        same(first.json["id"], second.json["id"])
        same(second.headers["Idempotency-Replayed"], "true")
        check_problem(daemon.call("POST", "/v1/grades", {**ask, "patch": "x\n"}, key), 422, "idempotency_reused")
        check_problem(daemon.call("POST", "/v1/grades", ask, {"Idempotency-Key": "a" * 300}), 400, "header_invalid")
        lines = rows([{"instance_id": "acme__calc-1", "model_patch": "resolved s\n"}])
        same(daemon.call("POST", "/v1/sweeps", lines, {"Idempotency-Key": "s"}).json["id"],
             daemon.call("POST", "/v1/sweeps", lines, {"Idempotency-Key": "s"}).json["id"])


@case
def cancel_ends_queued_and_running_grades():
    with Daemon(ASSAYD, workers=1) as daemon:
        with_tasks(daemon)
        running = daemon.call("POST", "/v1/grades", {"task": "acme__calc-1", "patch": "hang\n"}).json["id"]
        events = daemon.connect()
        events.request("GET", f"/v1/events?since=0&types=grade.started&subject={running}")
        stream = events.getresponse()
        while not stream.readline().startswith(b"event: grade.started"):
            pass
        events.close()
        queued = daemon.call("POST", "/v1/grades", {"task": "acme__calc-1", "patch": "resolved q\n"}).json["id"]
        for grade in (queued, running):
            same(daemon.call("POST", f"/v1/grades/{grade}/cancel").json["state"], "cancelled")
        swept = sweep(daemon, ["hang", "resolved", "resolved"])
        same(daemon.call("POST", f"/v1/sweeps/{swept}/cancel").json["state"], "cancelled")
        states = [line["state"] for line in results(daemon, swept).values()]
        same(states, ["cancelled"] * 3)
        same(daemon.call("POST", f"/v1/grades/{queued}/retry").json["state"], "queued")
        same(daemon.call("GET", f"/v1/grades/{queued}?wait_s=10").json["verdict"], "resolved")


@case
def events_resume_where_they_were_left():
    with Daemon(ASSAYD) as daemon:
        with_tasks(daemon)
        results(daemon, sweep(daemon, ["resolved"] * 3))

        def read(headers, query, count):
            connection = daemon.connect()
            connection.request("GET", "/v1/events" + query, headers=headers)
            response = connection.getresponse()
            same(response.headers["Content-Type"], "text/event-stream")
            ids, event = [], []
            while len(event) < count:
                line = response.readline().decode().strip()
                if line.startswith("id: "):
                    ids.append(int(line[4:]))
                if line.startswith("event: "):
                    event.append(line[7:])
            connection.close()
            return ids, event

        ids, kinds = read({}, "?since=0", 12)
        same(ids, list(range(1, 13)))
        check({"grade.queued", "grade.started", "grade.finished", "sweep.progress"} <= set(kinds), kinds)
        same(read({"Last-Event-ID": "5"}, "", 3)[0], [6, 7, 8])
        same(read({}, "?since=3&types=grade.finished", 1)[1], ["grade.finished"])
        connection = daemon.connect()
        connection.request("GET", "/v1/events?since=99999")
        response = connection.getresponse()
        while b"event: lagged" not in (line := response.readline()):
            check(line, "no lagged event")
        connection.close()


@case
def two_hundred_grades_finish_and_each_is_counted_once():
    with Daemon(ASSAYD, workers=4) as daemon:
        with_tasks(daemon)
        words = ["resolved", "unresolved", "crash1", "patch_failed"] * 50
        got = results(daemon, sweep(daemon, words), timeout=100)
        same(len(got), 200)
        for number, word in enumerate(words):
            same(got[number]["verdict"], "resolved" if word == "crash1" else word)
        runs = daemon.runs()
        same(len({run[0] for run in runs}), 200)
        same(len(runs), 250)
        shown = daemon.call("GET", "/v1/sweeps?limit=1").json["data"][0]
        same((shown["counts"]["done"], shown["verdicts"]), (200, {"resolved": 100, "unresolved": 50, "patch_failed": 50}))


@case
def a_killed_daemon_loses_and_doubles_nothing():
    daemon = Daemon(ASSAYD).start()
    try:
        with_tasks(daemon)
        words = ["slow", "unresolved", "resolved", "suspect"] * 15
        swept = sweep(daemon, words)
        for _ in range(5):
            connection = daemon.connect()
            connection.request("GET", f"/v1/sweeps/{swept}/results?follow=1")
            response = connection.getresponse()
            for _ in range(4):
                response.readline()
            daemon.kill(signal.SIGKILL)
            connection.close()
            database = sqlite3.connect(daemon.state + "/assay.db")
            same(database.execute("PRAGMA integrity_check").fetchone()[0], "ok")
            database.close()
            daemon.start()
        got = results(daemon, swept)
        same(len(got), len(words))
        for number, word in enumerate(words):
            same(got[number]["verdict"], "resolved" if word == "slow" else word)
        same(os.listdir(daemon.state + "/scratch"), [])
        finished = [line for line in daemon.call("GET", f"/v1/sweeps/{swept}/results").lines]
        same(len(finished), len(words))
    finally:
        daemon.__exit__()


@case
def sigterm_drains_and_a_second_daemon_is_refused():
    with Daemon(ASSAYD, drain_s=20) as daemon:
        with_tasks(daemon)
        other = subprocess.run([ASSAYD, "--state", daemon.state], capture_output=True, timeout=20, check=False)
        same(other.returncode, 1)
        check(b"already in use by a daemon (pid" in other.stderr, other.stderr)
        swept = sweep(daemon, ["slow", "slow", "slow", "slow"])
        connection = daemon.connect()
        connection.request("GET", f"/v1/sweeps/{swept}/results?follow=1")
        connection.getresponse().readline()
        same(daemon.kill(signal.SIGTERM), 0)
        connection.close()
        daemon.start()
        same({line["verdict"] for line in results(daemon, swept).values()}, {"resolved"})


@case
def a_full_disk_refuses_and_recovers():
    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with Daemon(ASSAYD, preexec=small_files) as daemon:
        with_tasks(daemon)
        accepted = []
        refused = None
        for number in range(60):
            patch = f"resolved {number}\n" + "x" * 100_000
            reply = daemon.call("POST", "/v1/grades", {"task": "acme__calc-1", "patch": patch})
            if reply.status == 507:
                refused = reply
                break
            accepted.append(reply.json["id"])
        check(refused is not None, "nothing was refused")
        check_problem(refused, 507, "storage_full")
        for _ in range(20):  # also beside a worker whose claim cannot be stored
            same(daemon.call("GET", "/_ping").status, 200)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        for grade in accepted:
            same(daemon.call("GET", f"/v1/grades/{grade}?wait_s=20").json["verdict"], "resolved")
        same(len({run[0] for run in daemon.runs()}), len(accepted))


@case
def validation_marks_the_task():
    with Daemon(ASSAYD) as daemon:
        with_tasks(daemon)
        swept = daemon.call("POST", "/v1/tasks/acme__calc-1/validate").json["id"]
        same(daemon.call("GET", f"/v1/sweeps/{swept}?wait_s=20").json["state"], "done")
        # the fake worker resolves whatever it is not told otherwise, so "empty" resolves: not valid
        same(daemon.call("GET", "/v1/tasks/acme__calc-1").json["validity"]["state"], "invalid")


@case
def configuration_mistakes_are_named():
    directory = pathlib.Path(os.environ.get("TMPDIR", "/tmp"), f"assay-config-{os.getpid()}")
    (directory / "assay").mkdir(parents=True)
    env = {**os.environ, "XDG_CONFIG_HOME": str(directory)}
    try:
        for text, wanted in (("[assayd]\nwal_s=5\n", b"did you mean wall_s"), ("[assayd]\nwall_s=0\n", b"between 1 and 14400"),
                             ("[other]\na=1\n", b"unknown group")):
            (directory / "assay" / "assayd.conf").write_text(text)
            result = subprocess.run([ASSAYD, "--state", str(directory / "s")], env=env, capture_output=True, timeout=20, check=False)
            same(result.returncode, 2)
            check(wanted in result.stderr, result.stderr)
    finally:
        (directory / "assay" / "assayd.conf").unlink()
        (directory / "assay").rmdir()
        directory.rmdir()


@case
def many_readers_of_one_sweep_all_see_its_end():
    with Daemon(ASSAYD) as daemon:
        with_tasks(daemon)
        swept = sweep(daemon, ["slow"] * 6)
        counts = []

        def follow():
            counts.append(len(daemon.call("GET", f"/v1/sweeps/{swept}/results?follow=1").lines))

        threads = [threading.Thread(target=follow) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        same(counts, [6] * 20)


sys.exit(run_cases(CASES))
