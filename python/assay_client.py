"""A client of assayd, over its socket. Standard library only.

    client = Client()
    for episode in client.open("repair-gcd-1", count=8, seed=7):
        print(episode.step("bash", command="ls").text)
        print(episode.submit()["reward"])

An Episode counts its steps itself and sends each with an id, so that a call that is repeated after
a lost connection is never made twice.
"""
import http.client
import json
import os
import pathlib
import socket
import time
import urllib.parse
import uuid
from dataclasses import dataclass

RETRIES = 30  # of a call that found nobody, or was refused for now
PAUSE_S = 0.2


class Problem(Exception):
    """What the daemon refused; fields are those of its problem object."""

    def __init__(self, status, body):
        self.status = status
        try:
            self.fields = json.loads(body)
        except ValueError:
            self.fields = {}
        self.code = self.fields.get("code", "")
        super().__init__(f"{status} {self.code}: {self.fields.get('detail', '')}")


def default_socket():
    """Where the command line looks: ASSAY_SOCKET, then the runtime and state directories."""
    if path := os.environ.get("ASSAY_SOCKET"):
        return path
    if state := os.environ.get("ASSAY_STATE"):
        return os.path.join(state, "run", "api.sock")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(runtime, "assay", "api.sock")
    state = os.environ.get("XDG_STATE_HOME") or pathlib.Path.home() / ".local" / "state"
    return os.path.join(state, "assay", "run", "api.sock")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("assay", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


@dataclass
class Observation:
    """What a step showed; `end` is why the episode is over, or None."""
    step: int
    text: str
    error: bool
    end: str | None


class Client:
    """One daemon. Safe to share between threads: every call has a connection of its own."""

    def __init__(self, path=None, timeout=900):
        self.path = path or default_socket()
        self.timeout = timeout

    def request(self, method, target, body=None, headers=None):
        """Status and bytes of one call."""
        connection = _Connection(self.path, self.timeout)
        try:
            connection.request(method, target, body=body, headers=headers or {})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def call(self, method, target, body=None, again=True):
        """The answer's JSON (None when empty). `again`: the call may be made more than once, so it
        is, while nobody answers or there is no room."""
        data = json.dumps(body).encode() if body is not None else None
        for left in range(RETRIES if again else 0, -1, -1):
            try:
                status, answer = self.request(method, target, data)
            except (OSError, http.client.HTTPException):
                if left == 0:
                    raise
            else:
                if status < 400:
                    return json.loads(answer) if answer else None
                if status not in (429, 503) or left == 0:
                    raise Problem(status, answer)
            time.sleep(PAUSE_S)
        raise AssertionError("not reached")

    def bytes(self, method, target, body=None):
        status, answer = self.request(method, target, body)
        if status >= 400:
            raise Problem(status, answer)
        return answer

    def open(self, task, **options):
        """Opens episodes of a task: count, seed, limits. A list of Episode."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        body = json.dumps({"task": task, **options}).encode()
        status, answer = self.request("POST", "/v1/episodes", body, headers)
        if status >= 400:
            raise Problem(status, answer)
        reply = json.loads(answer)
        return [Episode(self, row["id"], 0, reply.get("observation"), reply["tools"]) for row in reply["data"]]

    def episode(self, episode_id):
        """One that is open already, where it stands."""
        return Episode(self, episode_id, self.call("GET", f"/v1/episodes/{episode_id}")["steps"] or 0)

    def import_tasks(self, rows, dataset):
        """Puts task rows (dicts) into the daemon."""
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        query = urllib.parse.urlencode({"dataset": dataset})
        return json.loads(self.bytes("POST", f"/v1/tasks/import?{query}", text))


class Episode:
    """One open episode. Not safe to share between threads."""

    def __init__(self, client, episode_id, steps, observation=None, tools=None):
        self.client, self.id, self.steps = client, episode_id, steps
        self.observation, self.tools = observation, tools

    def _post(self, verb, body=None, again=False):
        return self.client.call("POST", f"/v1/episodes/{self.id}/{verb}", body or {}, again)

    def step(self, tool, **arguments):
        """Calls a tool."""
        reply = self._post("step", {"step": self.steps + 1, "request_id": uuid.uuid4().hex,
                                    "action": {"tool": tool, "arguments": arguments}}, again=True)
        self.steps = reply["step"]
        return Observation(reply["step"], reply["observation"]["text"], reply["observation"]["error"], reply["end"])

    def exec(self, command, **options):
        """Runs a command beside the policy: a shell line or a list of words; cwd, timeout_s, stdin."""
        return self._post("exec", {"shell" if isinstance(command, str) else "argv": command, **options})

    def _file(self, path):
        return f"/v1/episodes/{self.id}/files?{urllib.parse.urlencode({'path': path})}"

    def read(self, path):
        return self.client.bytes("GET", self._file(path))

    def write(self, path, data):
        self.client.bytes("PUT", self._file(path), data)

    def diff(self):
        return self.client.bytes("GET", f"/v1/episodes/{self.id}/diff").decode("utf-8", "surrogateescape")

    def fork(self, count=1, at_step=None):
        """Children with the same past."""
        body = {"count": count} if at_step is None else {"count": count, "at_step": at_step}
        rows = self._post("fork", body)["data"]
        return [Episode(self.client, row["id"], row["fork_step"], self.observation, self.tools) for row in rows]

    def rollback(self, to_step):
        self.steps = self._post("rollback", {"to_step": to_step})["steps"]

    def submit(self, wait_s=600, end="submitted"):
        """Ends it; the episode with verdict and reward, if its grade is done in that time. `end`:
        why, if the policy did not submit: token_limit, time_limit, repetition, unparsable, cheat."""
        return self._post(f"submit?wait_s={wait_s}", {"end": end}, again=True)

    def show(self, wait_s=0):
        return self.client.call("GET", f"/v1/episodes/{self.id}?wait_s={wait_s}")

    def transcript(self):
        return self.client.bytes("GET", f"/v1/episodes/{self.id}/steps").decode()

    def close(self):
        self.client.bytes("DELETE", f"/v1/episodes/{self.id}")
