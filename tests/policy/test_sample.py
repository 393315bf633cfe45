"""assay policy sample and chat. Prints TAP.

    test_sample.py ASSAY [--as-user] [WORD ...]        WORD selects cases by name
"""
import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time

import serve_lab as lab

CASES = []


def case(function):
    CASES.append(function)
    return function


def run(*args, rc=0, stdin=b""):
    done = subprocess.run([lab.ASSAY, "policy", *map(str, args)], capture_output=True, input=stdin, env=lab.ENV,
                          check=False, timeout=60, **lab.WHO)
    assert done.returncode == rc, (done.returncode, done.stderr)
    return done.stdout, done.stderr.decode()


@case
def samples_are_functions_of_their_seed(tmp):
    ask = ["sample", tmp / "m", "--prompt", "The ", "--max-tokens", 12, "--seed", 5]
    rows = [json.loads(line) for line in run(*ask, "--n", 3, "--json", "--logprobs")[0].splitlines()]
    assert [row["sample"] for row in rows] == [0, 1, 2] and len({row["text"] for row in rows}) == 3
    for i, row in enumerate(rows):
        ids = ",".join(map(str, row["token_ids"]))
        assert len(row["token_ids"]) == len(row["logprobs"]) == len(row["sampler_logprobs"]) <= 12, ids
        out, err = run(*ask[:-1], 5 + i)
        assert out.decode() == row["text"] + "\n" and "tokens/s" in err, "sample i draws with seed + i"
    (tmp / "prompt").write_bytes(b"The ")
    (tmp / "prompt").chmod(0o644)
    want = run(*ask)[0]
    assert run("sample", tmp / "m", "--prompt-file", tmp / "prompt", *ask[4:])[0] == want
    assert run("sample", tmp / "m", "--prompt-file", "-", *ask[4:], stdin=b"The ")[0] == want
    ids = run("tokenize", "--tokenizer", tmp / "m", stdin=b"The ")[0].decode().split()
    assert run("sample", tmp / "m", "--ids", ",".join(ids), *ask[4:])[0] == want


@case
def a_stop_string_ends_a_sample_and_is_not_shown(tmp):
    ask = ["sample", tmp / "m", "--prompt", "The ", "--max-tokens", 40, "--seed", 3, "--json"]
    free = json.loads(run(*ask)[0])
    stop = free["text"][6:8]
    held = json.loads(run(*ask, "--stop", stop)[0])
    assert held["text"] == free["text"].split(stop)[0] and held["stop_reason"] == stop, held
    assert held["finish_reason"] == "stop_string" and held["token_ids"] == free["token_ids"][:len(held["token_ids"])]


@case
def bad_options_are_refused_by_name(tmp):
    for args, word in [(["--temperature", "nan"], "--temperature"), (["--temperature", "-1"], "--temperature"),
                       (["--top-p", "1.5"], "--top-p"), (["--n", "0"], "--n"), (["--n", "5000"], "--n"),
                       (["--seed", "x"], "--seed"), (["--stop", ""], "stop"), (["--ids", "1"], "--ids"),
                       (["--context", "0"], "--context"), (["--logprobs"], "--json")]:
        assert word in run("sample", tmp / "m", "--prompt", "x", *args, rc=2)[1], args
    assert "outside the vocabulary" in run("sample", tmp / "m", "--ids", "1,399999", "--max-tokens", 9, rc=2)[1]
    assert "512" in run("sample", tmp / "m", "--prompt", "x", "--context", 512, "--max-tokens", 600, rc=6)[1]
    assert "room for" in run("sample", tmp / "m", "--prompt", "x", "--context", 9000000, "--cache-mib", 16, rc=6)[1]
    run("sample", tmp / "none", "--prompt", "x", rc=3)
    assert "--reasoning" in run("chat", tmp / "m", "--reasoning", "loud", rc=2)[1]


@case
def a_chat_takes_a_turn_a_line_and_forgets_on_reset(tmp):
    ask = ["chat", tmp / "m", "--max-tokens", 20, "--seed", 4, "--system", "Be brief.", "--context", 512]
    out, err = run(*ask, stdin=b"hello\n\nmore\n/reset\nhello")
    prompts = [int(line.split()[0][1:]) for line in err.splitlines() if line.startswith("[")]
    assert len(prompts) == 3 and prompts[0] == prompts[2] < prompts[1], err
    alone = run(*ask, stdin=b"hello\n")[0]
    assert out.startswith(alone) and out.endswith(alone) and len(out) > 2 * len(alone)
    # too much for the context: said, taken back, and the next turn is answered
    out, err = run(*ask, stdin=b"x" * 2000 + b"\nhello\n", rc=6)
    assert out == alone and "512" in err, err


@case
def what_is_reasoned_is_dim_or_hidden(tmp):
    tells = ["chat", tmp / "talks", "--max-tokens", 1, "--temperature", 0, "--color", "always"]
    shown = run(*tells, stdin=b"x\n")[0].decode()
    assert "\033[2m" in shown and lab.REASON in shown and shown.index(lab.REASON) < shown.index("\033[0m"), shown
    assert '[look {"path": "a.c"}]' in shown and "<think>" not in shown and "tool_calls" not in shown
    hidden = run(*tells, "--reasoning", "hidden", stdin=b"x\n")[0].decode()
    assert lab.REASON not in hidden and "\033[2m" not in hidden and lab.SAID in hidden, hidden


class Terminal:
    def __init__(self, *args):
        self.fd, child = pty.openpty()
        self.process = subprocess.Popen(
            [lab.ASSAY, "policy", *map(str, args)], stdin=child, stdout=child, stderr=child, env={**lab.ENV, "TERM": "xterm"},
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **lab.WHO)
        os.close(child)
        self.text = b""

    def say(self, line):
        """Says it, and waits until the answer has begun."""
        os.write(self.fd, line + b"\n")
        self.wait(line + b"\r\n")
        seen = len(self.text)
        while len(self.text) < seen + 100:
            self.text += os.read(self.fd, 65536)

    def wait(self, word, times=1):
        end = time.monotonic() + 30
        while self.text.count(word) < times:
            assert time.monotonic() < end, (word, self.text[-300:])
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    self.text += os.read(self.fd, 65536)
                except OSError:
                    assert False, (word, self.text[-300:])


@case
def ctrl_c_ends_the_answer_and_ctrl_d_the_chat(tmp):
    t = Terminal("chat", tmp / "m", "--temperature", 0)
    t.wait(b"> ")
    t.say(b"hello")
    os.write(t.fd, b"\x03")
    t.wait(b"aborted", 1)
    t.wait(b"> ", 2)
    os.write(t.fd, b"half a li\x03")
    t.wait(b"> ", 3)
    t.say(b"again")
    os.write(t.fd, b"\x03")
    t.wait(b"aborted", 2)
    t.wait(b"> ", 4)
    os.write(t.fd, b"\x04")
    assert t.process.wait(timeout=30) == 0
    assert b"\033" not in t.text.replace(b"\033[2m", b"").replace(b"\033[0m", b""), "a model cannot write escapes"
    os.close(t.fd)


sys.exit(lab.main(CASES))
