#!/usr/bin/env python3
"""The experiments of this folder: training runs, their tables and plots.

    run.py seeds  --dir DIR [--seeds 5] [--jobs 2] [--set KEY=VALUE ...]
    run.py losses --dir DIR [--seeds 5] [--jobs 2] [--set KEY=VALUE ...]
    run.py report --dir DIR

`seeds`: warm-up and CISPO by examples/repair.conf for every seed, and beside each the control: from the
same warm-up, imitation goes on for the CPU time that CISPO took. `losses`: from one warm-up, every loss
with one and with sixteen optimizer steps a batch, equal rollouts. `report` writes tables and plots of what
is there to DIR. Every run is a directory of `assay train`; what was interrupted goes on.
"""
import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONF = ROOT / "examples" / "repair.conf"
SPLITS = {"train": 20000, "heldout-bugs": 192, "heldout-functions": 192}
SETS = ("bugs", "functions")
LOSSES = {  # what differs from the recipe
    "cispo": [],
    "grpo": ["loss.name=grpo", "loss.is_cap=0"],
    "dapo": ["loss.name=dapo", "loss.is_cap=0"],
    "reinforce": ["loss.name=reinforce", "loss.is_cap=0"],
}
STEPS = {1: ["optim.minibatches=1"], 16: ["optim.minibatches=8", "optim.epochs=2", "optim.lr=0.0001"]}
T95 = (0, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # two-sided, by degrees of freedom


class Bench:
    """Runs of one directory, each pinned to a core of its own."""

    def __init__(self, options):
        self.top, self.options = pathlib.Path(options.dir).resolve(), options
        self.assay = os.environ.get("ASSAY", str(ROOT / "build" / "env" / "assay"))
        self.cores, self.lock = list(range(options.jobs)), threading.Lock()
        self.top.mkdir(parents=True, exist_ok=True)

    def tasks(self):
        for split, count in SPLITS.items():
            out = self.top / f"{split}.jsonl"
            if not out.exists():
                self.call("task", "generate", "repair", "--families", "c", "--seed", "1", "--count", str(count),
                          "--split", split, "--out", str(out))
        for name, count in ("imitation", 60000), ("canary", 200):
            out = self.top / f"{name}.jsonl"
            if not out.exists():
                self.call("task", "generate", "repair", "--families", "c", "--seed", "1", "--count", str(count),
                          f"--{name}", "--out", str(out))

    def call(self, *words):
        subprocess.run([self.assay, *words], check=True, stderr=subprocess.DEVNULL)

    def train(self, name, *settings):
        """Does the run, or what is left of it; its CPU seconds are kept in the directory."""
        directory = self.top / name
        done = directory / "cpu_s"
        if done.exists():
            return directory
        common = [f"run.dir={directory}", "run.threads=1", f"tasks.train={self.top}/train.jsonl",
                  f"tasks.warmup={self.top}/imitation.jsonl", f"tasks.canaries={self.top}/canary.jsonl",
                  f"eval.sets=bugs={self.top}/heldout-bugs.jsonl,functions={self.top}/heldout-functions.jsonl"]
        words = [self.assay, "train", str(CONF)]
        for setting in common + self.options.set + list(settings):
            words += ["--set", setting]
        with self.lock:
            core = self.cores.pop()
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "talk.log", "ab") as talk:
            run = subprocess.Popen(words, stdout=talk, stderr=talk,
                                   env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"})
            os.sched_setaffinity(run.pid, {core})
            _, status, usage = os.wait4(run.pid, 0)
        with self.lock:
            self.cores.append(core)
        if status != 0:
            sys.exit(f"{directory}: {(directory / 'talk.log').read_text()[-2000:]}")
        done.write_text(f"{usage.ru_utime + usage.ru_stime:.1f}\n")
        return directory

    def all(self, function, arguments):
        with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
            for one in [pool.submit(function, *a) for a in arguments]:
                one.result()


def rows(directory, phase=None):
    path = directory / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in found if phase in (None, row["phase"])]


def model_of(directory):
    return max((directory / "checkpoints").iterdir()) / "model"


# ---- the runs ----

def warm(bench, seed):
    return bench.train(f"warm-{seed}", f"run.seed={seed}", "run.updates=0")


def seed_runs(bench, seed):
    start = warm(bench, seed)
    ours = bench.top / f"cispo-{seed}"
    if not ours.exists():
        shutil.copytree(start, ours, ignore=shutil.ignore_patterns("cpu_s", "talk.log"))
    bench.train(ours.name, f"run.seed={seed}")
    warm_rows = rows(start, "warmup")
    spent = float((ours / "cpu_s").read_text())
    each = float((start / "cpu_s").read_text()) / len(warm_rows)
    bench.train(f"control-{seed}", f"run.seed={seed + 1000}", "run.updates=0", f"model.path={model_of(start)}",
                f"warmup.updates={round(spent / each)}", "warmup.lr=0.001", "warmup.lr_end=0.0001")


def loss_run(bench, name, steps, seed):
    start = bench.top / "warm-1"
    bench.train(f"{name}-x{steps}-{seed}", f"run.seed={seed}", "warmup.updates=0", f"model.path={model_of(start)}",
                f"run.updates={bench.options.updates}", *LOSSES[name], *STEPS[steps])


# ---- tables and plots ----

def interval(values):
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return f"{mean:.3f}"
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return f"{mean:.3f} ± {T95[n - 1] * deviation / math.sqrt(n):.3f}"


def measures(k):
    return ("pass@1_first_turn", "pass@1", f"pass@{k}", "greedy")


