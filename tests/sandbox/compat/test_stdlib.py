"""CPython's own tests inside a box: each ends as it does outside.

    test_stdlib.py BOX_TOOL [MODULE ...]        prints TAP; opt-in: ASSAY_OPTIN=compat

The tests of the standard library run outside, as an ordinary user, and inside. Every one that
passes outside must pass inside, but for those that known.txt names with the reason. What fails
outside as well says nothing about boxes and is not counted.
"""
import os
import pathlib
import re
import subprocess
import sys
import tempfile

TOOL = sys.argv[1]
HERE = pathlib.Path(__file__).parent
USER_ID = 61234
PATH = "/usr/local/bin:/usr/bin:/bin"
LIMITS = ["--mem", "3G", "--pids", "400", "--wall", "120s", "--disk", "1G",
          "--file-size", "20G"]

# Modules of CPython's suite that lean on the kernel.
MODULES = """
test_os test_posix test_posixpath test_pathlib test_shutil test_tempfile test_glob test_stat test_io
test_file test_fileio test_largefile test_mmap test_fcntl test_ioctl test_pty test_tty test_signal
test_select test_selectors test_poll test_epoll test_socket test_socketserver test_subprocess
test_popen test_pipes test_fork1 test_wait3 test_wait4 test_threading test_thread test_threadsignals
test_queue test_resource test_time test_datetime test_random test_uuid test_platform test_pwd test_grp
test_eintr test_asyncore test_asynchat test_httpservers test_httplib test_ftplib test_smtplib
test_ssl test_tarfile test_zipfile test_gzip test_bz2 test_lzma test_sqlite3 test_dbm test_shelve
test_multiprocessing_fork test_concurrent_futures test_asyncio test_faulthandler test_builtin
test_venv test_compileall test_getpass test_locale test_memoryview test_struct test_ctypes""".split()

results = []


def report(ok, name, skip=None, notes=()):
    results.append(ok)
    for note in notes:
        print("#", note)
    print("ok" if ok else "not ok", len(results), name + (f" # SKIP {skip}" if skip else ""), flush=True)


def inside(line, limits=LIMITS):
    return subprocess.run([TOOL, "run", "--env", f"PATH={PATH}", "--env", "HOME=/tmp", "--env",
                           "LANG=C.UTF-8", "--env", "TZ=UTC", "--merge", *limits, "--", "/bin/sh", "-c", line],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)


def outside(line):
    with tempfile.TemporaryDirectory() as top:
        who = {}
        if os.geteuid() == 0:
            os.chown(top, USER_ID, USER_ID)
            who = {"user": USER_ID, "group": USER_ID, "extra_groups": []}
        env = {"PATH": PATH, "HOME": top, "LANG": "C.UTF-8", "TZ": "UTC", "TMPDIR": top}
        return subprocess.run(["/bin/sh", "-c", line], cwd=top, env=env, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **who)


def outcomes(text):
    """Test id -> how it ended, from unittest's verbose lines."""
    ended, last = {}, None
    for line in text.decode(errors="replace").splitlines():
        start = re.match(r"(\w+) \(([\w.]+)\)", line)
        if start:
            last = start.group(2)
            last = last if last.endswith("." + start.group(1)) else f"{last}.{start.group(1)}"
        end = re.search(r"\.\.\. (ok|FAIL|ERROR|skipped|expected failure|unexpected success)\b", line)
        if end and last:
            ended[last.removeprefix("test.")] = end.group(1)
            last = None
    return ended


def known_differences():
    known = {}
    for line in (HERE / "known.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, reason = line.split(None, 1)
            known[name] = reason
    return known


def standard_library():
    known, met = known_differences(), set()
    modules = sys.argv[2:] or MODULES
    print(f"1..{len(modules) + 1}")
    total = 0
    for module in modules:
        line = f"/usr/bin/python3 -m test -v --timeout 100 {module}"
        before, after = outcomes(outside(line).stdout), outcomes(inside(line).stdout)
        notes = []
        for test, how in before.items():
            if how != "ok":
                continue
            total += 1
            if after.get(test) != "ok":
                if test in known or test.rsplit(".", 1)[0] in known:
                    met.add(test)
                else:
                    notes.append(f"{test}: {how} outside, {after.get(test, 'missing')} inside")
        report(not notes, f"{module} ends inside as outside, {len(before)} tests",
               None if before else "it does not run outside", notes)
    report(total > 0, f"{total} tests passed outside, {len(met)} known to differ")


def main():
    if not {"1", "compat"} & set(os.environ.get("ASSAY_OPTIN", "").split(",")):
        print("1..0 # SKIP opt-in: ASSAY_OPTIN=compat")
        return
    probe = inside("echo 42")
    if probe.returncode != 0:
        if os.environ.get("ASSAY_BOX_MUST_WORK") == "1":
            sys.exit("boxes must work here: " + probe.stdout.decode(errors="replace"))
        print("1..0 # SKIP no boxes on this host")
        return
    if not pathlib.Path("/usr/lib/python3.11/test/test_os.py").exists():
        print("1..0 # SKIP the package libpython3.11-testsuite is not installed")
        return
    standard_library()
    sys.exit(not all(results))


main()
