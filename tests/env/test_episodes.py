"""Episodes over the real socket, with real workers and boxes. Prints TAP.

    test_episodes.py ASSAYD ASSAY WORKER LIBEXEC [CASE... | --boxes]

--boxes: as many episodes in boxes at once as can be, and as memory allows; ASSAY_OPTIN=1 or ASSAY_OPTIN=episodes.
"""
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from daemon import Daemon, run_cases, task_row  # noqa: E402
from processes import children_of, comm  # noqa: E402

ASSAYD, ASSAY, WORKER, LIBEXEC = (os.path.abspath(path) for path in sys.argv[1:5])
del sys.argv[2:5]
os.environ["XDG_CACHE_HOME"] = tempfile.gettempdir()
MANY = 250 if b"__asan_init" in pathlib.Path(ASSAYD).read_bytes() else 1000
CASES = []


def case(function):
    CASES.append(function)
    return function


def check(condition, what=""):
    if not condition:
        raise AssertionError(what)


def same(got, wanted):
    check(got == wanted, f"got {got!r}, wanted {wanted!r}")


def is_host(pid):
    try:
        return b"--episodes" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has gone meanwhile
        return False


class Lab(Daemon):
    """A daemon with a few repair tasks."""

    def __init__(self, **config):
        super().__init__(ASSAYD, worker=WORKER, allow_degraded="true", libexec=LIBEXEC, **config)

    def start(self):
        super().start()
        reply = self.call("POST", "/v1/tasks/import?dataset=repair", TASKS)
        same(reply.status, 200)
        return self

    def open(self, **more):
        """Episodes of the first repair task, unless another is named."""
        reply = self.call("POST", "/v1/episodes", {"task": ROW["instance_id"], **more})
        same(reply.status, 201)
        return [episode["id"] for episode in reply.json["data"]]

    def step(self, episode, number, tool, status=200, request_id=None, **arguments):
        body = {"step": number, "action": {"tool": tool, "arguments": arguments}}
        if request_id is not None:
            body["request_id"] = request_id
        reply = self.call("POST", f"/v1/episodes/{episode}/step", body, timeout=60)
        check(reply.status == status, f"{tool} {arguments}: {reply.status} {reply.body!r}")
        return reply.json["observation"]["text"] if status == 200 else reply.json

    def bash(self, episode, number, command):
        return self.step(episode, number, "bash", command=command)

    def post(self, episode, verb, body=None, status=200, query=""):
        reply = self.call("POST", f"/v1/episodes/{episode}/{verb}{query}", body or {}, timeout=60)
        check(reply.status == status, f"{verb}: {reply.status} {reply.body!r}")
        return reply.json

    def show(self, episode, query=""):
        return self.call("GET", f"/v1/episodes/{episode}{query}", timeout=60).json

    def steps(self, episode):
        return self.call("GET", f"/v1/episodes/{episode}/steps").body

    def diff(self, episode):
        return self.call("GET", f"/v1/episodes/{episode}/diff").body.decode()

    def hosts(self):
        return [pid for pid in children_of(self.process.pid, 1) if is_host(pid)]

    def metric(self, name):
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.call("GET", "/metrics").body.decode(), re.M)
        return float(found.group(1)) if found else None


def gold_edits(row):
    """(path, old, new) of every hunk of the reference patch."""
    path = None
    for block in re.split(r"(?m)^(?=@@|diff )", row["patch"]):
        if named := re.search(r"(?m)^\+\+\+ b/(.*)$", block):
            path = named.group(1)
        if block.startswith("@@"):
            lines = [line for line in block.split("\n")[1:] if line[:1] in (" ", "-", "+")]
            yield (path, "".join(line[1:] + "\n" for line in lines if line[0] != "+"),
                   "".join(line[1:] + "\n" for line in lines if line[0] != "-"))


def solve(lab, episode, number):
    for path, old, new in gold_edits(ROW):
        text = lab.step(episode, number, "str_replace_editor", command="str_replace", path=path,
                        old_str=old, new_str=new)
        check("is now" in text, text)
        number += 1
    return number


