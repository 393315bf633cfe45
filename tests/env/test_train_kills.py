"""Kills at random in a training run: trainer, keepers of its boxes, and the server that samples. Prints TAP.

    test_train_kills.py ASSAY LIBEXEC [--long]       --long: ASSAY_OPTIN=1 or ASSAY_OPTIN=train-kills

The run is synchronous, with a checkpoint after each update. Whatever is killed, it must end with the weights of a run
that was left alone. What a kill of the trainer costs is the batch under way: its episodes are sampled again, with the
same seeds and weights, so they are the same again; what an update has learnt from is neither lost nor counted twice.
ASSAY_KILLS and ASSAY_KILLS_SEED set how many and which.
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from processes import cgroups, children_of, is_box, wait_gone  # noqa: E402
from train_lab import ASSAY, ENV, SANITIZED, Lab, run_checks  # noqa: E402

LONG = "--long" in sys.argv
KILLS = int(os.environ.get("ASSAY_KILLS", "50" if LONG else "4"))
CHANCE = random.Random(int(os.environ.get("ASSAY_KILLS_SEED", "7")))
DEADLINE_S = 900
GROUPS, SAMPLES = 6, 6
BEFORE = cgroups()
MORE = f"[run]\nupdates = {12 * KILLS}\ncheckpoint_every = 1\n[rollout]\nserver_attempts = 20\n[loss]\nanchor = recomputed\n"


class Run:
    """A trainer, and the server if it samples from one; both are begun again when they were killed."""

    def __init__(self, lab, name, with_server):
        self.top, self.dir = lab.top, lab.top / name
        self.words = lab.command(name) + ["--json"]
        self.server = self.trainer = None
        self.owners = set()
        if with_server:
            self.words += ["--set", f"rollout.server=unix:{self.dir}.sock", "--set", "rollout.server_update=true"]
            self.serve = [ASSAY, "policy", "serve", "--model", str(self.top / "m/checkpoints/000001/model"), "--listen",
                          f"{self.dir}.sock", "--context", "512", "--chunk", "16", "--weights", "f32"]
            self.begin_server()
        self.begin()

    def begin(self):
        with open(self.top / "err", "ab") as err:
            self.trainer = subprocess.Popen(self.words, env=ENV, stdout=subprocess.PIPE, stderr=err)
        self.owners.add(self.trainer.pid)

    def begin_server(self):
        self.server = subprocess.Popen(self.serve, env=ENV, stdout=subprocess.DEVNULL)

    def kill_one(self):
        """What was killed; None: it was not there."""
        what = CHANCE.choices(["trainer", "box", "server" if self.server else "box"], [3, 3, 3])[0]
        if what == "box":
            boxes = [pid for pid in children_of(self.trainer.pid, 3) if is_box(pid)]
            if not boxes:
                return None
            try:
                os.kill(CHANCE.choice(boxes), signal.SIGKILL)
            except ProcessLookupError:
                return None
            return what
        process = self.trainer if what == "trainer" else self.server
        before = self.steps() if what == "trainer" else None
        boxes = children_of(process.pid)
        process.kill()
        process.wait()
        assert not wait_gone(boxes), "processes of boxes outlive the trainer"
        if what == "trainer":
            self.check_kept(before)
        (self.begin if what == "trainer" else self.begin_server)()
        return what

    def check_kept(self, before):
        """No update that is in the metrics is lost, but for the one whose checkpoint was being written."""
        kept = max((int(p.name) for p in (self.dir / "checkpoints").glob("[0-9]*") if p.name.isdigit()), default=0)
        if before > 120:
            assert kept >= before - 1, (kept, before)

    def steps(self):
        rows = self.rows()
        return rows[-1]["step"] if rows else 0

    def rows(self):
        try:
            text = (self.dir / "metrics.jsonl").read_text()
        except OSError:
            return []
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def end(self):
        out, _ = self.trainer.communicate(timeout=DEADLINE_S)
        return self.trainer.returncode, out

    def stop(self):
        for process in self.trainer, self.server:
            if process and process.poll() is None:
                process.kill()
                process.wait()

    def weights(self):
        last = max(p for p in (self.dir / "checkpoints").iterdir() if p.name.isdigit())
        return last.name, [(p.name, p.read_bytes()) for p in sorted(last.rglob("*.safetensors"))]


def check(lab, with_server):
    top, calm = lab.top, lab.calm
    run = Run(lab, "server" if with_server else "own", with_server)
    killed, begun = {}, time.monotonic()
    try:
        while sum(killed.values()) < KILLS and run.trainer.poll() is None:
            time.sleep(CHANCE.uniform(0.05, 0.35))
            what = run.trainer.poll() is None and run.kill_one()
            if what:
                killed[what] = killed.get(what, 0) + 1
        code, out = run.end()
        print(f"# {killed} killed, {time.monotonic() - begun:.0f} s", flush=True)
        assert code == 0, (code, (top / "err").read_text())
        assert sum(killed.values()) == KILLS, "the run was through before all kills"
        rows, said = run.rows(), json.loads(out)
        steps = [(row["phase"], row["step"]) for row in rows]
        assert steps == [(row["phase"], row["step"]) for row in calm.rows()], "a step is missing or there twice"
        assert said["episodes"] == said["update"] * GROUPS * SAMPLES, said
        for ours, theirs in zip(rows, calm.rows()):
            assert not ours.get("mask/infra_frac"), (ours["step"], [
                line for line in (top / "err").read_text().splitlines() if "lost" in line])
            assert all(ours.get(key) == theirs.get(key) for key in ("reward/mean", "loss/total")), (ours, theirs)
        assert run.weights() == calm.weights()
        again = subprocess.run(run.words, env=ENV, capture_output=True, timeout=60, check=False)
        assert again.returncode == 0 and run.weights() == calm.weights(), again.stderr  # it was through
        left = [path for path in cgroups() - BEFORE if int(os.path.basename(path).split("-")[2]) in run.owners]
        assert not left, left
    finally:
        run.stop()


def check_server(lab):
    """a_run_that_samples_from_a_server_ends_as_if_nobody_had_been_killed"""
    check(lab, True)


def check_own(lab):
    """a_run_that_samples_itself_ends_as_if_nobody_had_been_killed"""
    check(lab, False)


def make(top):
    lab = Lab(top, MORE)
    lab.run("m", "run.updates=0", "warmup.updates=1")
    lab.calm = Run(lab, "calm", False)
    assert lab.calm.end()[0] == 0, (lab.top / "err").read_text()
    return lab


def main():
    wanted = {"1", "train-kills"} & set(os.environ.get("ASSAY_OPTIN", "").split(","))
    if SANITIZED or (LONG and not wanted):
        print("1..0 # SKIP " + ("too slow under sanitizers" if SANITIZED else "opt-in: ASSAY_OPTIN=train-kills"))
        return 0
    return run_checks("train-kills", [check_server, check_own] if LONG else [check_server], make)


sys.exit(main())
