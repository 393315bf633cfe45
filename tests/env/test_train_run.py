"""Training runs from end to end: tasks, warm-up, boxes, rewards, updates, checkpoints, kills.

    test_train_run.py ASSAY LIBEXEC        prints TAP

One small model learns a few functions by heart, so that rewards vary; then what must hold of any
run is looked at: the same seed gives the same bits, a killed run ends like one that was left alone,
rollout and training agree, wrong settings are refused before anything is made.
"""
import json
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from train_lab import ASSAY, ENV, SANITIZED, Lab, assay, run_checks  # noqa: E402


def check_run(lab):
    """a_run_learns_from_rewards_and_says_so"""
    done = lab.run("a", "run.seed=1")
    assert done.returncode == 0, done.stderr
    rows = lab.rows("a")
    rl = [row for row in rows if row["phase"] == "rl"]
    assert [row["step"] for row in rows if row["phase"] == "warmup"] == list(range(1, 121))
    assert [row["step"] for row in rl] == list(range(121, 133))
    assert len([row for row in rows if row["phase"] == "eval"]) == 3
    assert all(row["policy/logp_diff_max"] == 0 for row in rl), "rollout and training differ"
    assert any(row["signal/groups_used"] > 0 for row in rl), "no group had a spread"
    assert any(0 < row["reward/mean"] < 1 for row in rl)
    assert any(row["optim/grad_norm"] > 0 for row in rl)
    assert list((lab.top / "a" / "tensorboard").glob("events.out.tfevents.*"))


def check_metrics(lab):
    """what_is_logged_is_explained_and_holds_together"""
    rows = lab.rows("a")
    page = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()
    explained = set(re.findall(r"`([a-z0-9]+/[a-z0-9_@]+)`", page))
    logged = {name for row in rows for name in row if "/" in name and not name.startswith(("eval/", "ending/"))}
    kinds = assay("train", "kinds", "--json").stdout.splitlines()
    logged -= {f"reward/{json.loads(kind)['kind']}" for kind in kinds}
    assert not logged - explained, f"not in docs/training.md: {logged - explained}"
    for row in rows:
        if row["phase"] != "rl":
            continue
        assert 0 <= row["reward/f2p"] <= 1 and row["reward/resolved"] <= row["reward/f2p"] + 1e-9
        assert row["reward/resolved"] <= row["reward/p2p"] + 1e-9 <= 1 + 2e-9
        assert row["policy/is_ratio_min"] <= row["policy/is_ratio_p99"] * 1.006
        assert row["policy/is_ratio_p99"] <= row["policy/is_ratio_max"] * 1.006
        assert (row["optim/update_norm"] > 0) == (row["optim/lr"] > 0)
        assert row["perf/mfu"] > 0 and row["time/sync_s"] >= 0


def check_same(lab):
    """the_same_seed_gives_the_same_bits_and_another_does_not"""
    for name, seed in ("b", 1), ("c", 2):
        done = lab.run(name, f"run.seed={seed}", "run.threads=1")
        assert done.returncode == 0, done.stderr
    assert lab.weights("a") == lab.weights("b")
    assert lab.weights("a") != lab.weights("c")


