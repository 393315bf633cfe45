"""A training run on many ranks: mpirun assay train. Prints TAP; skips where there is no mpirun.

    test_train_ranks.py ASSAY LIBEXEC MPI          MPI: yes, where assay is built with it

Four shares of a minibatch make the bits, so one, two and four ranks give equal weights, and a run that one rank began
goes on with two. Ranks that share the model or the rows of a batch give the same within rounding, and go on from each
other's checkpoints. A rank that is killed ends the run; the same command goes on from the last checkpoint.
"""
import json
import math
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from train_lab import ENV, SANITIZED, Lab, run_checks  # noqa: E402

MPIRUN = shutil.which("mpirun")
# Open MPI: as root, more ranks than cores, shared memory without the rights that containers take away
RANKS_ENV = ENV | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1",
                   "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_btl": "self,vader,tcp",
                   "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
                   "LSAN_OPTIONS": f"print_suppressions=0:suppressions={pathlib.Path(__file__).resolve().parents[1] / 'mpi.supp'}"}
SHORT = ["run.updates=0", "warmup.updates=6", "run.checkpoint_every=1", "optim.shares=4"]
RL = ["run.updates=1", "warmup.updates=4", "run.checkpoint_every=1", "rollout.groups=4", "rollout.samples=4",
      "optim.shares=4", "loss.anchor=recomputed", "loss.advantage=reward", "loss.entropy=0.01", "eval.sets="]


def on_ranks(lab, ranks, name, *settings):
    return subprocess.run([MPIRUN, "-n", str(ranks), *lab.command(name, *settings)], env=RANKS_ENV, text=True,
                          capture_output=True, timeout=100, check=False)


def same_bits(lab):
    """one, two and four ranks: the same weights and moments after warm-up and updates"""
    alone = lab.run("one", *RL)
    assert alone.returncode == 0, alone.stderr
    for ranks in 2, 4:
        done = on_ranks(lab, ranks, f"r{ranks}", *RL)
        assert done.returncode == 0, done.stderr
        assert f"{ranks} ranks, {ranks} on this machine: tp 1, ep 1, sp 1, dp {ranks}; 4 shares" in done.stderr + done.stdout, done.stderr
        assert lab.weights(f"r{ranks}", "*.safetensors") == lab.weights("one", "*.safetensors")
        losses = [[row["loss/total"] for row in lab.rows(name)] for name in ("one", f"r{ranks}")]
        assert losses[0] == losses[1], losses


LAYOUTS = {"tp": (2, "ranks.tp=2"), "ep": (2, "ranks.ep=2"), "sp": (2, "ranks.sp=2"),
           "all": (4, "ranks.tp=2", "ranks.sp=2", "optim.recompute=true")}


def floats(path):
    """All numbers of a safetensors file of f32, by the names of its tensors."""
    data = path.read_bytes()
    length, = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    return [x for name in sorted(header)
            for x, in struct.iter_unpack("<f", data[8 + length:][slice(*header[name]["data_offsets"])])]


def distance(lab, a, b, number):
    """Of two runs' unrounded weights and moments at a checkpoint, relative to b's."""
    x, y = (floats(next((lab.top / name / "checkpoints" / number / "optimizer").glob("*.safetensors"))) for name in (a, b))
    return math.dist(x, y) / math.hypot(*y)


def layouts(lab):
    """ranks that share heads, experts or rows: one rank's training within rounding, rollouts and a reference included"""
    for name, (ranks, *keys) in LAYOUTS.items():
        if SANITIZED and name in ("tp", "sp"):  # all has them
            continue
        done = on_ranks(lab, ranks, name, *RL, "loss.kl=k3", *keys)
        assert done.returncode == 0, done.stderr
        if SANITIZED:
            continue
        apart = distance(lab, name, "one", "000004")  # after the demonstrations; then samples may differ
        row = lab.rows(name, "rl")[-1]
        print(f"# {name}: {apart:.1e} from one rank, log-probabilities {row['policy/logp_diff_max']:.1e} from sampling's")
        assert apart < 1e-6, (name, apart)
        assert 0 < row["policy/kl_reference"] < 1e-6 and row["signal/groups_used"] == 4, row
        assert row["policy/logp_diff_max"] <= (0 if name == "ep" else 1e-4), row
    done = on_ranks(lab, 2, "tp", *RL, "ranks.tp=2", "loss.anchor=rollout")
    assert "loss.anchor must be recomputed" in done.stderr, done.stderr


def other_layouts(lab):
    """a run goes on in another layout than it was begun in"""
    for name, (ranks, *keys), (more, *then) in ("tp-one", LAYOUTS["tp"], (1,)), ("sp-ep", LAYOUTS["sp"], LAYOUTS["ep"]):
        for n, updates, layout in (ranks, 3, keys), (more, 6, then):
            config = lab.top / name / "config.conf"
            if config.exists():
                config.write_text(config.read_text().replace("updates=3", "updates=6"))
            done = on_ranks(lab, n, name, *SHORT, f"warmup.updates={updates}", "loss.anchor=recomputed", *layout)
            assert done.returncode == 0, done.stderr
        assert distance(lab, name, "same", "000006") < 1e-6, name


