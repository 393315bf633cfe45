"""The command line against a daemon with a scripted worker: what it prints where, and how it exits. Prints TAP."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from daemon import HERE, rows, run_cases, task_row

ASSAY = os.path.abspath(sys.argv[1])
CASES = []


def case(function):
    CASES.append(function)
    return function


def same(got, wanted):
    if got != wanted:
        raise AssertionError(f"got {got!r}, wanted {wanted!r}")


def has(text, part):
    if part not in text:
        raise AssertionError(f"{part!r} is not in {text!r}")


class Home:
    """A private state directory and files of rows and predictions."""

    def __enter__(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="assay-cli-"))
        self.write("rows.jsonl", rows(task_row(i) for i in range(3)))
        self.write("preds.jsonl", self.predictions(["resolved", "unresolved", "patch_failed"]))
        return self

    def __exit__(self, *unused):
        self("down")
        shutil.rmtree(self.dir, ignore_errors=True)

    def write(self, name, text):
        (self.dir / name).write_text(text)

    @staticmethod
    def predictions(words):
        return rows({"instance_id": f"acme__calc-{i}", "model_patch": word + "\n", "model_name_or_path": "org/m"}
                    for i, word in enumerate(words))

    def __call__(self, *words, stdin=None, **more):
        env = {key: value for key, value in os.environ.items() if not key.startswith("ASSAY_")}
        env.update(ASSAY_STATE=str(self.dir / "state"), ASSAY_WORKER_PROGRAM=str(HERE / "fake_worker.py"),
                   ASSAY_DISK_FLOOR_MIB="0", XDG_CONFIG_HOME=str(self.dir / "config"), **more)
        return subprocess.run([ASSAY, *words], env=env, cwd=self.dir, capture_output=True, text=True, input=stdin,
                              timeout=60, check=False)


@case
def mistakes_exit_2_and_suggest():
    with Home() as assay:
        for words, part in ((("sweep", "lst"), "Did you mean 'sweep ls'"), (("grde",), "Did you mean 'grade'"),
                            (("sweep", "run", "x", "--detahc"), "did you mean --detach"),
                            (("task", "show"), "takes TASK"), (("eval",), "needs --dataset"),
                            (("status", "--wall-s", "0"), "between 1 and 14400")):
            result = assay(*words)
            same((words, result.returncode, result.stdout), (words, 2, ""))
            has(result.stderr, part)


@case
def no_daemon_is_exit_5_with_what_to_type():
    with Home() as assay:
        result = assay("status")
        same((result.returncode, result.stdout), (5, ""))
        has(result.stderr, "assay up")


@case
def what_models_run_on_is_said_and_may_be_asked_for():
    with Home() as assay:
        checks = {row["id"]: row for row in json.loads(assay("doctor", "--json").stdout)["checks"]}
        same(checks["ops"]["status"], "ok")
        has(checks["ops"]["detail"], "models run on cpu-")
        same(checks["ranks"]["status"], "ok")
        has(checks["ranks"]["detail"], "between cards: ")
        result = assay("train", "ls", ASSAY_OPS="cude")
        same((result.returncode, result.stdout), (2, ""))
        has(result.stderr, "cude is neither cpu nor cuda")
        same(assay("train", "ls", ASSAY_OPS="cpu").returncode, 0)


@case
def a_daemon_goes_up_and_down():
    with Home() as assay:
        same(assay("up").returncode, 0)
        has(assay("up").stderr, "answers already")
        info = json.loads(assay("status", "--json").stdout)
        same(info["state_dir"], str(assay.dir / "state"))
        same(assay("down").returncode, 0)
        same(assay("status").returncode, 5)


@case
def tasks_and_grades_by_hand():
    with Home() as assay:
        assay("up")
        same(assay("task", "import", "rows.jsonl", "--dataset", "demo").returncode, 0)
        listed = assay("task", "ls").stdout.splitlines()
        same((len(listed), listed[0].split("\t")[:3]), (3, ["acme__calc-0", "demo", "acme/calc"]))
        same(assay("task", "show", "acme__calc-0", "--patch").stdout, "resolved gold\n")
        same(assay("task", "show", "nope").returncode, 3)
        result = assay("grade", "acme__calc-0", "-", stdin="unresolved\n")
        same(result.returncode, 0)
        has(result.stdout, "unresolved   reward 0")
        grade = json.loads(assay("grade", "acme__calc-0", "--gold", "--json").stdout)
        same(grade["verdict"], "resolved")
        same(assay("logs", grade["id"], "--tail", "1").stdout, "PASSED test_a\n")
        same(assay("logs", grade["id"], "--grep", "line 2").stdout, "line 2\n")
        same(assay("grade", "acme__calc-0", "--empty", "--fail-on", "unresolved").returncode, 7)
        same(assay("grade", "acme__calc-0").returncode, 2)
        same(assay("grade", "acme__calc-0", "-", stdin="crash\n").returncode, 1)
        same(assay("show", grade["id"][:20], "--json").returncode, 0)


@case
def a_sweep_prints_a_line_per_grade_in_a_pipe():
    with Home() as assay:
        assay("up")
        assay("task", "import", "rows.jsonl", "--dataset", "demo")
        result = assay("sweep", "run", "preds.jsonl", "--dataset", "demo", "--name", "one")
        same(result.returncode, 0)
        same({tuple(line.split("\t")[:3]) for line in result.stdout.splitlines()},
             {("acme__calc-0", "resolved", "1"), ("acme__calc-1", "unresolved", "0"), ("acme__calc-2", "patch_failed", "0")})
        has(result.stderr, "3/3")
        same(assay("sweep", "run", "preds.jsonl", "--dataset", "demo", "--fail-under", "0.9").returncode, 7)
        assay.write("better.jsonl", assay.predictions(["unresolved b", "resolved b", "resolved b"]))
        assay("sweep", "run", "better.jsonl", "--dataset", "demo")
        ids = [line.split("\t")[0] for line in assay("sweep", "ls").stdout.splitlines()]
        same(len(ids), 3)
        diff = json.loads(assay("sweep", "diff", ids[1], ids[0], "--json").stdout)
        same((sorted(diff["fixed"]), diff["broken"]), (["acme__calc-1", "acme__calc-2"], ["acme__calc-0"]))
        same(assay("sweep", "diff", ids[1], ids[0], "--fail-on-broken").returncode, 7)
        report = json.loads(assay("sweep", "report", "@last").stdout)
        same((report["resolved_instances"], report["schema_version"]), (2, 2))


@case
def eval_does_it_all_and_leaves_no_daemon():
    with Home() as assay:
        assay.write("rows.jsonl", rows([task_row(0), task_row(1)]) + '{"instance_id": "bad"}\n' + rows([task_row(2)]))
        assay.write("preds.jsonl", assay.predictions(["resolved", "unresolved"]) + "{oops\n"
                    + rows([{"instance_id": "nobody", "model_patch": "x"}]))
        result = assay("eval", "--dataset", "rows.jsonl", "--predictions", "preds.jsonl", "--out", "out", "--run-id", "r1")
        same(result.returncode, 1)
        has(result.stderr, "rows.jsonl:3: not a task row: expected repo")
        has(result.stderr, "preds.jsonl:3:")
        has(result.stderr, "nobody")
        summary = json.loads((assay.dir / "out" / "org__m.r1.json").read_text())
        same((summary["resolved_ids"], summary["unresolved_ids"], summary["incomplete_ids"]),
             (["acme__calc-0"], ["acme__calc-1"], ["acme__calc-2"]))
        tree = assay.dir / "out" / "logs" / "run_evaluation" / "r1" / "org__m" / "acme__calc-0"
        same((tree / "patch.diff").read_text(), "resolved\n")
        has((tree / "test_output.txt").read_text(), "PASSED test_a")
        same(assay("status").returncode, 5)
        same(assay("eval", "--dataset", "rows.jsonl", "--predictions", "gold", "--instances", "acme__calc-1").returncode, 1)
        same(assay("eval", "--dataset", "none.jsonl", "--predictions", "gold").returncode, 1)


@case
def json_is_one_object_per_line():
    with Home() as assay:
        result = assay("eval", "--dataset", "rows.jsonl", "--predictions", "preds.jsonl", "--json")
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        same([line["object"] for line in lines], ["grade"] * 3 + ["sweep"])


sys.exit(run_cases(CASES))
