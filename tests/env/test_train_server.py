"""Training runs whose episodes are sampled by a server: our own, and one that lies. Prints TAP.

    test_train_server.py ASSAY LIBEXEC

Our own server is the measure: given the same weights in the same numerics, a run that samples from it ends with the
very bits of a run that samples itself. The liar answers a share of requests in every wrong way there is; none of its
answers may reach the trainer, and no episode may count as failed because of it.
"""
import contextlib
import http.server
import json
import pathlib
import random
import subprocess
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from train_lab import ASSAY, ENV, SANITIZED, Lab, run_checks  # noqa: E402

SLOW = 20 if SANITIZED else 1
VOCAB_MAX = 400
MORE = "[run]\nupdates = 4\n[loss]\nanchor = recomputed\n"


@contextlib.contextmanager
def policy_server(model, where, *options):
    server = subprocess.Popen([ASSAY, "policy", "serve", "--model", str(model), "--listen", where, "--chunk", "16",
                               "--context", "512", *options], env=ENV, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline().startswith("ready")
        yield server
    finally:
        server.terminate()
        server.wait(60)


def check_own(lab):
    """a_run_that_samples_from_our_server_ends_with_the_same_bits"""
    done = lab.run("a")
    assert done.returncode == 0, done.stderr
    begun = lab.run("m", "run.updates=0", "warmup.updates=1")  # any weights: the run gives its own
    assert begun.returncode == 0, begun.stderr
    socket = lab.top / "s"
    with policy_server(lab.top / "m/checkpoints/000001/model", str(socket), "--weights", "f32"):
        for name, api in ("b", "completions"), ("c", "generate"):
            done = lab.run(name, f"rollout.server=unix:{socket}", "rollout.server_update=true",
                           f"rollout.server_api={api}")
            assert done.returncode == 0, done.stderr
    # only weights: the state numbers versions, which an engine raises too
    ours, *theirs = (lab.weights(name, "*.safetensors") for name in "abc")
    assert theirs == [ours, ours]
    assert all(row["policy/logp_diff_max"] == 0 for row in lab.rows("b", "rl")), lab.rows("b", "rl")
    assert any(row["optim/grad_norm"] > 0 for row in lab.rows("b", "rl"))


def check_numerics(lab):
    """other_numerics_are_reported_and_corrected"""
    socket, token = lab.top / "s2", lab.top / "token"
    with policy_server(lab.top / "m/checkpoints/000001/model", str(socket)):  # bf16
        done = lab.run("d", f"rollout.server=unix:{socket}", "rollout.server_update=true", "loss.mismatch=tis",
                       "optim.minibatches=1")
    assert done.returncode == 0 and "are given to it" in done.stderr, done.stderr
    rows = [row for row in lab.rows("d", "rl") if row["signal/groups_used"] > 0]  # the others train no token
    assert rows, lab.rows("d", "rl")
    for row in rows:
        assert 0 < row["policy/mismatch_k3"] < 0.01 and abs(row["policy/mismatch_k1"]) < 0.1, row
        assert 1e-6 < row["policy/logp_diff_max"] < 0.5 and 0.98 < row["policy/logp_correlation"] <= 1, row
    token.write_text("short\nof\n")
    for settings, why in ((["loss.anchor=rollout"], "loss.anchor must be recomputed"),
                          (["rollout.repetition=4"], "rollout.repetition"),
                          (["rollout.server=ftp://x"], "http://HOST:PORT"),
                          (["rollout.server_api=chat"], "completions, generate"),
                          ([f"rollout.server_key={token}"], "one line"),
                          (["rollout.server_attempts=1"], "gives no samples")):
        done = lab.run("e", "rollout.server=http://127.0.0.1:9", "warmup.updates=1", *settings)
        assert done.returncode != 0 and why in done.stderr, (settings, done.stderr)


def choice(index, rng, eos, limit):
    ids = [rng.randrange(5, 250) for _ in range(rng.randrange(1, limit))]
    stopped = rng.random() < 0.7
    ids = ids + [eos] if stopped else (ids * limit)[:limit]
    ids = [i for i in ids[:-1] if i != eos] + ids[-1:]
    return {"index": index, "finish_reason": "stop" if stopped else "length", "token_ids": ids,
            "logprobs": {"token_logprobs": [-rng.random() for _ in ids]}}


def lie(choices, limit, eos):
    """Every wrong answer, by name: what is made of a right one."""
    first = lambda **changes: [{**choices[0], **changes}, *choices[1:]]
    ids, logprobs = choices[0]["token_ids"], choices[0]["logprobs"]["token_logprobs"]
    wrong = lambda values: first(logprobs={"token_logprobs": values})
    return {
        "none": [], "too_few": choices[1:] if len(choices) > 1 else [], "too_many": choices + choices[:1],
        "twice": [{**c, "index": 0} for c in choices] if len(choices) > 1 else [],
        "beyond": first(token_ids=[99999] + ids[1:]), "negative": first(token_ids=[-1] + ids[1:]),
        "huge": first(token_ids=[2 ** 40] + ids[1:]), "text": first(token_ids=["a"] * len(ids)),
        "long": first(token_ids=[7] * (limit + 1), logprobs={"token_logprobs": [-1] * (limit + 1)}),
        "empty": first(token_ids=[], logprobs={"token_logprobs": []}),
        "no_ids": first(token_ids=None), "no_logprobs": first(logprobs=None), "short": wrong(logprobs[1:]),
        "null": wrong([None] * len(ids)), "positive": wrong([1] + logprobs[1:]), "least": wrong([-9999] * len(ids)),
        "no_end": first(finish_reason=None), "aborted": first(finish_reason="abort"),
        "stop_inside": first(token_ids=[eos, 7], logprobs={"token_logprobs": [-1, -1]}, finish_reason="length"),
        "no_stop": first(token_ids=[7], logprobs={"token_logprobs": [-1]}, finish_reason="stop"),
        "prompt": first(prompt_token_ids=[1, 2, 3]),
    }


RAW = {"nan": b'{"choices": [{"index": 0, "token_ids": [7], "logprobs": {"token_logprobs": [NaN]}}]}',
       "infinite": b'{"choices": [{"index": 0, "logprobs": {"token_logprobs": [1e999]}}]}',
       "garbage": b"\x00\xff" * 50, "deep": b"[" * 100000, "nothing": b"", "half": b'{"choices": ['}
ODD = ("closed", "cut", "status_500", "status_429", "stall")


class Liar(http.server.BaseHTTPRequestHandler):
    share, told, answers = 0.0, {}, 0
    rng, lock = random.Random(5), threading.Lock()

    def log_message(self, *_):  # pylint: disable=arguments-differ
        pass

    def reply(self, body, status=200, length=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def odd(self, name):
        if name == "stall":
            self.connection.recv(1)  # until the client gives up
        elif name.startswith("status"):
            self.reply(b"busy", int(name[-3:]))
        elif name == "cut":
            self.reply(b'{"choices"', length=1000)
        self.close_connection = True

    def do_POST(self):  # pylint: disable=invalid-name
        ask = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert ask["return_token_ids"] and ask["top_p"] == 1 and all(isinstance(i, int) for i in ask["prompt"])
        eos, limit = ask["stop_token_ids"][0], ask["max_tokens"]
        with Liar.lock:
            choices = [choice(i, Liar.rng, eos, limit) for i in range(ask["n"])]
            lies = lie(choices, limit, eos)
            names = [*lies, *RAW, *ODD]
            untold = [name for name in names if name not in Liar.told] or names
            name = Liar.rng.choice(untold) if Liar.rng.random() < Liar.share else None
            if name:
                Liar.told[name] = Liar.told.get(name, 0) + 1
        if name in ODD:
            self.odd(name)
        elif name in RAW:
            self.reply(RAW[name])
        else:
            Liar.answers += name is None
            self.reply(json.dumps({"choices": lies[name] if name else choices}).encode())


class Crowd(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a group's requests come at once


@contextlib.contextmanager
def liar(share):
    Liar.share, Liar.told, Liar.answers = share, {}, 0
    server = Crowd(("127.0.0.1", 0), Liar)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"rollout.server=http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def check_liar(lab):
    """no_lie_of_a_server_reaches_the_trainer"""
    with liar(0.35) as where:
        done = lab.run("l", where, "rollout.server_wait_s=3", "rollout.server_attempts=30", "run.updates=2",
                       "warmup.updates=3", "run.checkpoint_every=1", "rollout.groups=12", "rollout.samples=3")
        told = dict(Liar.told)
    assert done.returncode == 0 and "stay as they are" in done.stderr, done.stderr
    assert len(told) > 25, told
    for row in lab.rows("l", "rl"):
        assert row["mask/server_frac"] == row["mask/infra_frac"] == 0, row
    for rollout in rollouts(lab, "l"):
        said = [(i, p) for i, m, p in zip(rollout["ids"], rollout["mask"], rollout["logprobs"]) if m == "1"]
        assert 2 <= len(said) <= 64 and all(i < VOCAB_MAX and -1 <= p <= 0 for i, p in said), rollout


def rollouts(lab, name):
    return [rollout for path in (lab.top / name / "rollouts").iterdir() for line in path.read_bytes().splitlines()
            for rollout in json.loads(line)["rollouts"]]


def check_lost(lab):
    """what_a_server_never_gives_is_unscorable_and_no_zero"""
    with liar(0.4) as where:
        done = lab.run("n", where, "rollout.server_wait_s=3", "rollout.server_attempts=1", "run.updates=2",
                       "warmup.updates=3", "run.checkpoint_every=1", "rollout.groups=16", "rollout.samples=3")
    assert done.returncode == 0, done.stderr
    lost = [row["mask/server_frac"] for row in lab.rows("n", "rl")]
    assert max(lost) > 0 and all(row["mask/infra_frac"] == row["mask/server_frac"] for row in lab.rows("n", "rl")), lost
    gone = [r for r in rollouts(lab, "n") if r["unscorable"]]
    assert gone and all(r["advantage"] == 0 for r in gone), "what was lost is learnt from"
    with liar(1) as where:
        done = lab.run("z", where, "rollout.server_wait_s=3", "rollout.server_attempts=1", "warmup.updates=1")
    assert done.returncode != 0 and "rollout.server gives no samples" in done.stderr, done.stderr


CHECKS = [check_own, check_numerics, check_liar, check_lost]


sys.exit(run_checks("train-server", CHECKS, lambda top: Lab(top, MORE, 100 * SLOW)))
