"""Every cheat we know, graded by a real assay-worker in real boxes.

    test_cheats.py WORKER TASK_ROWS SOURCE_ROOT [WORD ...]        prints TAP; WORD selects by name

A cheat is a patch over an example task, tests/cheats/TASK.NAME.patch (and each example's own
cheat.patch). Strict mode must finish each with reward 0. What the compat modes give for it is
compared with tests/cheats/compat.txt, so a change of theirs is seen. Also: each example's gold
patch is resolved, its wrong and its empty patch are not, and no gold patch raises suspicion.
ASSAY_LIBEXEC names the directory of assay-box.
"""
import json
import os
import pathlib
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

WORKER, ROWS, ROOT = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
WORDS = sys.argv[4:]
FIRST_SLOT, WORKERS = 60, 2
LIMITS = {"wall_s": 20, "mem_mib": 512, "pids": 128, "disk_mib": 256}
SHORT = LIMITS | {"wall_s": 3}
SLOW = ("sleeps", "fork_bomb")  # they use up their time: give them little
COMPAT = ("compat-5", "compat-4.1")
BOX_PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
MODULES = {"pytest": ("python3", "-m", "pytest", "--version"), "perl": ("perl", "-MTest::More", "-e1"),
           "c": ("make", "--version")}


class Worker:
    """One assay-worker: JSON lines over the stream socket that is its descriptor 3."""

    def __init__(self, state, slot):
        ours, theirs = socket.socketpair()
        self.state, self.slot, self.count = state, slot, 0
        command = ["/bin/sh", "-c", 'exec "$0" 3<&%d' % theirs.fileno(), WORKER]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self.lines = ours.makefile("rw")
        if json.loads(self.lines.readline() or "{}").get("event") != "ready":
            raise RuntimeError("the worker does not start")

    def grade(self, task, patch, mode, limits):
        self.count += 1
        name = f"grd_{self.slot}_{self.count}"
        scratch = self.state / "scratch" / name
        scratch.mkdir(parents=True)
        (scratch / "in.patch").write_bytes(patch)
        message = {"op": "grade", "id": name, "slot": self.slot, "attempt": 1, "run_empty": True,
                   "state_dir": str(self.state), "scratch": str(scratch), "task": task,
                   "patch_file": str(scratch / "in.patch"), "mode": mode, "limits": limits}
        self.lines.write(json.dumps(message) + "\n")
        self.lines.flush()
        for line in self.lines:
            event = json.loads(line)
            if event["event"] == "done":
                return event
        raise RuntimeError("the worker is gone")

    def close(self):
        self.lines.write('{"op":"exit"}\n')
        self.lines.flush()
        self.process.wait(30)


def short(grade):
    """The verdict, or why there is none."""
    if grade["state"] != "done":
        return "failed: " + str(grade.get("error"))
    return grade["verdict"]


def suspicions(grade):
    return ["%s %s" % (e["code"], e.get("detail", "")) for e in grade.get("evidence", [])
            if e.get("suspect")]


def check_cheat(worker, name, task, patch, expected):
    """Yields what is wrong; the first item is the line to show."""
    limits = SHORT if name.split(".")[1] in SLOW else LIMITS
    strict = worker.grade(task, patch, "strict", limits)
    got = {mode: short(worker.grade(task, patch, mode, limits)) for mode in COMPAT}
    codes = sorted({e["code"] for e in strict.get("evidence", [])})
    yield "%s: strict %s, %s [%s]" % (
        name, short(strict), ", ".join("%s %s" % item for item in got.items()), " ".join(codes))
    if strict["state"] != "done" or strict["reward"] != 0 or strict["mask"]:
        yield "strict must be done, reward 0, not masked: %s" % short(strict)
    if name not in expected:
        yield "no line in compat.txt: %s %s" % (name, " ".join(got.values()))
        return
    for mode, want in zip(COMPAT, expected[name]):
        if want not in ("any", got[mode]):
            yield "%s gives %s, compat.txt says %s" % (mode, got[mode], want)


