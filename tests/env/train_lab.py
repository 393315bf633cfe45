"""What tests of training runs share: one small model that learns two functions by heart, its tasks, its runs.

The tests that import this are called with ASSAY and LIBEXEC as their first arguments.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ASSAY, LIBEXEC = sys.argv[1], sys.argv[2]
ENV = os.environ | {"ASSAY_LIBEXEC": LIBEXEC, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"}
SANITIZED = "ASAN_OPTIONS" in os.environ  # thirty times slower: a sample of the paths, no bits compared
CONF = """
[run]
updates = 12
checkpoint_every = 2
[model]
hidden = 32
heads = 2
kv_heads = 2
rotary = 8
experts = 2
ffn = 32
vocab = 400
pattern = ls
[warmup]
updates = 120
tokens = 1024
gold = 0.4
text = 0.1
lr = 0.01
lr_end = 0.002
[rollout]
groups = 6
samples = 6
[optim]
minibatches = 2
[eval]
every = 1000000
"""


def assay(*args, **more):
    return subprocess.run([ASSAY, *args], env=ENV, text=True, capture_output=True, timeout=170, check=False, **more)


class Lab:
    """A directory with tasks and run.conf; `more` is appended to that, and comes after what is above."""

    def __init__(self, top, more="", timeout=170):
        self.top, self.timeout = pathlib.Path(top), timeout
        for split in "train", "tune":
            done = assay("task", "generate", "repair", "--seed", "3", "--count", "24", "--split", split,
                         "--families", "max_of_two,clamp", "--out", str(self.top / split))
            assert done.returncode == 0, done.stderr
        (self.top / "run.conf").write_text(f"{CONF}[tasks]\ntrain = {self.top}/train\n{more}")

    def command(self, name, *settings):
        words = [ASSAY, "train", str(self.top / "run.conf"), "--set", f"run.dir={self.top / name}"]
        for setting in settings:
            words += ["--set", setting]
        return words

    def run(self, name, *settings):
        return subprocess.run(self.command(name, *settings), env=ENV, text=True, capture_output=True,
                              timeout=self.timeout, check=False)

    def weights(self, name, pattern="*"):
        """The last checkpoint: its name, and the files of that pattern."""
        last = max((self.top / name / "checkpoints").iterdir())
        files = sorted(p for p in last.rglob(pattern) if p.is_file() and p.name != "config.json")
        return last.name, [(p.relative_to(last), p.read_bytes()) for p in files]

    def rows(self, name, phase=None):
        lines = (self.top / name / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if phase in (None, row["phase"])]


def run_checks(name, checks, make, skipped=()):
    """Prints TAP: each check is called with what `make` gave for a scratch directory. The exit status."""
    print(f"1..{len(checks)}")
    bad = 0
    with tempfile.TemporaryDirectory(prefix=f"assay-{name}-") as top:
        lab = make(top)
        for number, check in enumerate(checks, 1):
            if check in skipped:
                print(f"ok {number} - {check.__doc__} # SKIP too slow under sanitizers")
                continue
            try:
                check(lab)
                print(f"ok {number} - {check.__doc__}", flush=True)
            except Exception as error:  # pylint: disable=broad-except
                bad += 1
                text = f"{type(error).__name__}: {error}"
                print(f"not ok {number} - {check.__doc__}\n# " + text.replace("\n", "\n# ")[:4000], flush=True)
    return bad > 0