@case
def an_episode_from_open_to_reward():
    with Lab() as lab:
        reply = lab.call("POST", "/v1/episodes", {"task": ROW["instance_id"], "count": 3, "seed": 7,
                                                  "limits": {"turns": 20}})
        same(reply.status, 201)
        same([episode["seed"] for episode in reply.json["data"]], ["7", "8", "9"])
        same(reply.json["data"][0]["limits"]["turns"], 20)
        same(reply.json["observation"], ROW["problem_statement"])
        same([tool["function"]["name"] for tool in reply.json["tools"]], ["edit", "search", "bash", "submit"])
        right, none, closed = (episode["id"] for episode in reply.json["data"])
        path = next(gold_edits(ROW))[0]
        check(path in lab.step(right, 1, "edit", command="view", path="."))
        check("expected view" in lab.step(right, 2, "file_editor", command="fly", path=path))
        check("There is no tool" in lab.step(right, 3, "teleport"))
        check("missing" in lab.step(right, 4, "grep"))
        number = solve(lab, right, 5)
        check(path in lab.diff(right))
        shown = lab.post(right, "exec", {"argv": ["cat", path]})
        same((shown["outcome"], shown["exit_code"]), ("exited", 0))
        check(next(gold_edits(ROW))[2] in shown["stdout"])
        same(lab.post(right, "exec", {"shell": "cat; pwd; exit 3", "stdin": "in\n"}),
             {"outcome": "exited", "exit_code": 3, "signal": 0, "stdout": "in\n/testbed\n", "stderr": "",
              "truncated": False})
        same(lab.call("GET", f"/v1/episodes/{right}/files?path={path}").body.decode(), shown["stdout"])
        last = lab.call("POST", f"/v1/episodes/{right}/step",
                        {"step": number, "action": {"tool": "finish", "arguments": {}}}).json
        same((last["done"], last["end"]), (True, "submitted"))
        # what had ended still answers a repeat, and shows what it left
        check("Submitted" in lab.step(right, number, "finish"))
        same(lab.step(right, number + 1, "edit", 409)["code"], "episode_ended")
        check(path in lab.diff(right))
        done = lab.show(right, "?wait_s=60")
        same((done["state"], done["end"], done["verdict"], done["reward"], done["mask"], done["steps"]),
             ("ended", "submitted", "resolved", 1.0, False, number))
        lost = lab.post(none, "submit", query="?wait_s=60")
        same((lost["verdict"], lost["reward"], lost["mask"]), ("unresolved", 0.0, False))
        same(lab.post(none, "submit")["grade"], lost["grade"])
        same(lab.call("DELETE", f"/v1/episodes/{closed}").status, 204)
        same(lab.call("DELETE", f"/v1/episodes/{closed}").status, 204)
        gone = lab.show(closed)
        same((gone["end"], gone["reward"], gone["mask"], gone["grade"]), ("aborted", None, True, None))
        listed = lab.call("GET", f"/v1/episodes?state=ended&task={ROW['instance_id']}").json["data"]
        same({episode["id"] for episode in listed}, {right, none, closed})
        same(lab.call("GET", "/v1/episodes?state=open").json["data"], [])
        same(lab.metric('assay_episodes_total{end="submitted"}'), 2)


@case
def limits_end_an_episode_and_its_reward_says_why():
    with Lab() as lab:
        turns, bad = lab.open(limits={"turns": 2})[0], lab.open(limits={"bad": 2})[0]
        lab.step(turns, 1, "search", pattern="def")
        lab.step(turns, 2, "search", pattern="def")
        done = lab.show(turns, "?wait_s=60")
        same((done["end"], done["reward"], done["mask"]), ("turn_limit", 0.0, False))
        lab.step(bad, 1, "nothing")
        lab.step(bad, 2, "nothing")
        done = lab.show(bad)
        same((done["end"], done["reward"], done["mask"], done["grade"]), ("unparsable", 0.0, False, None))
        circles, late = lab.open(count=2)
        done = lab.post(circles, "submit", {"end": "repetition"})
        same((done["end"], done["reward"], done["mask"], done["grade"]), ("repetition", 0.0, False, None))
        same(lab.post(circles, "submit", {}, 409)["end"], "repetition")
        done = lab.post(late, "submit", {"end": "token_limit"}, query="?wait_s=60")
        same((done["end"], done["reward"], done["verdict"]), ("token_limit", 0.0, "unresolved"))


@case
def a_step_is_made_once_and_gaps_are_refused():
    with Lab() as lab:
        episode = lab.open()[0]
        first = lab.step(episode, 1, "bash", request_id="a", command="echo x >> log; cat log; date +%N")
        same(lab.step(episode, 1, "bash", request_id="a", command="echo x >> log; cat log; date +%N"), first)
        same(lab.step(episode, 1, "bash", 409, request_id="b", command="true")["code"], "state_conflict")
        same(lab.step(episode, 3, "bash", 409, command="true")["code"], "state_conflict")
        same(lab.bash(episode, 2, "cat log"), "x\n")
        body = {"task": ROW["instance_id"], "count": 2}
        keyed = [lab.call("POST", "/v1/episodes", body, {"Idempotency-Key": "k"}) for _ in range(2)]
        same(keyed[0].json, keyed[1].json)
        same(lab.metric("assay_episodes_open"), 3)


