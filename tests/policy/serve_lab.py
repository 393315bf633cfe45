"""What the tests of assay policy serve, sample and chat share: small models, a server, its clients."""
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

ASSAY = sys.argv[1]
WORDS = [word for word in sys.argv[2:] if not word.startswith("--")]
WHO = {"user": 61234, "group": 61234, "extra_groups": []} if "--as-user" in sys.argv else {}
CORPUS = pathlib.Path(__file__).with_name("corpus.txt").read_bytes()
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

# One token of the model "talks" is a whole answer, so that what is sampled can be chosen.
REASON, SAID = "the file first", "I look."
ANSWER = (f"<think>\n{REASON}\n</think>\n{SAID}\n<tool_calls>\n"
          '{"name": "look", "arguments": {"path": "a.c"}}\n</tool_calls>')


class Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Server:
    def __init__(self, tmp, *options, model="m", context=512):
        self.path = str(tmp / "policy.sock")
        where = () if "--listen" in options else ("--listen", self.path)
        self.process = subprocess.Popen(
            [ASSAY, "policy", "serve", "--model", str(tmp / model), "--context", str(context), *where, *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, **WHO)
        self.ready = self.process.stdout.readline().split()

    def __enter__(self):
        assert self.ready[:1] == ["ready"], self.process.stderr.read()
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            _, err = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.process.returncode == 0 and not err, (self.process.returncode, err)

    def connect(self):
        return Unix(self.path)

    def send(self, method, path, body=None):
        connection = self.connect()
        text = body if isinstance(body, (bytes, str, type(None))) else json.dumps(body)
        connection.request(method, path, text)
        return connection, connection.getresponse()

    def ask(self, method, path, body=None, status=200):
        connection, reply = self.send(method, path, body)
        data = reply.read()
        connection.close()
        assert reply.status == status, (reply.status, data)
        return json.loads(data) if reply.headers["Content-Type"] == "application/json" else data.decode()

    def post(self, path, status=200, /, **body):
        return self.ask("POST", path, body, status)

    def events(self, path, **body):
        connection, reply = self.send("POST", path, {**body, "stream": True})
        assert reply.status == 200, reply.read()
        assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        parts = reply.read().decode().split("\n\n")
        connection.close()
        assert parts[-2:] == ["data: [DONE]", ""], parts[-2:]
        return [json.loads(part.removeprefix("data: ")) for part in parts[:-2] if not part.startswith(":")]

    def metric(self, name):
        lines = dict(line.rsplit(" ", 1) for line in self.ask("GET", "/metrics").splitlines() if line[0] != "#")
        return float(lines[name])

    def resident(self):
        return int(pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096


def wait_for(what, seconds=20):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


def assay(*args):
    subprocess.run([ASSAY, "policy", *map(str, args)], check=True, capture_output=True, env=ENV, **WHO)


def init(tmp, name, seed=1, **changes):
    config = json.loads((tmp / "tiny" / "config.json").read_text())
    config.update({"vocab_size": 400, **changes})
    config.pop("vocab_valid", None)
    (tmp / "config.json").write_text(json.dumps(config))
    assay("init", "--config", tmp / "config.json", "--seed", seed, "--out", tmp / name)


def merges_of(text):
    """merges.txt whose last merge is the whole text: one byte more with each."""
    def spelled(data):  # GPT-2's alphabet
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        other = {b: 256 + i for i, b in enumerate(b for b in range(256) if b not in plain)}
        return "".join(chr(other.get(b, b)) for b in data)

    data = text.encode()
    lines = [f"{spelled(data[:i])} {spelled(data[i:i + 1])}" for i in range(1, len(data))]
    return "#version: 0.2\n" + "\n".join(lines) + "\n"


def always_says(tmp, name, text):
    """A model whose most likely token is `text`, with or without a line's end, whatever came before."""
    init(tmp, name, vocab_size=512)
    (tmp / name / "merges.txt").write_text(merges_of(text + "\n"))
    file = tmp / name / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:start])["lm_head.weight"]
    assert head["dtype"] == "BF16" and head["shape"][0] == 512, head
    row = 2 * head["shape"][1]
    begin, end = (start + offset for offset in head["data_offsets"])
    data[begin:end] = bytes(end - begin)
    last = 256 + len(text.encode()) - 1
    for token, one in [(last - 1, b"\x80\x3f"), (last, b"\x80\xbf")]:  # 1 and -1: the larger of x and -x wins
        data[begin + token * row:begin + (token + 1) * row] = one * (row // 2)
    file.write_bytes(data)


def prepare(tmp):
    (tmp / "corpus.txt").write_bytes(CORPUS)
    assay("train-tokenizer", "--vocab", 400, "--out", tmp / "t", tmp / "corpus.txt")
    assay("init", "--preset", "tiny", "--out", tmp / "tiny")
    for name, seed, theta in [("m", 1, 10000.0), ("m2", 2, 10000.0), ("m3", 1, 12345.0)]:
        init(tmp, name, seed, rope_theta=theta)
        for file in (tmp / "t").iterdir():
            shutil.copy(file, tmp / name)
    always_says(tmp, "talks", ANSWER)


def main(cases):
    chosen = [c for c in cases if not WORDS or any(w in c.__name__ for w in WORDS)]
    print(f"1..{len(chosen)}")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="assay-test-") as name:
        tmp = pathlib.Path(name)
        tmp.chmod(0o777)
        prepare(tmp)
        for number, function in enumerate(chosen, 1):
            title = function.__name__.replace("_", " ")
            try:
                skip = function(tmp)
                print(f"ok {number} {title}" + (f" # SKIP {skip}" if skip else ""), flush=True)
            except Exception:
                failed += 1
                print("".join("# " + line + "\n" for line in traceback.format_exc().splitlines()), end="")
                print(f"not ok {number} {title}", flush=True)
    return 1 if failed else 0