def in_parts(lab):
    """where a server samples no rank holds the whole model: it goes from its files to the ranks"""
    model = next((lab.top / "same" / "checkpoints").iterdir()) / "model"
    settings = [*SHORT, f"model.path={model}", "rollout.server=unix:/nobody", "loss.anchor=recomputed", "warmup.updates=3"]
    for name, ranks, *keys in ("parts-one", 1), ("parts", 2, "ranks.tp=2"):
        done = on_ranks(lab, ranks, name, *settings, *keys)
        assert done.returncode == 0, done.stderr
    assert distance(lab, "parts", "parts-one", "000003") < 1e-6


def other_ranks(lab):
    """what two ranks began one goes on with, and the other way round, to the weights of one rank"""
    for name, *ranks in ("same", 1, 1), ("down", 2, 1), ("up", 1, 2):
        for n, updates in zip(ranks, (3, 6)):
            config = lab.top / name / "config.conf"
            if config.exists():  # a run's length is its own; here it is the only way to have it stop halfway
                config.write_text(config.read_text().replace("updates=3", "updates=6"))
            done = on_ranks(lab, n, name, *SHORT, f"warmup.updates={updates}")
            assert done.returncode == 0, done.stderr
        assert [row["step"] for row in lab.rows(name, "warmup")] == list(range(1, 7))
        assert lab.weights(name, "*.safetensors") == lab.weights("same", "*.safetensors"), name


def counts(lab):
    """ranks that do not divide the shares are refused with both numbers, before anything is made"""
    for says, *keys in (("3 ranks do not divide 4 shares of a minibatch",),
                        ("tp = 2 and sp = 1 want a multiple of 2 ranks, there are 3", "ranks.tp=2"),
                        ("ep = 3 does not divide", "ranks.ep=3")):
        done = on_ranks(lab, 3, "three", *SHORT, "loss.anchor=recomputed", *keys)
        assert done.returncode != 0
        assert says in done.stderr or "tp x " + says in done.stderr, done.stderr
        assert not (lab.top / "three").exists()
    plan = lab.command("three", *SHORT)
    plan.insert(2, "plan")
    plans = [subprocess.run([*plan, "--json", "--ranks", str(n)], env=ENV, text=True, capture_output=True, timeout=60,
                            check=False) for n in (1, 2, 3)]
    assert "3 ranks do not divide 4 shares" in plans[2].stderr, plans[2].stderr
    moments = [json.loads(p.stdout)["moments"] for p in plans[:2]]
    assert abs(moments[1] / moments[0] - 0.5) < 0.05, moments
    cut = subprocess.run([*plan, "--json", "--ranks", "2", "--set", "ranks.tp=2", "--set", "loss.anchor=recomputed"],
                         env=ENV, text=True, capture_output=True, timeout=60, check=True)
    kept = [json.loads(done.stdout)["unrounded weights"] for done in (plans[0], cut)]
    assert abs(kept[1] / kept[0] - 0.5) < 0.05, kept


def unreached(lab):
    """a rank that never comes ends the run before anything is made"""
    done = subprocess.run([MPIRUN, "-n", "1", *lab.command("unreached", *SHORT), ":", "-n", "1", "sleep", "2"], env=RANKS_ENV,
                          text=True, capture_output=True, timeout=100, check=False)
    assert done.returncode != 0
    assert "rank" in done.stderr, done.stderr
    assert not (lab.top / "unreached").exists()


def killed(lab):
    """a rank that is killed ends the run, which goes on from its last checkpoint: half of a model"""
    updates = 20 if SANITIZED else 60
    settings = [*SHORT, f"warmup.updates={updates}", "ranks.tp=2", "loss.anchor=recomputed"]
    run = subprocess.Popen([MPIRUN, "-n", "2", *lab.command("killed", *settings)], env=RANKS_ENV, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    metrics = lab.top / "killed" / "checkpoints"
    while run.poll() is None and not (metrics.is_dir() and any(p.name.isdigit() for p in metrics.iterdir())):
        os.sched_yield()
    ranks = children(run.pid)
    os.kill(ranks[1], signal.SIGKILL)
    said, _ = run.communicate(timeout=60)
    assert run.returncode != 0
    assert re.search(r"rank 1.*signal 9", said) or "rank 1 is silent" in said, said
    last = lab.weights("killed")[0]
    done = on_ranks(lab, 2, "killed", *settings, "run.ranks_wait_s=60")
    assert done.returncode == 0, done.stderr
    steps = [row["step"] for row in lab.rows("killed", "warmup")]
    assert steps == list(range(1, updates + 1)), (last, len(steps))


def children(pid):
    """The ranks below an mpirun, in their order."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            words = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [int(word.split(b"=")[1]) for word in words if word.startswith(b"OMPI_COMM_WORLD_RANK=")]
        if int(stat[1]) == pid and rank:
            found.append((rank[0], int(entry.name)))
    return [number for _, number in sorted(found)]


if not MPIRUN or sys.argv[3] != "yes":
    print("1..0 # SKIP", "built without MPI" if MPIRUN else "no mpirun")
    sys.exit(0)
CHECKS = [same_bits, layouts, other_ranks, other_layouts, in_parts, counts, unreached, killed]
sys.exit(run_checks("ranks", CHECKS, Lab, [same_bits, other_layouts, other_ranks, in_parts] if SANITIZED else ()))