@case
def bad_requests_name_the_field():
    with Lab(episodes_max=3) as lab:
        episode = lab.open()[0]
        action = {"tool": "edit", "arguments": {}}
        for verb, body, field in [
                ("", {"task": ROW["instance_id"], "cuont": 1}, "cuont"), ("", {"task": 3}, "task"), ("", {}, "task"),
                ("", {"task": ROW["instance_id"], "count": 0}, "count"),
                ("", {"task": ROW["instance_id"], "seed": -1}, "seed"),
                ("", {"task": ROW["instance_id"], "limits": {"turn": 1}}, "turn"),
                ("", {"task": ROW["instance_id"], "limits": {"turns": 0}}, "turns"),
                ("step", {"action": action}, "step"), ("step", {"step": 1}, "action"),
                ("step", {"step": 1, "action": {**action, "x": 1}}, "x"),
                ("step", {"step": 1, "action": {"tool": 4}}, "tool"),
                ("step", {"step": 1, "action": {"tool": "t" * 100}}, "tool"),
                ("step", {"step": 1, "action": {"tool": "edit", "arguments": []}}, "arguments"),
                ("step", {"step": 1, "action": [action] * 3}, "action"),
                ("step", {"step": 1, "action": action, "request_id": "r" * 300}, "request_id"),
                ("exec", {}, "argv"), ("exec", {"argv": "ls"}, "argv"), ("exec", {"argv": []}, "argv"),
                ("exec", {"argv": ["ls"], "shell": "ls"}, "argv"), ("exec", {"argv": ["a\0b"]}, ""),
                ("exec", {"shell": "ls", "cwd": "x"}, "cwd"), ("exec", {"shell": "ls", "timeout_s": 0}, "timeout_s"),
                ("exec", {"shell": "ls", "stdin": 4}, "stdin"), ("fork", {"count": 1000}, "count"),
                ("fork", {"at": 1}, "at"), ("rollback", {}, "to_step"), ("rollback", {"to_step": -2}, "to_step"),
                ("submit", {"patch": ""}, "patch"), ("submit", {"end": "infrastructure"}, "end"), ("submit", {"end": 1}, "end")]:
            reply = lab.call("POST", f"/v1/episodes/{episode}/{verb}" if verb else "/v1/episodes", body)
            check(reply.status == 400 and field in reply.json["detail"], f"{verb} {body}: {reply.body!r}")
        same(lab.call("POST", "/v1/episodes", {"task": "nobody"}).status, 404)
        same(lab.call("GET", f"/v1/episodes/{episode}/files").status, 400)
        same(lab.call("GET", "/v1/episodes?state=asleep").status, 400)
        full = lab.call("POST", "/v1/episodes", {"task": ROW["instance_id"], "count": 3})
        same((full.status, full.json["code"], full.json["open"], full.json["limit"]), (429, "quota_episodes", 1, 3))
        same(lab.post(episode, "fork", {"count": 3}, 429)["code"], "quota_episodes")
        same(lab.show(episode)["state"], "open")
    with Lab(disk_floor_mib=1048576) as lab:
        full = lab.call("POST", "/v1/episodes", {"task": ROW["instance_id"]})
        same((full.status, full.json["code"], full.json["floor_bytes"]), (507, "storage_full", 1 << 40))
        check(0 < full.json["free_bytes"] < 1 << 40)


