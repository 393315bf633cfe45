"""The crash test: daemon, workers and boxes are killed at random while a sweep runs.

Every grade must end with the verdict it has without kills, exactly once, and nothing may stay behind:
no process, mount, cgroup or scratch directory. ASSAY_CRASH_KILLS and ASSAY_CRASH_GRADES set the
size, ASSAY_CRASH_PAUSE_S the pace; the default is small enough for every run of the suite. A grade is
given up after ten attempts, so kills must not come faster than grades can end.

usage: test_crash.py ASSAYD WORKER LIBEXEC TASK_ROWS EXAMPLES
"""
import glob
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from daemon import Daemon, UnixConnection, Reply  # noqa: E402
from processes import cgroups, children_of, comm, is_box, wait_gone  # noqa: E402

KILLS = int(os.environ.get("ASSAY_CRASH_KILLS", "40"))
GRADES = int(os.environ.get("ASSAY_CRASH_GRADES", "60"))
SEED = int(os.environ.get("ASSAY_CRASH_SEED", "3"))
PAUSE_S = tuple(float(s) for s in os.environ.get("ASSAY_CRASH_PAUSE_S", "0.15,0.45").split(","))
DEADLINE_S = 900


def request(daemon, method, path, body=None, kind="application/x-ndjson"):
    connection = UnixConnection(daemon.socket, timeout=DEADLINE_S)
    connection.request(method, path, body=body, headers={"Content-Type": kind} if body else {})
    reply = Reply(connection.getresponse())
    connection.close()
    return reply


def victims(daemon, what):
    if what == "daemon":
        return [daemon.process.pid]
    below = children_of(daemon.process.pid, 4)  # worker, starter, keeper, init; not the payload
    workers = [pid for pid in below if comm(pid) == "assay-worker"]
    return workers if what == "worker" else [pid for pid in below if is_box(pid)]


def kill_one(daemon, chance):
    what = chance.choices(["daemon", "worker", "box"], [1, 3, 6])[0]
    pids = victims(daemon, what)
    if not pids:
        return None
    if what == "daemon":
        daemon.kill()
        daemon.start()
    else:
        try:
            os.kill(chance.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            return None
    return what


def predictions(rows, n):
    kinds = [("patch", "gold"), ("wrong_patch", "wrong"), ("cheat_patch", "cheat")]
    every = [(row, field, name) for row in rows for field, name in kinds]
    lines = []
    for i in range(n):
        row, field, name = every[i % len(every)]
        lines.append({"instance_id": row["instance_id"], "model_name_or_path": name,
                      "model_patch": row[field], "custom_id": f"{row['instance_id']}:{name}:{i}"})
    return lines


def sweep(daemon, lines, cache):
    body = "".join(json.dumps(line) + "\n" for line in lines)
    reply = request(daemon, "POST", f"/v1/sweeps?dataset=ex&cache={cache}", body)
    assert reply.status == 202, reply.body
    return reply.json["id"]


def results(daemon, sweep_id):
    reply = request(daemon, "GET", f"/v1/sweeps/{sweep_id}/results?follow=1")
    return {line["custom_id"]: line for line in reply.lines if "custom_id" in line}


def counts(daemon, sweep_id):
    return request(daemon, "GET", f"/v1/sweeps/{sweep_id}").json["counts"]


def mounts(state):
    """Mounts that have to do with us; others may come and go beside the test."""
    return [line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
            if state in line or "assay" in line]


def kind_of(custom_id):
    return custom_id.rsplit(":", 1)[0]


def main():
    assayd, worker, libexec, task_rows, examples = sys.argv[1:6]
    os.environ["ASSAY_LIBEXEC"] = libexec
    rows = [json.loads(line) for line in
            subprocess.run([task_rows, examples], capture_output=True, check=True).stdout.splitlines()]
    # pytest takes a second: at this pace it could meet ten kills in a row
    rows = [row for row in rows if not row["instance_id"].startswith("pytest-") or KILLS >= 200]
    chance = random.Random(SEED)
    owners, before = set(), cgroups()
    print("1..5")

    daemon = Daemon(assayd, worker=worker, attempts_max=10).start()
    try:
        body = "".join(json.dumps(row) + "\n" for row in rows)
        assert request(daemon, "POST", "/v1/tasks/import?dataset=ex", body).status in (200, 202)
        calm = results(daemon, sweep(daemon, predictions(rows, 3 * len(rows)), "off"))
        if any(line["state"] != "done" for line in calm.values()):
            why = next(line for line in calm.values() if line["state"] != "done")
            if os.environ.get("ASSAY_BOX_MUST_WORK") != "1":
                print("\n".join(f"ok {i} # SKIP no boxes here: {why['error']}" for i in range(1, 6)))
                return 0
            raise RuntimeError(f"a grade failed without any kill: {why}")
        want = {kind_of(name): line["verdict"] for name, line in calm.items()}

        started = time.monotonic()
        sweep_id = sweep(daemon, predictions(rows, GRADES), "off")
        killed = {"daemon": 0, "worker": 0, "box": 0}
        while sum(killed.values()) < KILLS and time.monotonic() - started < DEADLINE_S:
            time.sleep(chance.uniform(*PAUSE_S))
            owners.update(children_of(daemon.process.pid, 1))
            what = kill_one(daemon, chance)
            if what:
                killed[what] += 1
            elif counts(daemon, sweep_id)["done"] == GRADES:
                sweep_id = sweep(daemon, predictions(rows, GRADES), "off")
        got = results(daemon, sweep_id)
        print(f"# kills {killed}, {time.monotonic() - started:.0f} s")

        wrong = [f"{name}: {line['state']} {line['verdict']}, want {want[kind_of(name)]} "
                 f"{line['error'] or ''}"
                 for name, line in got.items()
                 if line["state"] != "done" or line["verdict"] != want[kind_of(name)]]
        ok = [len(got) == GRADES, not wrong]
        print(f"{'ok' if ok[0] else 'not ok'} 1 - every grade ends exactly once ({len(got)})")
        print(f"{'ok' if ok[1] else 'not ok'} 2 - every grade has the verdict it has without kills")
        for line in wrong[:20]:
            print("#", line)

        children = children_of(daemon.process.pid)
        owners.update(children)
        daemon.kill(signal.SIGTERM)
        left = wait_gone(children)
        scratch = glob.glob(daemon.state + "/scratch/*")
        ok.append(not left and not scratch)
        print(f"{'ok' if ok[2] else 'not ok'} 3 - no process and no scratch directory is left")
        for pid in left:
            print("#", pid, comm(pid))
        ok.append(not mounts(daemon.state))
        print(f"{'ok' if ok[3] else 'not ok'} 4 - no mount is left")
        new = {path for path in cgroups() - before
               if int(os.path.basename(path).split("-")[2]) in owners}
        ok.append(not new)
        print(f"{'ok' if ok[4] else 'not ok'} 5 - no cgroup is left")
        for path in sorted(new)[:10]:
            print("#", path)
        return 0 if all(ok) else 1
    finally:
        if daemon.process.poll() is None:
            daemon.kill(signal.SIGKILL)


sys.exit(main())
