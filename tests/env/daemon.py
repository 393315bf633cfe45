"""A daemon under test: starts assayd on a scratch state directory and speaks HTTP on its socket."""
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback

BUGS = re.compile("Sanitizer|runtime error|assertion|CRITICAL|invalid .*pointer")
HERE = pathlib.Path(__file__).resolve().parent


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout=30):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Reply:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def lines(self):
        return [json.loads(line) for line in self.body.splitlines() if line.strip()]


class Daemon:
    def __init__(self, assayd, state=None, worker=None, preexec=None, libexec=None, **config):
        self.assayd = assayd
        self.own = state is None
        self.state = state or tempfile.mkdtemp(prefix="assay-test-")
        self.socket = os.path.join(self.state, "run", "api.sock")
        self.worker = worker or str(HERE / "fake_worker.py")
        self.config = {"workers": 2, "disk_floor_mib": 0, **config}
        self.preexec = preexec
        self.libexec = libexec
        self.process = None
        self.log = None

    def start(self):
        env = {key: value for key, value in os.environ.items() if not key.startswith("ASSAY_")}
        env["XDG_CONFIG_HOME"] = self.state + "/config"
        env.pop("XDG_RUNTIME_DIR", None)
        env["LSAN_OPTIONS"] = f"suppressions={HERE.parent / 'lsan.supp'}"
        env["ASAN_OPTIONS"] = env.get("ASAN_OPTIONS", "detect_leaks=1") + ":fast_unwind_on_malloc=0"
        if self.libexec:
            env["ASSAY_LIBEXEC"] = self.libexec
        flags = [f"--{key.replace('_', '-')}={value}" for key, value in self.config.items()]
        self.log = open(os.path.join(self.state, "assayd.log"), "ab")
        self.process = subprocess.Popen(
            [self.assayd, "--state", self.state, "--worker-program", self.worker, *flags],
            stdout=subprocess.PIPE, stderr=self.log, env=env, preexec_fn=self.preexec)
        line = self.process.stdout.readline()
        if not line.startswith(b"ready "):
            raise RuntimeError("the daemon did not start: " + self.log_text())
        return self

    def log_text(self):
        return pathlib.Path(self.state, "assayd.log").read_text(errors="replace")

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        self.process.wait(timeout=30)
        self.process.stdout.close()
        self.log.close()
        return self.process.returncode

    def __enter__(self):
        return self.start()

    def __exit__(self, *unused):
        """Stops it; its log must be free of what only a bug writes."""
        status = self.kill(signal.SIGTERM) if self.process.poll() is None else self.process.returncode
        log = self.log_text()
        if self.own:
            shutil.rmtree(self.state, ignore_errors=True)
        bugs = [line for line in log.splitlines() if BUGS.search(line)]
        if bugs or status != 0:
            raise AssertionError(f"exit {status}; log: {bugs[:3]} {log[-3000:] if bugs else ''}")

    def connect(self, timeout=30):
        return UnixConnection(self.socket, timeout)

    def call(self, method, path, body=None, headers=None, timeout=30):
        connection = self.connect(timeout)
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        connection.request(method, path, body=body, headers=headers or {})
        reply = Reply(connection.getresponse())
        connection.close()
        return reply

    def raw(self, data, timeout=5):
        """Sends bytes, returns all that comes back until the peer closes or is quiet."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout)
            sock.connect(self.socket)
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            got = b""
            try:
                while chunk := sock.recv(65536):
                    got += chunk
            except OSError:
                pass
            return got

    def runs(self):
        """[(grade id, attempt, word)] of every call of the fake worker."""
        path = pathlib.Path(self.state, "runs.log")
        if not path.exists():
            return []
        return [tuple(line.split()) for line in path.read_text().splitlines()]


def task_row(number, **more):
    return {"repo": "acme/calc", "instance_id": f"acme__calc-{number}", "base_commit": "0" * 39 + "1",
            "patch": "resolved gold\n", "test_patch": "diff --git a/t b/t\n", "problem_statement": "fix it",
            "version": "1.0", "FAIL_TO_PASS": ["test_a"], "PASS_TO_PASS": ["test_b"],
            "eval_script": "#!/bin/bash\npytest\n", "log_parser": "pytest", "eval_type": "pass_and_fail",
            **more}


def rows(items):
    return "".join(json.dumps(item) + "\n" for item in items)


def run_cases(cases):
    """Runs the functions (or those named on the command line) as TAP; true when one failed."""
    wanted = sys.argv[2:]
    cases = [c for c in cases if not wanted or c.__name__ in wanted]
    print(f"1..{len(cases)}")
    failed = 0
    for number, function in enumerate(cases, 1):
        name = function.__name__.replace("_", " ")
        try:
            function()
            print(f"ok {number} - {name}", flush=True)
        except Exception as why:  # a case that cannot finish has failed
            failed += 1
            print(f"not ok {number} - {name}", flush=True)
            for line in traceback.format_exc().splitlines() + [str(why)]:
                print("#", line[:600])
    return failed > 0