@case
def attacks_are_refused_and_the_daemon_lives():
    with Lab() as lab:
        episode = lab.open()[0]
        secret = pathlib.Path(lab.state, "secret")
        secret.write_text("secret")
        for path in ("../secret", "/etc/passwd", str(secret), "a/../../secret", ".git/config", "x/./y", ""):
            for method in ("GET", "PUT"):
                reply = lab.call(method, f"/v1/episodes/{episode}/files?path={path}", "x" if method == "PUT" else None)
                check(reply.status in (400, 403, 404), f"{method} {path}: {reply.status}")
        lab.bash(episode, 1, f"ln -s {secret} link; ln -s / root; mkfifo pipe; truncate -s 100M big; ln -s . here")
        for path in ("link", "root/etc/passwd", "pipe", "big", "here/big"):
            reply = lab.call("GET", f"/v1/episodes/{episode}/files?path={path}")
            check(reply.status in (403, 413) and b"secret" not in reply.body, f"{path}: {reply.status} {reply.body}")
        lab.call("PUT", f"/v1/episodes/{episode}/files?path=link", "overwritten")
        same(secret.read_text(), "secret")
        try:
            same(lab.call("PUT", f"/v1/episodes/{episode}/files?path=x", "y" * (100 << 20)).status, 413)
        except BrokenPipeError:  # hung up on before it was sent
            pass
        same(lab.call("POST", f"/v1/episodes/{episode}/step", json.dumps({"step": 2, "action": {
            "tool": "bash", "arguments": {"command": "x" * (10 << 20)}}})).status, 413)
        deep = "[" * 2045 + "]" * 2045
        for field in ("argv", "stdin", "cwd", "timeout_s"):
            same(lab.call("POST", f"/v1/episodes/{episode}/exec", f'{{"{field}": {deep}}}').status, 400)
        for text in (deep, '{"command": %s}' % deep[1:-1], '{"command": "view", "path": %s}' % deep[1:-1]):
            reply = lab.call("POST", f"/v1/episodes/{episode}/step", '{"step": 2, "action": {"tool": "edit", "arguments": %s}}'
                             % text)
            check(reply.status in (200, 400), reply.body)
        lab.post(episode, "rollback", {"to_step": 1})
        many = json.dumps({"step": 2, "action": [0] * 100_000})
        same(lab.call("POST", f"/v1/episodes/{episode}/step", many).status, 400)
        check(len(lab.bash(episode, 2, "yes | head -c 50000000")) <= 10000)
        for other in ("ep_00000000000000000000000000", "grd_00000000000000000000000000", "%2e%2e", "x" * 300):
            for method, verb in (("GET", ""), ("GET", "/steps"), ("GET", "/diff"), ("POST", "/step"), ("DELETE", "")):
                reply = lab.call(method, f"/v1/episodes/{other}{verb}", {} if method == "POST" else None)
                check(reply.status in (400, 404), f"{method} {other[:20]}{verb}: {reply.status}")
        check("submitted" == lab.post(episode, "submit", query="?wait_s=60")["end"])
        same(lab.metric("assay_episode_hosts_lost_total"), 0)


@case
def children_are_equal_and_go_their_own_ways():
    with Lab() as lab:
        parent = lab.open(seed=3, limits={"marks": 8})[0]
        lab.bash(parent, 1, f"echo one > file; {STAMP} > when")
        lab.bash(parent, 2, "echo two >> file")
        when = lab.bash(parent, 3, "cat when")
        children = [child["id"] for child in lab.post(parent, "fork", {"count": 2}, 201)["data"]]
        for child in children:
            same(lab.bash(child, 4, "cat file when"), "one\ntwo\n" + when)
            same(lab.steps(child).splitlines()[:4], lab.steps(parent).splitlines())
        lab.bash(children[0], 5, "echo mine > file")
        same(lab.bash(children[1], 5, "cat file"), "one\ntwo\n")
        same(lab.bash(parent, 4, "cat file"), "one\ntwo\n")
        old = lab.post(parent, "fork", {"at_step": 1}, 201)["data"][0]
        same((old["parent"], old["fork_step"]), (parent, 1))
        same(lab.bash(old["id"], 2, "cat file when"), "one\n" + when)
        same(lab.post(parent, "rollback", {"to_step": 1})["steps"], 1)
        same(lab.bash(parent, 2, "cat file when"), "one\n" + when)
        lab.post(parent, "rollback", {"to_step": 9}, 409)
        lab.post(parent, "fork", {"at_step": 9}, 409)
        same(lab.post(parent, "rollback", {"to_step": 0})["steps"], 0)
        check("file" not in lab.bash(parent, 1, "ls").split())
        lab.post(children[1], "submit")
        again = lab.post(children[1], "fork", {"at_step": 2}, 201)["data"][0]["id"]
        same(lab.show(again)["steps"], 2)
        lab.post(children[1], "fork", {}, 409)


@case
def without_marks_steps_are_done_again():
    with Lab() as lab:
        parent = lab.open()[0]
        lab.bash(parent, 1, "echo one > file")
        lab.bash(parent, 2, f"{STAMP} | tee when")
        when = lab.bash(parent, 3, "cat when")
        child = lab.post(parent, "fork", {}, 201)["data"][0]["id"]
        same(lab.bash(child, 4, "cat when"), when)
        if STAMP.startswith("date"):
            same(lab.post(parent, "rollback", {"to_step": 2}, 409)["code"], "state_conflict")
        same(lab.bash(parent, 4, "cat when"), when)
        same(lab.post(parent, "rollback", {"to_step": 1})["steps"], 1)
        same(lab.bash(parent, 2, "cat file when 2>&1"), "one\ncat: when: No such file or directory\n[exit status 1]\n")


