"""One command outside, as an ordinary user, and the same in a box; tests that must end alike.

Every test that passes outside must pass inside, but for those that known.txt names with the reason.
What fails outside as well says nothing about boxes and is not counted.
"""
import atexit
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import tempfile

HERE = pathlib.Path(__file__).parent
USER_ID = 61234
TOO_LONG = 124  # as the box tool says it
ENVIRON = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}
LIMITS = ["--mem", "3G", "--pids", "400", "--disk", "2G", "--file-size", "20G"]


def wanted():
    """Why not to run: a reason, or None."""
    if not {"1", "compat"} & set(os.environ.get("ASSAY_OPTIN", "").split(",")):
        return "opt-in: ASSAY_OPTIN=compat"
    return None


def known_differences():
    known = {}
    for line in (HERE / "known.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, reason = line.split(None, 1)
            known[name] = reason
    return known


class Sides:
    """Both sides of one tree (or of none): in a box it is new each time, outside there is one copy.
    It has the same path on both sides: some tests count its letters."""

    def __init__(self, tool, tree=None, wall_s=120):
        self.tool, self.tree, self.wall_s = tool, tree, wall_s
        self.who = {"user": USER_ID, "group": USER_ID, "extra_groups": []} if os.geteuid() == 0 else {}
        self.top = tempfile.mkdtemp(prefix="assay-compat-", dir="/var/tmp")
        atexit.register(shutil.rmtree, self.top, ignore_errors=True)
        self.here, self.home = os.path.join(self.top, "tree"), os.path.join(self.top, "home")
        if tree:
            shutil.copytree(tree, self.here, symlinks=True)
        for path in (self.here, self.home):
            os.makedirs(path, exist_ok=True)
        if self.who:
            subprocess.run(["chown", "-Rh", f"{USER_ID}:{USER_ID}", self.top], check=True)

    def inside(self, line):
        environ = ["=".join(pair) for pair in {**ENVIRON, "HOME": "/tmp"}.items()]
        work = ["--work", self.tree, "--work-path", self.here] if self.tree else []
        done = subprocess.run([self.tool, "run", *work, "--merge", "--wall", f"{self.wall_s}s", *LIMITS, "--",
                               "/usr/bin/env", "-i", *environ, "/bin/sh", "-c", line], check=False, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.returncode, done.stdout.decode(errors="replace")

    def outside(self, line):
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(["/bin/sh", "-c", line], cwd=self.here, stdin=subprocess.DEVNULL,
                                       env={**ENVIRON, "HOME": self.home, "TMPDIR": self.home}, stdout=output,
                                       stderr=output, start_new_session=True, **self.who)
            try:
                status = process.wait(self.wall_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                status = TOO_LONG
            output.seek(0)
            return status, output.read().decode(errors="replace")

    def both(self, line):
        """How it ends and what it says outside and inside, run at the same time."""
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            before, after = pool.submit(self.outside, line), pool.submit(self.inside, line)
            return before.result(), after.result()

    def why_no_boxes(self):
        status, said = self.inside("exit 0")
        if status != 0 and os.environ.get("ASSAY_BOX_MUST_WORK") == "1":
            raise SystemExit("boxes must work here: " + said)
        return None if status == 0 else "no boxes on this host"


class Report:
    """TAP, a line for each unit; `total` tests passed outside, `met` of them are known to differ."""

    def __init__(self):
        self.lines, self.failed, self.total = 0, 0, 0
        self.known, self.met = known_differences(), set()

    def say(self, name, bad=(), skip=None):
        self.lines += 1
        self.failed += bool(bad)
        for note in bad:
            print("#", note)
        print("not ok" if bad else "ok", self.lines, "-", name + (f" # SKIP {skip}" if skip else ""), flush=True)

    def compare(self, name, sides, line, outcomes, prefix=""):
        (status, said), (status_inside, said_inside) = sides.both(line)
        if TOO_LONG in (status, status_inside):
            late = [side for side, how in (("outside", status), ("inside", status_inside)) if how == TOO_LONG]
            self.say(name, skip=f"not done in {sides.wall_s} s " + " and ".join(late))
            return
        before, after, bad = outcomes(said), outcomes(said_inside), []
        for test, how in before.items():
            if how != "ok":
                continue
            self.total += 1
            if after.get(test) == "ok":
                continue
            names = {prefix + test, (prefix + test).rsplit(".", 1)[0]} & self.known.keys()
            self.met |= names
            if not names:
                bad.append(f"{prefix}{test}: ok outside, {after.get(test, 'missing')} inside")
        passed = sum(how == "ok" for how in before.values())
        self.say(f"{name} ends inside as outside: {passed} of {len(before)} tests pass outside", bad,
                 None if passed else "nothing passes outside")

    def end(self):
        self.say(f"{self.total} tests passed outside, {len(self.met)} known to differ: "
                 + " ".join(sorted(self.met)), [] if self.total else ["nothing ran"])
        print(f"1..{self.lines}")
        return int(self.failed > 0)
