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
import subprocess
import sys
import tempfile


SANE = ["gcc", "-O1", "-Werror", "-Wuninitialized", "-Wmaybe-uninitialized", "-Winit-self",
        "-fsanitize=address,shift", "-fno-sanitize-recover=all"]


def run(argv, cwd):
    done = subprocess.run(["prlimit", "--cpu=3", "--core=0", "--fsize=1048576"] + argv, cwd=cwd, stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=60, check=False,
                          env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"})
    return done.returncode, done.stdout.decode("utf-8", "replace").split("\n")[:-1]


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
                for argv, end in ((["gcc", "-w", "-O0"], ".o"), (SANE, ".sane.o")):
                    code, _ = run(argv + ["-c", source, "-o", source + end], top)
                    assert code == 0, source

    def values(self, text):
        """What the calls show; None: it does not compile, or compilers differ."""
        source = self.calls["sources"][0]
        (self.dir / source).write_text(text)
        if not self.is_c:
            return run(["/usr/bin/python3", "-I", "-S", "-B", "driver.py", "."], self.dir)[1]
        code, tcc = run(["tcc", "-w", "-o", "tcc.out", "driver.c"] + self.calls["sources"], self.dir)
        if code != 0:
            return None
        tcc = run(["./tcc.out"], self.dir)[1]
        code, _ = run(["gcc", "-Werror", "-O0", "-o", "gcc.out", source] + self.fixed, self.dir)
        if code != 0:
            return None
        return tcc if run(["./gcc.out"], self.dir)[1] == tcc else None

    def is_sane(self, text):
        if not self.is_c:
            return True
        source = self.calls["sources"][0]
        (self.dir / source).write_text(text)
        code, _ = run(SANE + ["-o", "sane.out", source] + [name[:-2] + ".sane.o" for name in self.fixed], self.dir)
        return code == 0 and run(["./sane.out"], self.dir)[0] not in (1, -6)


class Cache:
    def __init__(self, path):
        self.path, self.known = path, {}
        if path and os.path.exists(path):
            for line in open(path, encoding="utf-8"):
                self.known.update([json.loads(line)])

    def ask(self, key, fn):
        if key not in self.known:
            self.known[key] = fn()
            if self.path:
                with open(self.path, "a", encoding="utf-8") as out:
                    out.write(json.dumps([key, self.known[key]]) + "\n")
        return self.known[key]

    def values(self, bench, row, expected=None):
        """What the calls show; None: it does not count."""
        text = row["files"][row["calls"]["sources"][0]]
        key = hashlib.sha256(json.dumps([row["files"], row["calls"]["driver"]]).encode()).hexdigest()
        values = self.ask(key, lambda: bench().values(text))
        if values is None or values == expected:
            return values
        return values if self.ask("sane " + key, lambda: bench().is_sane(text)) else None


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
        fails = [fails_of(cache.values(bench, line["row"], expected), expected) for line in mutants[1:]]
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
