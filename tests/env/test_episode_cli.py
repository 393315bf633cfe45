"""assay task generate and assay episode: what they print where, and how they exit. Prints TAP.

    test_episode_cli.py ASSAY SANDBOX_DIR
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import traceback

ASSAY = os.path.abspath(sys.argv[1])
CASES = []


def case(function):
    CASES.append(function)
    return function


class Skip(Exception):
    pass


def assay(*args, rc=0):
    env = {**os.environ, "ASSAY_LIBEXEC": os.path.abspath(sys.argv[2]), "ASSAY_ALLOW_DEGRADED": "true"}
    done = subprocess.run([ASSAY, *map(str, args)], capture_output=True, text=True, check=False, env=env)
    if "no boxes" in done.stderr:
        raise Skip(done.stderr.strip())
    assert done.returncode == rc, f"{args}: {done.returncode} {done.stderr}"
    return done.stdout if rc == 0 else done.stderr


def generate(*args):
    return [json.loads(line) for line in assay("task", "generate", "repair", *args).splitlines()]


@case
def the_same_options_give_the_same_rows(home):
    first = assay("task", "generate", "repair", "--seed", 5, "--count", 20)
    assay("task", "generate", "repair", "--seed", 5, "--count", 20, "--out", home / "rows.jsonl")
    assert (home / "rows.jsonl").read_text() == first
    assert first != assay("task", "generate", "repair", "--seed", 6, "--count", 20)


@case
def families_and_splits_are_chosen_by_name(home):
    assert {row["language"] for row in generate("--families", "python", "--count", 30)} == {"python"}
    assert {row["repair"]["family"] for row in generate("--families", "gcd,lcm", "--count", 30)} == {"gcd", "lcm"}
    held = generate("--split", "heldout-functions", "--count", 100)
    assert "parity" in {row["repair"]["family"] for row in held}
    assert "did you mean gcd?" in assay("task", "generate", "repair", "--families", "gcdd", rc=2)
    assert "--split is dev" in assay("task", "generate", "repair", "--split", "dev", rc=2)
    assert "there are: repair" in assay("task", "generate", "poems", rc=2)
    assert "--count" in assay("task", "generate", "repair", "--count", 0, rc=2)


@case
def what_verify_lets_through_is_what_was_drawn(home):
    drawn = generate("--seed", 7, "--count", 12)
    assert drawn == generate("--seed", 7, "--count", 12, "--verify")


@case
def tools_are_declared(home):
    names = [tool["function"]["name"] for tool in json.loads(assay("episode", "tools"))]
    assert names == ["edit", "search", "bash", "submit"]


def fixed(row):
    text = row["files"][row["repair"]["path"]]
    for edit in reversed(row["repair"]["edits"]):
        text = text[:edit["offset"]] + edit["right"] + text[edit["offset"] + len(edit["wrong"]):]
    return text


@case
def an_episode_is_run_recorded_and_replayed(home):
    row = generate("--seed", 8, "--count", 1, "--families", "c")[0]
    (home / "rows.jsonl").write_text(json.dumps(row) + "\n")
    path = row["repair"]["path"]
    calls = [("edit", {"command": "view", "path": path}), ("bash", {"command": "ls"}),
             ("edit", {"command": "create", "path": path, "file_text": fixed(row)}), ("submit", {})]
    (home / "script.jsonl").write_text("".join(json.dumps({"tool": t, "arguments": a}) + "\n" for t, a in calls))
    words = ["episode", "run", row["instance_id"], "--dataset", home / "rows.jsonl", "--script", home / "script.jsonl"]
    shown = assay(*words, "--record", home / "record.jsonl")
    assert shown.startswith("     1\t") and shown.endswith("Submitted.\npassed\n"), shown
    lines = [json.loads(line) for line in assay(*words, "--json").splitlines()]
    assert [line.get("tool") for line in lines[1:5]] == ["edit", "bash", "edit", "submit"]
    assert lines[-1]["verdict"] == "passed" and len(lines[-1]["passed"]) == lines[-1]["calls"]
    replay = ["episode", "replay", row["instance_id"], "--dataset", home / "rows.jsonl", "--record", home / "record.jsonl"]
    assay(*replay)
    record = (home / "record.jsonl").read_text()
    (home / "record.jsonl").write_text(record.replace("Submitted.", "Sent."))
    assert "step 4: submit shows something else" in assay(*replay, rc=1)
    assert "has no task" in assay("episode", "run", "nobody", *words[3:], rc=3)
    (home / "script.jsonl").write_text('{"tool": "edit", "argument": {}}\n')
    assert "script, line 1" in assay(*words, rc=2)


def main():
    print(f"1..{len(CASES)}")
    failed = 0
    for number, function in enumerate(CASES, 1):
        name = function.__name__.replace("_", " ")
        with tempfile.TemporaryDirectory() as home:
            try:
                function(pathlib.Path(home))
                print(f"ok {number} - {name}")
            except Skip as why:
                print(f"ok {number} - {name} # SKIP {why}")
            except (AssertionError, OSError, ValueError, KeyError, IndexError):
                failed += 1
                print(f"not ok {number} - {name}")
                for line in traceback.format_exc().splitlines():
                    print("#", line)
    return failed > 0


sys.exit(main())