@case
def a_transcript_is_the_same_again():
    with Lab() as lab:
        texts = []
        for _ in range(2):
            episode = lab.open(seed=11)[0]
            lab.step(episode, 1, "edit", command="view", path=".")
            lab.bash(episode, 2, "ls; echo $((6 * 7)) > answer")
            lab.call("PUT", f"/v1/episodes/{episode}/files?path=put.txt", b"\xff\0bytes")
            lab.post(episode, "exec", {"shell": "sha256sum put.txt answer"})
            number = solve(lab, episode, 3)
            lab.step(episode, number, "submit", request_id="r")
            texts.append(lab.steps(episode))
        first, second = (re.sub(rb'"us":\d+', b"", text) for text in texts)
        same(first, second)
        record = pathlib.Path(lab.state, "record")
        record.write_bytes(texts[0])
        rows_file = pathlib.Path(lab.state, "rows.jsonl")
        rows_file.write_text(TASKS)
        done = subprocess.run([ASSAY, "episode", "replay", ROW["instance_id"], "--dataset", rows_file, "--record",
                               record], capture_output=True, text=True, check=False,
                              env={**os.environ, "ASSAY_LIBEXEC": LIBEXEC, "ASSAY_ALLOW_DEGRADED": "true"})
        check(done.returncode == 0 and "the same" in done.stderr, done.stderr)


def wait_for(what, seconds=30):
    deadline = time.monotonic() + seconds
    while not what():
        check(time.monotonic() < deadline, "waited in vain")
        time.sleep(0.005)


@case
def a_killed_daemon_loses_no_step():
    with Lab() as lab:
        memory, boxed = lab.open(count=2)
        solve(lab, memory, 1)
        for number in range(1, 4):
            lab.bash(boxed, number, f"echo {number} >> log")
        before = lab.diff(memory)
        lab.kill()
        lab.start()
        same(lab.show(boxed)["steps"], 3)
        same(lab.bash(boxed, 4, "cat log"), "1\n2\n3\n")
        same(lab.diff(memory), before)
        same(lab.bash(boxed, 4, "cat log"), "1\n2\n3\n")
        lab.kill()
        lab.start()
        done = lab.post(memory, "submit", query="?wait_s=60")
        same((done["verdict"], done["reward"]), ("resolved", 1.0))


@case
def a_client_does_not_notice_that_the_daemon_was_killed():
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))
    from assay_client import Client
    with Lab() as lab:
        episode = Client(lab.socket).open(ROW["instance_id"])[0]
        said = []
        thread = threading.Thread(target=lambda: said.append(episode.step("bash", command="echo x >> log; sleep 0.7; cat log").text))
        thread.start()
        wait_for(lambda: any(comm(pid) == "sleep" for pid in children_of(lab.process.pid, 6)))
        lab.kill()
        lab.start()
        thread.join()
        same(said, ["x\n"])
        same(episode.step("bash", command="cat log").text, "x\n")
        same((episode.steps, lab.show(episode.id)["steps"]), (2, 2))


@case
def a_host_killed_during_a_step_costs_nothing():
    with Lab(episode_hosts=2) as lab:
        episode = lab.open()[0]
        lab.bash(episode, 1, "echo 1 >> log")
        said = []
        thread = threading.Thread(target=lambda: said.append(lab.bash(episode, 2, "echo 2 >> log; sleep 0.7; cat log")))
        thread.start()
        wait_for(lambda: any(comm(pid) == "sleep" for pid in children_of(lab.process.pid, 6)))
        for pid in lab.hosts():
            os.kill(pid, signal.SIGKILL)
        thread.join()
        same(said, ["1\n2\n"])
        same(lab.bash(episode, 3, "cat log"), "1\n2\n")
        same(lab.show(episode)["steps"], 3)
        check(lab.metric("assay_episode_hosts_lost_total") >= 1)
        # what cannot be done again is lost to our machine: masked, not reward 0
        odd = lab.open()[0]
        lab.bash(odd, 1, "date +%N")
        for pid in lab.hosts():
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not lab.hosts())
        same(lab.step(odd, 2, "bash", 409, command="true")["end"], "infrastructure")
        lost = lab.show(odd)
        same((lost["end"], lost["reward"], lost["mask"]), ("infrastructure", None, True))
        check("shows something else" in lost["why"], lost["why"])


@case
def what_a_host_says_is_not_believed():
    with Lab(episode_hosts=1) as lab:
        lab.kill()
        fake = pathlib.Path(lab.state, "host")
        fake.write_text(f"#!/bin/sh\nexec {sys.executable} -IS {pathlib.Path(__file__).resolve().parent}/fake_host.py $@\n")
        fake.chmod(0o755)
        lab.worker = str(fake)
        lab.start()
        for kind, episode in enumerate(lab.open(count=8, seed=1), 1):
            refused = lab.step(episode, 1, "bash", 409, command="true")
            same((kind, refused["code"], refused["end"]), (kind, "episode_ended", "infrastructure"))
            shown = lab.show(episode)
            same((shown["reward"], shown["mask"], shown["grade"]), (None, True, None))
        same(lab.metric("assay_episode_hosts_lost_total"), 24)


