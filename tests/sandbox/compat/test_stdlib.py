"""CPython's own tests inside a box: each ends as it does outside.

    test_stdlib.py BOX_TOOL [MODULE ...]        prints TAP; opt-in: ASSAY_OPTIN=compat
"""
import pathlib
import re
import sys

from sides import Report, Sides, wanted

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


def outcomes(text):
    """Test id -> how it ended, from unittest's verbose lines: what a test prints may come between."""
    ended, last = {}, None
    for line in text.splitlines():
        start = re.match(r"(test\w*|runTest) \(([\w.]+)\)", line)
        if start:
            last = start.group(2)
            last = last if last.endswith("." + start.group(1)) else f"{last}.{start.group(1)}"
        end = re.search(r"(?:\.\.\. |^)(ok|FAIL|ERROR|skipped|expected failure|unexpected success)(?: '.*)?$", line)
        if end and last:
            ended[last.removeprefix("test.")] = end.group(1)
            last = None
    return ended


def main():
    sides = Sides(sys.argv[1])
    why = wanted() or sides.why_no_boxes()
    if why is None and not pathlib.Path("/usr/lib/python3.11/test/test_os.py").exists():
        why = "the package libpython3.11-testsuite is not installed"
    if why:
        print("1..0 # SKIP", why)
        return 0
    report = Report()
    for module in sys.argv[2:] or MODULES:
        report.compare(module, sides, f"/usr/bin/python3 -m test -v --timeout 100 {module}", outcomes)
    return report.end()


sys.exit(main())
