"""What the tests that kill look for: processes below others, boxes, what is left of them."""
import glob
import os
import pathlib
import time


def children_of(pid, depth=99):
    found = []
    for path in glob.glob(f"/proc/{pid}/task/*/children") if depth else []:
        try:
            for child in pathlib.Path(path).read_text().split():
                found += [int(child), *children_of(int(child), depth - 1)]
        except OSError:
            pass
    return found


def comm(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def is_box(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"assay-box")
    except OSError:
        return False


def wait_gone(pids, limit_s=10):
    """Those of `pids` that still live after the time; processes reap at their own pace."""
    end = time.monotonic() + limit_s
    left = pids
    while left and time.monotonic() < end:
        time.sleep(0.02)
        left = [pid for pid in left if os.path.exists(f"/proc/{pid}")]
    return left


def cgroups():
    """All boxes' cgroups; the pid of the owner stands in the name."""
    return set(glob.glob("/sys/fs/cgroup/**/assay-box-*", recursive=True))