@case
def a_long_command_keeps_nobody_waiting():
    with Lab(episode_hosts=1, episode_boxes=2) as lab:
        slow, quick, third = lab.open(count=3)
        thread = threading.Thread(target=lambda: lab.bash(slow, 1, "sleep 1.5"))
        start = time.monotonic()
        thread.start()
        wait_for(lambda: any(comm(pid) == "sleep" for pid in children_of(lab.process.pid, 6)))
        lab.step(quick, 1, "search", pattern="def")
        lab.bash(quick, 2, "true")
        refused = lab.step(third, 1, "bash", 429, command="true")
        same(refused["code"], "quota_boxes")
        check(time.monotonic() - start < 1.5, "they waited")
        thread.join()
        same(lab.call("DELETE", f"/v1/episodes/{quick}").status, 204)
        lab.bash(third, 1, "true")
        # who gives an episode up does not wait for its command
        thread = threading.Thread(target=lambda: lab.bash(slow, 2, "sleep 50"))
        start = time.monotonic()
        thread.start()
        wait_for(lambda: any(comm(pid) == "sleep" for pid in children_of(lab.process.pid, 6)))
        same(lab.call("DELETE", f"/v1/episodes/{slow}").status, 204)
        thread.join()
        check(time.monotonic() - start < 25, "it waited")
        same(lab.show(slow)["end"], "aborted")


HIDDEN = ("diff --git a/check.sh b/check.sh\nnew file mode 100644\n--- /dev/null\n+++ b/check.sh\n@@ -0,0 +1 @@\n"
          "+grep -q 2 value && echo PASS value || echo FAIL value\n")
GOLD = "diff --git a/value b/value\n--- a/value\n+++ b/value\n@@ -1 +1 @@\n-1\n+2\n"