def check_example(worker, name, task):
    gold = worker.grade(task, task["patch"].encode(), "strict", LIMITS)
    wrong = worker.grade(task, task["wrong_patch"].encode(), "strict", LIMITS)
    empty = worker.grade(task, b"", "strict", LIMITS)
    yield "%s: gold %s in %d ms (canary %d), wrong %s, empty %s" % (
        name, short(gold), gold.get("timing", {}).get("wall_ms", 0),
        gold.get("timing", {}).get("canary_ms", 0), short(wrong), short(empty))
    if short(gold) != "resolved" or gold["reward"] != 1:
        yield "the gold patch is not resolved: %s" % short(gold)
    for finding in suspicions(gold):
        yield "the gold patch raises suspicion: " + finding
    for what, grade in ("wrong", wrong), ("empty", empty):
        if short(grade) != "unresolved" or grade["reward"] != 0:
            yield "the %s patch is %s" % (what, short(grade))
        for finding in suspicions(grade):
            yield "the %s patch raises suspicion: %s" % (what, finding)


def lacking(task):
    """The tool that the task needs and this machine lacks, or None."""
    for word, command in MODULES.items():
        if task["instance_id"].startswith(word + "-"):
            try:
                subprocess.run(command, check=True, capture_output=True, env=BOX_PATH)
            except (OSError, subprocess.CalledProcessError):
                return word
    return None


def read_expected():
    table = {}
    for line in (ROOT / "tests/cheats/compat.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, *verdicts = line.split()
            table[name] = verdicts
    return table


def jobs(tasks):
    """(name, task, function of a worker that yields lines)."""
    expected = read_expected()
    patches = {p.stem: p for p in (ROOT / "tests/cheats").glob("*.patch")}
    patches |= {t + ".cheat": ROOT / "examples/tasks" / t / "cheat.patch" for t in tasks}
    for name, task in sorted(tasks.items()):
        yield name, task, lambda w, n=name, t=task: check_example(w, n, t)
    for name in sorted(patches):
        task, patch = tasks[name.split(".")[0]], patches[name].read_bytes()
        yield name, task, lambda w, n=name, t=task, p=patch: check_cheat(w, n, t, p, expected)


class Tap:
    def __init__(self):
        self.lock, self.count, self.failed = threading.Lock(), 0, 0

    def result(self, lines):
        with self.lock:
            self.count += 1
            self.failed += len(lines) > 1
            print("%sok %d - %s" % ("not " if len(lines) > 1 else "", self.count, lines[0]))
            for line in lines[1:]:
                print("# " + line.replace("\n", "\n# "))
            sys.stdout.flush()

    def skip(self, name, why):
        with self.lock:
            self.count += 1
            print("ok %d - %s # SKIP %s" % (self.count, name, why), flush=True)


def work(worker, todo, tap):
    while True:
        try:
            name, task, check = todo.get_nowait()
        except queue.Empty:
            return
        missing = lacking(task)
        if missing:
            tap.skip(name, "this machine lacks " + missing)
            continue
        try:
            tap.result(list(check(worker)))
        except Exception as error:  # a dead worker must be one failed line, not a hung test
            tap.result([name, "%s: %s" % (type(error).__name__, error)])


def no_boxes(worker, task):
    """Why boxes cannot be made here, or None."""
    grade = worker.grade(task, task["patch"].encode(), "strict", LIMITS)
    error = grade.get("error") or {}
    return error["detail"] if error.get("detail", "").startswith("open a box") else None


def main():
    listed = subprocess.run([ROWS, str(ROOT / "examples/tasks")], check=True, text=True,
                            capture_output=True).stdout
    rows = [json.loads(line) for line in listed.splitlines()]
    tasks = {row["instance_id"]: row for row in rows}
    state = pathlib.Path(tempfile.mkdtemp(prefix="assay-cheats-"))
    state.chmod(0o755)
    workers, tap, todo = [], Tap(), queue.Queue()
    try:
        workers = [Worker(state, FIRST_SLOT + i) for i in range(WORKERS)]
        why = no_boxes(workers[0], tasks["sh-total"])
        if why:
            print("Bail out! " + why if os.environ.get("ASSAY_BOX_MUST_WORK") == "1"
                  else "1..0 # SKIP " + why)
            return int(os.environ.get("ASSAY_BOX_MUST_WORK") == "1")
        for job in jobs(tasks):
            if not WORDS or any(word in job[0] for word in WORDS):
                todo.put(job)
        threads = [threading.Thread(target=work, args=(w, todo, tap)) for w in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("1..%d" % tap.count)
    finally:
        for worker in workers:
            worker.close()
        shutil.rmtree(state, ignore_errors=True)
    return int(tap.failed > 0)


sys.exit(main())
