#!/usr/bin/env python3
"""An agent that solves a repair task by tool calls. It knows the answer: a policy would have to find it.

    assay up
    assay task generate repair --count 1 --out rows.jsonl
    python3 examples/episode.py rows.jsonl
"""
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "python"))
from assay_client import Client  # noqa: E402


def edits(patch):
    """(path, old text, new text) of every hunk of a diff."""
    path = None
    for block in re.split(r"(?m)^(?=@@|diff )", patch):
        if named := re.search(r"(?m)^\+\+\+ b/(.*)$", block):
            path = named.group(1)
        if block.startswith("@@"):
            lines = [line for line in block.split("\n")[1:] if line[:1] in (" ", "-", "+")]
            yield (path, "".join(line[1:] + "\n" for line in lines if line[0] != "+"),
                   "".join(line[1:] + "\n" for line in lines if line[0] != "-"))


def main():
    row = json.loads(pathlib.Path(sys.argv[1]).read_bytes().splitlines()[0])
    client = Client()
    client.import_tasks([row], "example")
    episode = client.open("example/" + row["instance_id"], seed=1)[0]
    print(episode.observation)
    print(episode.step("edit", command="view", path=".").text)
    for path, old, new in edits(row["patch"]):
        print(episode.step("edit", command="str_replace", path=path, old_str=old, new_str=new).text)
    print(episode.diff())
    done = episode.submit()
    print(done["end"], done["verdict"], "reward", done["reward"])


main()