def repository(path):
    """A repository with one commit, and the row of a task in it."""
    files = {"value": "1\n", "src/deep/a.txt": "needle\n", "src/b.txt": "needle\n" + "x\n" * 8 + "needle\n", "README": "read me\n"}
    for name, text in files.items():
        target = pathlib.Path(path, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def git(*args):
        return subprocess.run(["git", "-C", path, "-c", "user.name=t", "-c", "user.email=t@t", *args], check=True,
                              capture_output=True, text=True).stdout.strip()
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    script = ("#!/bin/bash\nset -uxo pipefail\ncd /testbed\nrm -f check.sh\n"
              f"git apply -v - <<'EOF_114329324912'\n{HIDDEN}\nEOF_114329324912\n"
              ": '>>>>> Start Test Output'\nsh check.sh\n: '>>>>> End Test Output'\nrm -f check.sh\n")
    return {"instance_id": "lab__repo-1", "repo": "lab/repo", "repo_url": str(path), "base_commit": git("rev-parse", "HEAD"),
            "problem_statement": "make it 2", "test_patch": HIDDEN, "patch": GOLD, "eval_script": script,
            "log_parser": "assay_plain", "FAIL_TO_PASS": ["value"], "PASS_TO_PASS": []}


@case
def a_repository_task_stands_on_its_checkout():
    with Lab() as lab, tempfile.TemporaryDirectory() as where:
        row = repository(where)
        same(lab.call("POST", "/v1/tasks/import?dataset=lab", json.dumps(row)).json["imported"], 1)
        reply = lab.call("POST", "/v1/episodes", {"task": "lab__repo-1", "count": 2, "limits": {"marks": 8}}).json
        one, two = (episode["id"] for episode in reply["data"])
        same(lab.bash(one, 1, "git status --short; cat value src/deep/a.txt"), "1\nneedle\n")
        same(lab.step(one, 2, "search", pattern="needle"), "src/b.txt:1:needle\nsrc/b.txt:10:needle\nsrc/deep/a.txt:1:needle\n")
        check("is now" in lab.step(one, 3, "edit", command="str_replace", path="value", old_str="1", new_str="3"))
        lab.bash(one, 4, f"rm README; echo new > src/new; ln -s /etc/passwd link; {STAMP} > when")
        when = lab.call("GET", f"/v1/episodes/{one}/files?path=when").body
        diff = lab.diff(one)
        check("+3" in diff and "deleted file mode" in diff and "src/new" in diff and "root:" not in diff, diff)
        check(lab.call("GET", f"/v1/episodes/{one}/files?path=link").status == 403)
        child = lab.post(one, "fork", {}, 201)["data"][0]["id"]
        same(lab.diff(child), diff)
        same(lab.call("GET", f"/v1/episodes/{child}/files?path=when").body, when)
        lab.post(one, "rollback", {"to_step": 3})
        check("README" not in lab.diff(one) and "+3" in lab.diff(one))
        lab.step(one, 4, "edit", command="str_replace", path="value", old_str="3", new_str="2")
        lab.kill()
        lab.start()
        same(lab.bash(one, 5, "cat value"), "2\n")
        done = lab.post(one, "submit", query="?wait_s=60")
        same((done["verdict"], done["reward"], done["mask"]), ("resolved", 1.0, False))
        done = lab.post(two, "submit", query="?wait_s=60")
        same((done["verdict"], done["reward"]), ("unresolved", 0.0))
        # too much for a diff is the policy's doing: reward 0, not masked
        huge = lab.open(task="lab__repo-1")[0]
        lab.bash(huge, 1, "echo 2 > value; head -c 14000000 /dev/urandom | base64 > big")
        check("too many for a diff" in lab.diff(huge), lab.diff(huge)[:100])
        done = lab.post(huge, "submit", query="?wait_s=60")
        same((done["verdict"], done["reward"], done["mask"]), ("patch_failed", 0.0, False))
        # what cannot be prepared is refused, and the episode stays open
        bad = {**row, "instance_id": "lab__repo-2", "base_commit": "f" * 40}
        lab.call("POST", "/v1/tasks/import?dataset=lab", json.dumps(bad))
        third = lab.call("POST", "/v1/episodes", {"task": "lab__repo-2"}).json["data"][0]["id"]
        for _ in range(2):
            check("prepare lab__repo-2: " in lab.step(third, 1, "search", 500, pattern="x")["detail"])
        same((lab.show(third)["state"], lab.show(third)["steps"]), ("open", None))
        same(lab.call("DELETE", f"/v1/episodes/{third}").status, 204)
        same((lab.show(third)["end"], lab.metric("assay_episodes_open")), ("aborted", 1))


def assay(lab, *args, rc=0):
    done = subprocess.run([ASSAY, *map(str, args), "--state", lab.state], capture_output=True, text=True, check=False)
    check(done.returncode == rc, f"{args}: {done.returncode} {done.stderr}")
    return done.stdout if rc == 0 else done.stderr


@case
def the_command_line_does_it_all():
    with Lab() as lab:
        first, second = assay(lab, "episode", "open", ROW["instance_id"], "--count", 2, "--turns", 9).split()
        check("hello" in assay(lab, "episode", "step", first, "bash", '{"command": "echo hello | tee made"}'))
        shown = json.loads(assay(lab, "episode", "step", first, "grep", '{"pattern": "hello"}', "--json"))
        same((shown["step"], shown["observation"]["text"]), (2, "made:1:hello\n"))
        same(assay(lab, "episode", "exec", first, "cat", "made"), "hello\n")
        assay(lab, "episode", "exec", first, "false", rc=1)
        check("+hello" in assay(lab, "episode", "diff", first))
        child = assay(lab, "episode", "fork", first, "--at-step", 0).strip()
        same(assay(lab, "episode", "diff", child), "")
        check("steps        1" in assay(lab, "episode", "rollback", first, 1))
        check("submitted" in assay(lab, "episode", "submit", first))
        check("reward       0" in assay(lab, "episode", "show", first))
        same(len(assay(lab, "episode", "steps", first).splitlines()), 3)
        assay(lab, "episode", "close", second)
        same({line.split("\t")[0] for line in assay(lab, "episode", "ls", "--ended").splitlines()}, {first, second})
        same([line.split("\t")[0] for line in assay(lab, "episode", "ls", "--open").splitlines()], [child])
        check("arguments: line 1" in assay(lab, "episode", "step", child, "bash", "{", rc=2))
        check("not found" in assay(lab, "episode", "show", "ep_x", rc=3))


@case
def the_example_solves_its_task():
    with Lab() as lab:
        rows_file = pathlib.Path(lab.state, "rows.jsonl")
        rows_file.write_text(TASKS)
        example = pathlib.Path(__file__).resolve().parents[2] / "examples" / "episode.py"
        done = subprocess.run([sys.executable, example, rows_file], capture_output=True, text=True, check=False,
                              env={**os.environ, "ASSAY_SOCKET": lab.socket})
        check(done.returncode == 0 and done.stdout.endswith("submitted resolved reward 1.0\n"), done.stdout + done.stderr)


def each(count, threads, function):
    numbers = iter(range(count))
    lock, errors = threading.Lock(), []

    def work():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None or errors:
                return
            try:
                function(number)
            except Exception as why:  # one is enough
                errors.append(why)
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]


def rss_kib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1))


