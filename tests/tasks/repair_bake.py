"""Makes tasks/repair_facts.txt: runs every function and every mutant of the families on this machine.

    python3 tests/tasks/repair_bake.py build/tests/tasks/repair_rows tasks/repair_facts.txt [CACHE]

To be run after a change of the families or of the rules for bugs; minutes. The programs are our own texts,
not a policy's, so they run without a box. A C mutant counts as noticed if tcc and gcc -O0 agree on the calls
that fail, gcc has no warning (its defaults) about it, and nothing in it is undefined: AddressSanitizer, shifts,
variables that are not set. So its fate is the same on every machine. CACHE is a file that keeps results by content.
"""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile


SANE = ["gcc", "-O1", "-Wno-all", "-Wuninitialized", "-Wmaybe-uninitialized", "-Winit-self", "-fsanitize=address,shift",
        "-fno-sanitize-recover=all"]


def run(argv, cwd, **more):
    """Exit status, lines of standard output, standard error."""
    done = subprocess.run(["prlimit", "--cpu=3", "--core=0", "--fsize=1048576"] + argv, cwd=cwd, stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=60, check=False,
                          env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0", **more})
    return done.returncode, done.stdout.decode("utf-8", "replace").split("\n")[:-1], done.stderr


class Bench:
    """One family's directory: what does not change is compiled once."""

    def __init__(self, top, row):
        self.dir = pathlib.Path(top)
        self.calls = row["calls"]
        self.is_c = self.calls["language"] == "c"
        for name, text in row["files"].items():
            (self.dir / name).write_text(text)
        (self.dir / ("driver.c" if self.is_c else "driver.py")).write_text(self.calls["driver"])
        self.fixed = []
        if self.is_c:
            for source in ["driver.c"] + self.calls["sources"][1:]:
                self.fixed.append(source + ".o")
                code, _, _ = run(["gcc", "-w", "-O0", "-c", source, "-o", source + ".o"], top)
                assert code == 0, source

    def values(self, text):
        """What the calls show; None: it does not compile, or compilers differ."""
        source = self.calls["sources"][0]
        (self.dir / source).write_text(text)
        if not self.is_c:
            return run(["/usr/bin/python3", "-I", "-S", "-B", "driver.py", "."], self.dir)[1]
        code, tcc, _ = run(["tcc", "-w", "-o", "tcc.out", "driver.c"] + self.calls["sources"], self.dir)
        if code != 0:
            return None
        tcc = run(["./tcc.out"], self.dir)[1]
        code, _, _ = run(["gcc", "-Werror", "-O0", "-o", "gcc.out", source] + self.fixed, self.dir)
        if code != 0:
            return None
        return tcc if run(["./gcc.out"], self.dir)[1] == tcc else None

    def are_sane(self, texts):
        """Of each text: is nothing in it undefined? All in one program; SANE_MUTANT says which one is called."""
        if not self.is_c:
            return [True] * len(texts)
        name = self.calls["sources"][0][:-2]
        header = self.dir / (name + ".h")
        if header.exists():
            header.write_text("#pragma once\n" + header.read_text().replace("#pragma once\n", ""))
        all_c = ["#include <stdlib.h>\nextern void *chosen;\n"]
        for i, text in enumerate(texts):
            (self.dir / f"m{i}.c").write_text(text)
            all_c.append(f'#define {name} f{i}\n#include "m{i}.c"\n#undef {name}\n')
        all_c.append("static void *table[] = {" + ", ".join(f"f{i}" for i in range(len(texts))) + "};\n"
                     '__attribute__((constructor)) static void choose(void)\n'
                     '{ chosen = table[atoi(getenv("SANE_MUTANT"))]; }\n')
        (self.dir / "all.c").write_text("".join(all_c))
        done = subprocess.run(SANE + ["-c", "all.c"], cwd=self.dir, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        warned = {int(number) for number in re.findall(r"^m(\d+)\.c:.*warning:", done.stderr, re.M)}
        code, _, _ = run(SANE + ["-w", f"-D{name}=(*chosen)", "-o", "sane.out", "driver.c", "all.o"] +
                      self.calls["sources"][1:], self.dir)
        assert code == 0, name
        told = [run(["./sane.out"], self.dir, SANE_MUTANT=str(i), ASAN_OPTIONS="symbolize=0")[2]
                for i in range(len(texts))]
        return [i not in warned and b"AddressSanitizer" not in err and b"runtime error" not in err
                for i, err in enumerate(told)]


class Cache:
    def __init__(self, path):
        self.path, self.known = path, {}
        if path and os.path.exists(path):
            for line in open(path, encoding="utf-8"):
                self.known.update([json.loads(line)])

    def put(self, key, value):
        self.known[key] = value
        if self.path:
            with open(self.path, "a", encoding="utf-8") as out:
                out.write(json.dumps([key, value]) + "\n")

    def values(self, bench, row):
        """What the calls show; None: it does not count."""
        key = key_of(row)
        if key not in self.known:
            self.put(key, bench().values(text_of(row)))
        return self.known[key]

    def drop_insane(self, bench, rows, values, expected):
        """Makes None of the values of texts in which something is undefined."""
        asked = [i for i, row in enumerate(rows) if values[i] not in (None, expected) and
                 "sane " + key_of(row) not in self.known]
        if asked:
            for i, sane in zip(asked, bench().are_sane([text_of(rows[i]) for i in asked])):
                self.put("sane " + key_of(rows[i]), sane)
        return [None if not self.known.get("sane " + key_of(row), True) else value for row, value in zip(rows, values)]


def text_of(row):
    return row["files"][row["calls"]["sources"][0]]


def key_of(row):
    code = {name: text for name, text in row["files"].items() if not name.startswith("test")}
    return hashlib.sha256(json.dumps([code, row["calls"]["driver"]]).encode()).hexdigest()


def fails_of(values, expected):
    if values is None:
        return 0
    values = values + [None] * len(expected)
    return sum(1 << i for i, want in enumerate(expected) if values[i] != want)


def bake(cache, mutants):
    """The facts of one family: lines."""
    family = mutants[0]["family"]
    with tempfile.TemporaryDirectory() as top:
        made = []

        def bench():
            made[:] = made or [Bench(top, mutants[0]["row"])]
            return made[0]
        expected = cache.values(bench, mutants[0]["row"])
        assert expected, f"{family}: the right text does not run"
        assert len(set(expected)) > 1, f"{family}: one answer for all calls"
        rows = [line["row"] for line in mutants[1:]]
        values = cache.drop_insane(bench, rows, [cache.values(bench, row) for row in rows], expected)
        fails = [fails_of(value, expected) for value in values]
    print(family, f"{sum(mask != 0 for mask in fails)} of {len(fails)} noticed", flush=True)
    return [f"fact {family} {mutants[0]['digest']}", "fails " + "".join(f"{mask:03x}" for mask in fails)] + [
        "= " + value for value in expected]


def main():
    rows, path = sys.argv[1], sys.argv[2]
    cache = Cache(sys.argv[3] if len(sys.argv) > 3 else None)
    facts = ["# Made by tests/tasks/repair_bake.py from the families; what they mean: tasks/repair_family.h."]
    lines = subprocess.run([rows], capture_output=True, check=True, text=True).stdout.splitlines()
    by_family = {}
    for line in map(json.loads, lines):
        by_family.setdefault(line["family"], []).append(line)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for baked in pool.map(lambda mutants: bake(cache, mutants), by_family.values()):
            facts += baked
    pathlib.Path(path).write_text("\n".join(facts) + "\n", encoding="ascii")


main()
