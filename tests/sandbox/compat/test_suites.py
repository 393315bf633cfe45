"""The test suites of git, sqlite and redis inside a box: each test ends as it does outside.

    test_suites.py BOX_TOOL DIR [SUITE | SUITE:PATTERN ...]     prints TAP; opt-in: ASSAY_OPTIN=compat

DIR keeps what sources.sh fetches (Debian's source packages, so this needs the network once) and builds;
the same tree is then used on both sides. redis talks over the loopback of the box.
"""
import fnmatch
import os
import pathlib
import re
import subprocess
import sys

from sides import HERE, Report, Sides, wanted

TOOL, DIR = os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2]).absolute()


def tap_outcomes(text):
    """Number -> how it ended; a skip ("ok 1 # skip") is not an "ok"."""
    found = re.findall(r"^(not ok|ok) (\d+)(?: - [^#\n]*)?[ ]?(# \w+)?", text, re.M)
    return {number: ended + note.lower() for ended, number, note in found}


def sqlite_outcomes(text):
    ended = {name: "ok" for name in re.findall(r"^\.*(\S+)\.\.\. Ok$", text, re.M)}  # threads print dots
    return ended | {name: "failed" for name in re.findall(r"^! (\S+) expected", text, re.M)}


def redis_outcomes(text):
    found = re.findall(r"^\[(ok|err|exception|skip|ignore)\]: (.*?)(?: \(\d+ ms\))?$",
                       re.sub(r"\x1b\[[\d;]*m", "", text), re.M)
    return {re.sub(r"\d{3,}", "N", re.sub(r"\s+", "_", name)): ended for ended, name in found}


# suite: where its units are, what to leave out of a unit's path, the units of the usual run (of git the
# basics, the index and refs, branches and rebase, diff and patches; of sqlite not those that end by chance
# after more or fewer tests, as crash and walcrash do), how one is run, what its output says.
SUITES = {
    "git": ("t", ".sh", """t00[0-9]* t01* t02* t03* t04* t10* t13* t14* t15* t30* t32* t34[0-2]* t35* t36* t37* t39*
             t40[0-6]* t41[0-5]* t42*""",
            'sed -i "s,@TREE@,$PWD,g" bin-wrappers/* && cd t && sh ./{unit}.sh', tap_outcomes),
    "sqlite3": ("test", ".test", """select1 select4 insert delete update index join trans* savepoint* journal1 jrnlmode
                lock lock2 lock4 lock5 lock6 shared shared3 shared_err io* mmap* pager1 pagerfault wal wal2 wal3 wal5
                walbak walmode walro walshared crash3 crash8 tempdb temptable attach* backup
                vacuum* malloc_common misc1 misc7 func date exclusive exclusive2 nolock superlock symlink unixexcl
                bigfile syscall sync* thread* oserror corrupt* fts3aa json101 window1 wherelimit quota*""",
                "cd bld && ./testfixture ../test/{unit}.test", sqlite_outcomes),
    "redis": ("tests", ".tcl", """unit/type/* unit/dump unit/auth unit/protocol unit/keyspace unit/scan unit/expire
              unit/info unit/multi unit/pubsub unit/scripting unit/functions unit/aofrw unit/bitops unit/geo unit/sort
              unit/networking unit/limits unit/shutdown unit/introspection unit/lazyfree unit/oom-score-adj
              integration/aof integration/rdb integration/logging integration/redis-cli integration/replication
              integration/shutdown integration/dismiss-mem integration/convert-*""",
              "./runtest --clients 1 --single {unit}", redis_outcomes),
}


def built(name):
    """Why there is no tree to use, or None."""
    if (DIR / name).is_dir():
        return None
    if subprocess.run([HERE / "sources.sh", DIR, name], check=False).returncode == 0:
        return None
    log = (DIR / f"{name}.log").read_text(errors="replace").strip().splitlines()
    return "no source: " + (log[-1] if log else "sources.sh said nothing")


def units_of(name, patterns):
    top, suffix, usual = SUITES[name][:3]
    here = DIR / name / top
    found = sorted(str(path.relative_to(here))[:-len(suffix)] for path in here.rglob("*" + suffix))
    return [unit for unit in found
            if any(fnmatch.fnmatchcase(unit, pattern) for pattern in patterns or usual.split())]


def run_suite(name, patterns, report):
    why = built(name)
    if why:
        report.say(name, skip=why)
        return
    line, outcomes = SUITES[name][3:]
    sides = Sides(TOOL, DIR / name, wall_s=300)
    for unit in units_of(name, patterns):
        report.compare(f"{name} {unit}", sides, line.format(unit=unit), outcomes, f"{name}/{unit}/")


def main():
    why = wanted() or Sides(TOOL).why_no_boxes()
    if why:
        print("1..0 # SKIP", why)
        return 0
    asked = {}
    for word in sys.argv[3:] or SUITES:
        name, _, pattern = word.partition(":")
        asked.setdefault(name, []).extend([pattern] if pattern else [])
    report = Report()
    for name, patterns in asked.items():
        run_suite(name, patterns, report)
    return report.end()


sys.exit(main())