@case
def a_thousand_are_open_at_once():
    with Lab() as lab:
        lab.step(lab.open()[0], 1, "search", pattern="def")
        lab.step(lab.open()[0], 1, "search", pattern="def")
        before = sum(map(rss_kib, lab.hosts()))
        start = time.monotonic()
        ids = [episode for _ in range(MANY // 250) for episode in lab.open(count=250)]
        opened = time.monotonic()
        took = []

        def one(number):
            begun = time.monotonic()
            lab.step(ids[number], 1, "search", pattern="def")
            took.append(time.monotonic() - begun)
        each(len(ids), 8, one)
        stepped = time.monotonic()
        kib = sum(map(rss_kib, lab.hosts())) - before
        same(lab.metric("assay_episodes_loaded"), len(ids) + 2)
        each(len(ids), 8, lambda number: same(lab.call("DELETE", f"/v1/episodes/{ids[number]}").status, 204))
        took.sort()
        print(f"# {len(ids)} episodes: open {opened - start:.2f} s, a step each {stepped - opened:.2f} s "
              f"(median {took[len(took) // 2] * 1e3:.1f} ms of 8 at once), close {time.monotonic() - stepped:.2f} s, "
              f"{kib / len(ids):.1f} KiB each")
        same(lab.metric("assay_episodes_open"), 2)


@case
def a_step_costs_little_beyond_its_command():
    with Lab() as lab:
        episode = lab.open(limits={"turns": 400})[0]
        lab.bash(episode, 1, "true")
        over = []
        for number in range(2, 152):
            start = time.monotonic()
            lab.bash(episode, number, "true")
            over.append((time.monotonic() - start) * 1e6)
        inside = [json.loads(line)["us"] for line in lab.steps(episode).splitlines()[2:]]
        costs = sorted(wall - us for wall, us in zip(over, inside))
        print(f"# step of bash true: {sorted(over)[75] / 1e3:.2f} ms, in the box {sorted(inside)[75] / 1e3:.2f} ms, "
              f"overhead {costs[75] / 1e3:.2f} ms (p90 {costs[135] / 1e3:.2f})")


def many_are_in_boxes_at_once():
    free_mib = int(re.search(r"MemAvailable:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1)) // 1024
    count = min(700, (free_mib - 2048) // 4)
    with Lab(episode_boxes=700) as lab:
        ids = [episode for start in range(0, count, 175) for episode in lab.open(count=min(175, count - start))]
        start = time.monotonic()
        each(count, 4, lambda number: lab.bash(ids[number], 1, f"echo {number} > mine"))
        entered = time.monotonic()
        took = []

        def again(number):
            begun = time.monotonic()
            same(lab.bash(ids[number], 2, "cat mine"), f"{number}\n")
            took.append(time.monotonic() - begun)
        each(count, 1, again)
        used = free_mib - int(re.search(r"MemAvailable:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1)) / 1024
        print(f"# {count} in boxes: first command {(entered - start) / count * 1e3:.1f} ms each, next one median "
              f"{sorted(took)[count // 2] * 1e3:.1f} ms, {used / count:.2f} MiB each")
        each(count, 4, lambda number: same(lab.call("DELETE", f"/v1/episodes/{ids[number]}").status, 204))


def probe():
    """Why there are no boxes here, or None; and a command that shows something else each time, where states of
    boxes can be kept."""
    with Lab() as lab:
        first = lab.open(limits={"marks": 2})[0]
        reply = lab.call("POST", f"/v1/episodes/{first}/step",
                         {"step": 1, "action": {"tool": "bash", "arguments": {"command": "date +%N"}}})
        if reply.status != 200:
            return reply.json["detail"], ""
        child = lab.post(first, "fork", {}, 201)["data"][0]["id"]
        return None, "date +%N" if lab.show(child)["state"] == "open" else "echo the same"


def make_tasks():
    done = subprocess.run([ASSAY, "task", "generate", "repair", "--count", "3", "--families", "python"],
                          capture_output=True, text=True, check=True)
    return done.stdout


TASKS = make_tasks()
ROW = json.loads(TASKS.splitlines()[0])
WHY, STAMP = probe()
if WHY is not None and os.environ.get("ASSAY_BOX_MUST_WORK") != "1":
    print("1..0 # SKIP no boxes:", WHY)
    sys.exit(0)
if "--boxes" in sys.argv:
    sys.argv.remove("--boxes")
    if not {"1", "episodes"} & set(os.environ.get("ASSAY_OPTIN", "").split(",")):
        print("1..0 # SKIP opt-in: ASSAY_OPTIN=episodes")
        sys.exit(0)
    CASES[:] = [many_are_in_boxes_at_once]
sys.exit(run_cases(CASES))