def eval_at(directory, last):
    found = rows(directory, "eval")
    return found[-1 if last else 0] if found else None


def table(groups, k):
    """groups: (label, [eval rows])"""
    out = [f"| | {' | '.join(f'{s}: {m}' for s in SETS for m in measures(k))} |", "|---" * (1 + 2 * 4) + "|"]
    for label, evals in groups:
        cells = [interval([e[f"eval/{s}/{m}"] for e in evals]) for s in SETS for m in measures(k)]
        out.append(f"| {label} ({len(evals)}) | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")


def plot(path, title, curves):
    """curves: (label, [(x, y), ...]); an SVG of lines."""
    width, height, left, top = 720, 360, 60, 40
    points = [p for _, curve in curves for p in curve]
    x_most = max(x for x, _ in points) or 1
    y_least, y_most = min(y for _, y in points), max(y for _, y in points)
    y_most += (y_most == y_least)

    def place(x, y):
        return (f"{left + (width - left - 150) * x / x_most:.1f},"
                f"{height - 40 - (height - 40 - top) * (y - y_least) / (y_most - y_least):.1f}")
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
           f'font-size="12"><rect width="100%" height="100%" fill="white"/><text x="{left}" y="20">{title}</text>',
           f'<text x="5" y="{height - 40}">{y_least:.3f}</text><text x="5" y="{top + 8}">{y_most:.3f}</text>',
           f'<text x="{left}" y="{height - 20}">0</text><text x="{width - 190}" y="{height - 20}">{x_most}</text>']
    for i, (label, curve) in enumerate(curves):
        colour, dash = COLOURS[i % len(COLOURS)], ' stroke-dasharray="5 3"' if i >= len(COLOURS) // 2 else ""
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} points="'
                   f'{" ".join(place(*p) for p in curve)}"/>'
                   f'<text x="{width - 140}" y="{top + 18 * i}" fill="{colour}">{label}</text>')
    path.write_text("\n".join(out) + "\n</svg>\n")


def mean_curve(directories, metric, first):
    """The mean over runs of a metric of evaluations, by updates since `first`."""
    at = {}
    for directory in directories:
        for row in rows(directory, "eval"):
            at.setdefault(row["step"] - first(directory), []).append(row[metric])
    return sorted((x, sum(ys) / len(ys)) for x, ys in at.items() if x >= 0)


def half_claim(compared):
    """Is CISPO, half way, where DAPO is in the end? The difference by seed, first turn."""
    out = "\nCISPO after half the updates minus DAPO after all:"
    for x in STEPS:
        for s in SETS:
            metric, apart = f"eval/{s}/pass@1_first_turn", []
            ends = {d.name.split("-")[-1]: eval_at(d, True)[metric] for d in compared["dapo", x]}
            for ours in compared["cispo", x]:
                evals, seed = rows(ours, "eval"), ours.name.split("-")[-1]
                half = min(evals, key=lambda e: abs(2 * e["step"] - evals[-1]["step"]))
                apart += [half[metric] - ends[seed]] if seed in ends else []
            if apart:
                out += f" {s}, {x} steps, {interval(apart)} ({len(apart)});"
    return out + "\n"


def report(bench):
    def done(pattern):
        return sorted(d.parent for d in bench.top.glob(f"{pattern}/cpu_s"))
    k = next(int(key.split("@")[1]) for key in eval_at(done("warm-*")[0], True) if key.startswith("eval/bugs/pass@")
             and "_" not in key and not key.endswith("@1"))
    ours, control = done("cispo-[0-9]*"), done("control-*")
    text = ""
    if ours:
        groups = [("imitation", [eval_at(d, False) for d in ours]), ("+ CISPO", [eval_at(d, True) for d in ours])]
        if control:
            groups.append(("control: imitation goes on", [eval_at(d, True) for d in control]))
        text += table(groups, k)
        cpu = [(d.name, (d / "cpu_s").read_text().strip()) for d in done("warm-*") + ours + control]
        text += "\nCPU seconds: " + ", ".join(f"{n} {s}" for n, s in cpu) + "\n\n"
        plot(bench.top / "seeds.svg", "pass@1, mean of seeds, by CISPO updates",
             [(f"{s}", mean_curve(ours, f"eval/{s}/pass@1", lambda d: len(rows(d, "warmup")))) for s in SETS])
    compared = {(n, x): done(f"{n}-x{x}-*") for x in STEPS for n in LOSSES}
    if any(compared.values()):
        groups = [("start", [eval_at(d, False) for d in done("cispo-x1-*")[:1]])]
        groups += [(f"{n}, {x} steps a batch", [eval_at(d, True) for d in found])
                   for (n, x), found in compared.items() if found]
        text += table(groups, k)
        text += half_claim(compared)
        for s in SETS:
            plot(bench.top / f"losses-{s}.svg", f"first turn on held-out {s}, mean of seeds, by updates",
                 [(f"{n} x{x}", mean_curve(found, f"eval/{s}/pass@1_first_turn", lambda d: 0))
                  for (n, x), found in compared.items() if found])
    (bench.top / "report.md").write_text(text)
    print(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("seeds", "losses", "report"))
    parser.add_argument("--dir", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--updates", type=int, default=100, help="of losses (default 100)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    bench = Bench(options)
    if options.what != "report":
        bench.tasks()
    seeds = range(1, options.seeds + 1)
    if options.what == "seeds":
        bench.all(seed_runs, [(bench, seed) for seed in seeds])
    elif options.what == "losses":
        warm(bench, 1)
        bench.all(loss_run, [(bench, n, x, seed) for seed in seeds for x in STEPS for n in LOSSES])
    report(bench)


main()