def run_killed(lab, name, *settings):
    """The run, killed again and again until it is through."""
    kills = 0
    for attempt in range(40):
        run = subprocess.Popen(lab.command(name, *settings, "run.checkpoint_every=1"), env=ENV,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            run.wait(0.15 + attempt * 0.05)
            break
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            kills += 1
    done = lab.run(name, *settings)
    assert done.returncode == 0, done.stderr
    assert kills > 1, kills


def check_killed(lab):
    """a_run_that_is_killed_ends_with_the_same_weights"""
    run_killed(lab, "k", "run.seed=1")
    assert lab.weights("a") == lab.weights("k")
    steps = [(row["phase"], row["step"]) for row in lab.rows("k")]
    assert len(steps) == len(set(steps)), "a step is there twice"
    assert steps == [(row["phase"], row["step"]) for row in lab.rows("a")]


def check_behind(lab):
    """one_step_behind_and_killed_as_well"""
    done = lab.run("d", "run.seed=1", "run.behind=1", "run.checkpoint_every=1")
    assert done.returncode == 0, done.stderr
    stale = [row["policy/stale_versions"] for row in lab.rows("d") if row["phase"] == "rl"]
    assert stale[0] == 0 and min(stale[1:]) > 0, stale
    assert lab.weights("d")[1] != lab.weights("a")[1]
    run_killed(lab, "e", "run.seed=1", "run.behind=1")
    assert lab.weights("d") == lab.weights("e")
    rewards = [[row["reward/resolved"] for row in lab.rows(name) if row["phase"] == "rl"]
               for name in "de"]
    assert rewards[0] == rewards[1], rewards


def check_stopped(lab):
    """ctrl_c_keeps_what_was_done"""
    run = subprocess.Popen(lab.command("s", "run.seed=1", "run.updates=1000000"), env=ENV,
                           text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    metrics = lab.top / "s" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if metrics.exists() and '"rl"' in metrics.read_text():
            break
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, talk = run.communicate(timeout=60)
    assert run.returncode == 130, (run.returncode, talk)
    assert "the same command goes on" in talk
    last = max(row["step"] for row in lab.rows("s"))
    assert lab.weights("s")[0] == f"{last:06d}"


def check_looking(lab):
    """what_a_run_did_can_be_looked_at"""
    run = str(lab.top / "a")
    for words, wanted in ((("ls", str(lab.top)), "cispo"), (("show", run), "reward/mean"), (("watch", run), "reward"),
                          (("compare", run, str(lab.top / "s")), "run.updates"),
                          (("episodes", run), "--- longest"), (("explain", run), "0.")):
        done = assay("train", *words)
        assert done.returncode == 0, (words, done.stderr)
        assert wanted in done.stdout, (words, done.stdout)
    rows = [json.loads(line) for line in assay("train", "show", run, "--json").stdout.splitlines()]
    assert rows == lab.rows("a")
    one = json.loads(assay("train", "episodes", run, "--pick", "best", "--json").stdout)
    assert one["reward"] in (0, 1) and "1 int " in one["prompt"]
    assert assay("train", "explain", run, "--group", "99").returncode == 2
    assert assay("train", "show", str(lab.top / "none")).returncode != 0


def check_watching(lab):
    """watching_draws_curves_and_gives_the_terminal_back"""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    done = subprocess.Popen([ASSAY, "train", "watch", str(lab.top / "a")], stdin=theirs, stdout=theirs,
                            stderr=subprocess.PIPE, env=ENV | {"TERM": "xterm"})
    seen = b""
    while b"q quit" not in seen:
        seen += os.read(ours, 65536)
    os.write(ours, b"q")
    _, talk = done.communicate(timeout=30)
    assert done.returncode == 0 and not talk, talk
    while not seen.endswith(b"\x1b[?1049l"):
        seen += os.read(ours, 65536)
    text = seen.decode()
    assert "reward/mean" in text and "\u2588" in text and "ended" in text and "update 12/12" in text, text
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def check_settings(lab):
    """refill_reference_penalties_and_corrections"""
    done = lab.run("v", "rollout.refill=3", "loss.kl=k3", "loss.kl_beta=0.5", "loss.mismatch=tis",
                   "loss.anchor=recomputed", "rollout.cut=mask", "rollout.overlong_from=2",
                   "rollout.overlong_penalty=0.5", "rollout.repetition=3", "loss.entropy=0.01", "loss.balance=0.01",
                   "loss.name=dapo", "optim.epochs=2", "run.updates=4", "rollout.turns=3", "rollout.turns_learnt=1")
    assert done.returncode == 0, done.stderr
    rl = [row for row in lab.rows("v") if row["phase"] == "rl"]
    assert all(value is not None for row in rl for value in row.values()), rl
    assert rl[-1]["policy/kl_reference"] > 0
    assert any(row["signal/groups_used"] > row["episode/steps_mean"] for row in rl)
    assert all(row["episode/steps_mean"] == 1 for row in rl), "turns beyond those learnt from"
    assert any(row["reward/mean"] % 0.25 for row in rl), "no reward was shortened"
    assert (lab.top / "v" / "reference" / "config.json").exists()


def check_tools(lab):
    """episodes_with_tools_are_sampled_trained_on_and_the_same_after_a_kill"""
    words = ["rollout.dialect=tools", "rollout.turns=3", "rollout.tokens=48", "model.vocab=1000", "tasks.shown=true",
             "rollout.groups=2", "rollout.samples=3", "warmup.updates=6", "warmup.tokens=1024", "run.updates=3",
             "eval.tasks=2", "rollout.overlong_from=2", "rollout.overlong_penalty=0.5", "run.checkpoint_every=1"]
    done = lab.run("tools", *words)
    assert done.returncode == 0, done.stderr
    rl = [row for row in lab.rows("tools") if row["phase"] == "rl"]
    assert len(rl) == 3 and all(row["policy/logp_diff_max"] == 0 for row in rl)
    assert any(row["optim/grad_norm"] > 0 for row in rl)
    for row in rl:
        ends = {name: value for name, value in row.items() if name.startswith("ending/")}
        assert abs(sum(ends.values()) - 1) < 1e-9, ends
        assert ends["ending/infrastructure"] == 0
    groups = [json.loads(line) for line in (lab.top / "tools/rollouts/000001.jsonl").read_bytes().splitlines()]
    turns = groups[0]["rollouts"][0]["turns"]
    assert [turn["by"] for turn in turns[:2]] in (["policy", "env"], ["policy"]), turns
    if SANITIZED:
        return
    run_killed(lab, "killed", *words[:-1])
    assert lab.weights("tools") == lab.weights("killed")


def check_kinds(lab):
    """kinds_are_mixed_in_one_file_and_rewarded_each_by_its_own_rules"""
    kinds = "diff", "locate", "test", "math", "logic"
    mixed = (lab.top / "train").read_text()
    for kind in kinds:
        done = assay("task", "generate", kind, "--seed", "2", "--count", "8", *(
            ["--families", "max_of_two,clamp"] if kind in kinds[:3] else []))
        assert done.returncode == 0, done.stderr
        mixed += done.stdout
    (lab.top / "mixed").write_text(mixed)
    assert all(kind in assay("train", "kinds").stdout for kind in kinds)
    for name, dialect in ("words", "compact"), ("chat", "tools"):
        assert dialect in assay("train", "dialects").stdout
        done = lab.run(name, f"rollout.dialect={dialect}", f"tasks.train={lab.top}/mixed", "warmup.updates=4",
                       "run.updates=2", "rollout.groups=40", "rollout.samples=2", "eval.sets=")
        assert done.returncode == 0, done.stderr
        rl = [row for row in lab.rows(name) if row["phase"] == "rl"]
        assert all(row["policy/logp_diff_max"] == 0 for row in rl)
        seen = {key for row in rl for key in row if key.startswith("reward/")}
        assert {f"reward/{kind}" for kind in ("repair", *kinds)} <= seen, seen
    done = assay("task", "generate", "math", "--verify")
    assert done.returncode != 0 and "about repairs" in done.stderr, done.stderr
    done = assay("task", "generate", "poetry")
    assert done.returncode != 0 and "logic" in done.stderr, done.stderr


def check_canaries(lab):
    """canaries_are_sampled_and_never_learnt_from_and_a_reward_is_an_alarm"""
    canaries = lab.top / "canaries"
    done = assay("task", "generate", "repair", "--canary", "--seed", "3", "--count", "8", "--families",
                 "max_of_two,clamp", "--out", str(canaries))
    assert done.returncode == 0, done.stderr
    done = lab.run("canaries_too", "run.seed=1", f"tasks.canaries={canaries}", "tasks.canary_groups=2")
    assert done.returncode == 0 and "ALARM" not in done.stderr, done.stderr
    assert [row["canary/reward"] for row in lab.rows("canaries_too") if row["phase"] == "rl"] == [0] * 12
    if not SANITIZED:
        assert lab.weights("canaries_too") == lab.weights("a"), "canaries have changed what was learnt"
    fakes = [json.loads(line) | {"canary": True} for line in (lab.top / "train").read_text().splitlines()]
    (lab.top / "fakes").write_text("".join(json.dumps(row) + "\n" for row in fakes))
    done = lab.run("fake", "run.seed=1", f"tasks.canaries={lab.top}/fakes", "tasks.canary_groups=2", "run.updates=3")
    assert done.returncode == 0 and "ALARM" in done.stderr, done.stderr
    kept = next((lab.top / "fake" / "canaries").iterdir()).read_text()
    assert any(rollout["reward"] == 1 for line in kept.splitlines() for rollout in json.loads(line)["rollouts"])
    done = lab.run("r", f"tasks.train={canaries}")
    assert done.returncode != 0 and "belongs in tasks.canaries" in done.stderr, done.stderr
    done = lab.run("no_canary", f"tasks.canaries={lab.top}/train")
    assert done.returncode != 0 and "it is no canary" in done.stderr, done.stderr
    shutil.rmtree(lab.top / "r", ignore_errors=True)


def check_idioms(lab):
    """functions_without_tests_are_imitated_and_never_graded"""
    idioms = lab.top / "idioms"
    done = assay("task", "generate", "repair", "--imitation", "--families", "idioms", "--seed", "3", "--count", "40",
                 "--out", str(idioms))
    assert done.returncode == 0, done.stderr
    done = lab.run("imitates", f"tasks.warmup={idioms}", "warmup.updates=4", "run.updates=1")
    assert done.returncode == 0, done.stderr
    for name, setting in ("graded", f"tasks.train={idioms}"), ("judged", f"eval.sets=x={idioms}"):
        done = lab.run(name, setting)
        assert done.returncode != 0 and "belongs in tasks.warmup" in done.stderr, done.stderr


def check_plan(lab):
    """what_a_run_wants_of_memory_is_said_before_it_begins"""
    done = assay("train", "plan", str(lab.top / "run.conf"), "--json")
    assert done.returncode == 0, done.stderr
    parts = json.loads(done.stdout)
    assert parts["all"] == sum(parts.values()) - parts["all"] - parts["available"], parts
    assert parts["moments"] == 2 * parts["gradients"] and parts["engine"] > 512 << 20, parts
    less = assay("train", "plan", str(lab.top / "run.conf"), "--json", "--set", "optim.recompute=true")
    assert json.loads(less.stdout)["activations"] < parts["activations"]
    assert assay("train", "plan", str(lab.top / "run.conf"), "--set",
                 "rollout.cache_mib=1048576").returncode != 0


def check_failed(lab):
    """an_update_that_is_not_finite_keeps_the_weights_and_can_be_tried_again"""
    settings = ["run.behind=1", "run.updates=3", "warmup.updates=5", "run.checkpoint_every=1", "eval.sets="]
    done = lab.run("f", *settings)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(lab.top / "f" / "checkpoints" / "000008")
    before = lab.weights("f")
    path = lab.top / "f" / "checkpoints" / "000007" / "state.json"
    state = json.loads(path.read_text())
    for i, rollout in enumerate(state["run"]["pending"]["groups"][0]["rollouts"]):
        rollout["reward"] = 1e308 * (i % 2)  # as no reward is: their sum is infinite
    path.write_text(json.dumps(state))
    done = lab.run("f", *settings)
    assert done.returncode != 0 and "no update was made" in done.stderr, done.stderr
    kept = lab.top / "f" / "failed" / "000007"
    assert f"assay train retry {kept}" in done.stderr, done.stderr
    assert [w for w in lab.weights("f")[1] if w[0].name != "state.json"] == \
        [w for w in before[1] if w[0].name != "state.json"]
    again = assay("train", "retry", str(kept))
    assert again.returncode != 0 and "coefficient" in again.stderr, again.stderr
    text = (kept / "groups.jsonl").read_text()  # mended, it is an update like any other
    rows = [json.loads(line) for line in text.splitlines()]
    assert all(row["task"] for row in rows)
    for row in rows:
        for rollout in row["rollouts"]:
            rollout["advantage"] = 1
        row["skipped"] = False
    (kept / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = assay("train", "retry", str(kept), "--json")
    assert again.returncode == 0, again.stderr
    row = json.loads(again.stdout)
    assert row["grad_norm"] > 0 and row["logp_diff_max"] < 5, row


def check_windows(lab):
    """windows_grow_at_the_same_update_after_a_kill"""
    settings = ["rollout.windows=6,12,32", "rollout.window_span=2", "rollout.window_flat=0.5",
                "rollout.window_near=0.9", "run.updates=12", "warmup.updates=5", "run.checkpoint_every=1",
                "eval.sets="]
    done = lab.run("w", *settings)
    assert done.returncode == 0 and "turns of up to 12 tokens" in done.stderr, done.stderr
    run = subprocess.Popen(lab.command("x", *settings), env=ENV, stderr=subprocess.DEVNULL)
    while run.poll() is None and not (lab.top / "x" / "checkpoints" / "000007").exists():
        time.sleep(0.005)
    run.kill()
    run.wait()
    assert lab.run("x", *settings).returncode == 0
    assert lab.weights("w") == lab.weights("x")
    tokens = [[row["window/tokens"] for row in lab.rows(name) if row["phase"] == "rl"] for name in "wx"]
    assert tokens[0] == tokens[1] == sorted(tokens[0]) and tokens[0][:5] == [6, 6, 6, 6, 12], tokens
    longest = [row["window/length_p99"] for row in lab.rows("w") if row["phase"] == "rl"]
    assert all(n <= most for n, most in zip(longest, tokens[0])), longest


def check_replay(lab):
    """recorded_experts_change_nothing_until_the_router_does"""
    settings = ["model.experts=4", "model.topk=2", "run.updates=4", "run.checkpoint_every=1", "eval.sets="]
    for name, more in (("p", []), ("q", ["optim.routing_replay=true"])):
        done = lab.run(name, *settings, "optim.minibatches=1", *more)
        assert done.returncode == 0, done.stderr
    assert lab.weights("p")[1] == lab.weights("q")[1]
    assert all(row["router/rerouted_frac"] == 0 for row in lab.rows("q") if row["phase"] == "rl")
    path = max((lab.top / "q" / "rollouts").iterdir())
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for experts, why in (("////", "no group of rollouts"), ("/" * 16, "not of this model"), ("A" * 16, "not of this"),
                         (None, "no group of rollouts")):
        rows[0]["rollouts"][0]["experts"] = experts  # layers * K = 4 of each token: bytes 255, 0, too few
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = assay("train", "explain", str(lab.top / "q"), "--group", "0")
        assert done.returncode != 0 and why in done.stderr, (experts, done.stderr)
    settings += ["optim.routing_replay=true", "optim.minibatches=3", "run.behind=1", "optim.lr=0.01"]
    done = lab.run("t", *settings)
    assert done.returncode == 0, done.stderr
    assert any(row["router/rerouted_frac"] > 0 for row in lab.rows("t") if row["phase"] == "rl")
    run = subprocess.Popen(lab.command("u", *settings), env=ENV, stderr=subprocess.DEVNULL)
    while run.poll() is None and not (lab.top / "u" / "checkpoints" / "000122").exists():
        time.sleep(0.005)
    run.kill()
    run.wait()
    done = lab.run("u", *settings)
    assert done.returncode == 0 and lab.weights("t") == lab.weights("u"), done.stderr


def check_bf16(lab):
    """weights_in_bf16_are_stepped_unrounded"""
    settings = ["run.seed=1", "model.weights=bf16", "eval.sets="]
    done = lab.run("h", *settings, "run.updates=4")
    assert done.returncode == 0, done.stderr
    assert all(row["policy/logp_diff_max"] == 0 for row in lab.rows("h") if row["phase"] == "rl")
    run_killed(lab, "i", *settings, "run.updates=4")
    name, kept = lab.weights("h")
    assert (name, kept) == lab.weights("i")
    assert kept != lab.weights("a")[1]
    done = assay("train", "explain", str(lab.top / "h"), "--group", "0")
    assert done.returncode == 0, done.stderr
    begun = lab.top / "h" / "checkpoints" / name / "model"
    done = lab.run("j", *settings, f"model.path={begun}", "warmup.updates=0", "run.updates=1", "optim.lr=0",
                   "optim.lr_end=0")
    assert done.returncode == 0, done.stderr
    files = [lab.weights(run, "model.safetensors")[1][0] for run in "hj"]
    assert files[0] == files[1]
    assert any(files[0][1][8 + int.from_bytes(files[0][1][:8], "little")::4]), "no weight has more bits than bf16"


def check_refusals(lab):
    """wrong_settings_are_refused_before_anything_is_made"""
    for settings, why in ((["optim.lrr=1"], "did you mean optim.lr?"),
                          (["optim.lr=9"], "from 0 to 1"),
                          (["tasks.train=/nowhere"], "/nowhere"),
                          (["eval.sets=x"], "NAME=FILE"),
                          (["optim.rows=40"], "tokens, the limit is"),
                          (["model.path=/nowhere"], "/nowhere"),
                          (["model.heads=5"], "multiple of model.heads"),
                          (["rollout.turns=2", "rollout.turns_learnt=3"], "at most rollout.turns, 2"),
                          (["rollout.cache_mib=1048576"], "of memory, there are"),
                          (["optim.rows=1000000", "model.hidden=4096"], "activations ")):
        done = lab.run("r", *settings)
        assert not (lab.top / "r").exists() or "memory" not in why
        shutil.rmtree(lab.top / "r", ignore_errors=True)
        assert done.returncode != 0 and why in done.stderr, (settings, done.stderr)
    done = lab.run("a", "run.seed=1", "loss.name=grpo")
    assert done.returncode != 0 and "was begun with loss.name = cispo" in done.stderr, done.stderr
    kept = lab.top / "a" / "config.conf"  # of a version that had no windows yet
    kept.write_text("".join(line for line in kept.read_text().splitlines(True) if "window" not in line))
    done = lab.run("a", "run.seed=1", "rollout.windows=8,32")
    assert done.returncode != 0 and "was begun with rollout.windows = ," in done.stderr, done.stderr
    done = lab.run("a", "run.seed=1")
    assert done.returncode == 0, done.stderr
    (lab.top / "text").write_text('{"not": "a task"}\n')
    done = lab.run("r", f"tasks.train={lab.top}/text")
    assert done.returncode != 0 and "line 1" in done.stderr, done.stderr


PLAIN_ONLY = (check_same, check_killed, check_behind, check_settings, check_windows, check_replay,
              check_bf16)
CHECKS = [check_run, check_metrics, check_same, check_killed, check_behind, check_stopped, check_looking, check_watching,
          check_settings, check_tools, check_kinds, check_canaries, check_idioms,
          check_plan, check_failed, check_windows, check_replay, check_bf16, check_refusals]


def make(top):
    return Lab(top, f"[eval]\nevery = 6\nsamples = 2\ntasks = 8\nsets = tune={top}/tune\n")


sys.exit(run_checks("train", CHECKS, make, PLAIN_ONLY if SANITIZED else ()))
