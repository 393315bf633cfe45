"""assay-unpack against archives, good and hostile. Prints TAP.

    test_unpack.py ASSAY_UNPACK

Each case is one archive, unpacked into an empty directory that lies beside a canary. Hostile ones
must be refused with the entry's name, and nothing outside the directory may change.
"""
import gzip
import io
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import traceback

PROGRAM = os.path.abspath(sys.argv[1])
BAD, LIMIT = 2, 3
DIR, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
TYPES = (DIR, LINK, HARD, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.BLKTYPE)
CASES = []


def case(function):
    CASES.append(function)
    return function


def tar(*entries, form=tarfile.PAX_FORMAT):
    """Entries are (name, bytes or type) and perhaps fields; a file of one byte cannot be said."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as archive:
        for name, what, *fields in entries:
            info = tarfile.TarInfo(name)
            data = b"" if what in TYPES else what
            info.type = what if what in TYPES else tarfile.REGTYPE
            info.mode = 0o755 if info.type == DIR else 0o644
            for key, value in (fields[0] if fields else {}).items():
                setattr(info, key, value)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Run:
    def __init__(self, data, entries=1000, size=1 << 20):
        self.top = tempfile.mkdtemp(prefix="assay-unpack-")
        self.tree = os.path.join(self.top, "tree")
        os.mkdir(self.tree)
        with open(os.path.join(self.top, "canary"), "w", encoding="ascii") as canary:
            canary.write("untouched")
        blob = os.path.join(self.top, "blob")
        with open(blob, "wb") as out:
            out.write(data)
        done = subprocess.run([PROGRAM, blob, str(entries), str(size)], cwd=self.tree, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        self.status, self.error = done.returncode, done.stderr.decode("utf-8", "replace")
        self.notes = done.stdout.split(b"\0")[:-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with open(os.path.join(self.top, "canary"), encoding="ascii") as canary:
            assert canary.read() == "untouched"
        assert sorted(os.listdir(self.top)) == ["blob", "canary", "tree"]
        for folder, _, _ in os.walk(self.tree):
            os.chmod(folder, 0o700)
        shutil.rmtree(self.top)

    def read(self, name):
        with open(os.path.join(self.tree, name), "rb") as file:
            return file.read()

    def stat(self, name):
        return os.lstat(os.path.join(os.fsencode(self.tree), os.fsencode(name)))


def refused(data, status, *words, **limits):
    with Run(data, **limits) as run:
        assert run.status == status, (run.status, run.error)
        for word in words:
            assert word in run.error, run.error


def accepted(data, **limits):
    run = Run(data, **limits)
    assert run.status == 0, run.error
    return run


@case
def files_directories_and_links_come_out_as_they_went_in():
    data = tar(("./", DIR), ("d", DIR, {"mode": 0o1770, "mtime": 1000}),
               ("d/f", b"data", {"mode": 0o640, "mtime": 1234567890}),
               ("d/l", LINK, {"linkname": "/etc/passwd"}), ("h", HARD, {"linkname": "d/f"}),
               ("d/sub/deep", b"implicit"))
    with accepted(data) as run:
        assert run.read("d/f") == b"data" and run.read("d/sub/deep") == b"implicit"
        assert stat.S_IMODE(run.stat("d/f").st_mode) == 0o640
        assert run.stat("d/f").st_mtime == 1234567890
        assert stat.S_IMODE(run.stat("d").st_mode) == 0o1770 and run.stat("d").st_mtime == 1000
        assert os.readlink(os.path.join(run.tree, "d/l")) == "/etc/passwd"
        assert run.stat("h").st_ino == run.stat("d/f").st_ino
        assert run.notes[-1].startswith(b"D6:12:")


@case
def every_compression_gives_the_same_digest():
    data = tar(("a", b"some text"))
    forms = [data, gzip.compress(data), lzma.compress(data),
             gzip.compress(data[:600]) + gzip.compress(data[600:])]
    if shutil.which("zstd"):
        forms.append(subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE,
                                    check=True).stdout)
    seen = set()
    for form in forms:
        with accepted(form) as run:
            seen.add(run.notes[-1])
    assert len(seen) == 1, seen


@case
def names_stay_byte_for_byte():
    names = ["cafe\u0301", "caf\u00e9", "bad\udcff\udcfe", "new\nline", "x" * 255]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with accepted(tar(*[(name, b"xx") for name in names], form=form)) as run:
            have = {os.fsdecode(name) for name in os.listdir(os.fsencode(run.tree))}
            assert have == set(names), have


@case
def a_leading_slash_means_the_tree():
    with accepted(tar(("/etc/x", b"in the tree"), ("h", HARD, {"linkname": "/etc/x"}))) as run:
        assert run.read("etc/x") == run.read("h") == b"in the tree"


@case
def owners_whiteouts_and_devices_are_reported():
    data = tar(("f", b"xx", {"uid": 7, "gid": 8}), ("big", b"xx", {"uid": 10 ** 7, "gid": 0}),
               ("d/.wh.gone", b""), ("e/.wh..wh..opq", b""), (".wh..wh.plnk", b""),
               ("n", tarfile.CHRTYPE), ("p", tarfile.FIFOTYPE), ("b", tarfile.BLKTYPE))
    with accepted(data) as run:
        assert run.notes[:-1] == [b"U7:8:f", b"U65534:0:big", b"W0:0:d/gone", b"O0:0:e",
                                  b"S0:0:.wh..wh.plnk", b"S0:0:n", b"S0:0:p", b"S0:0:b"], run.notes
        assert sorted(os.listdir(run.tree)) == ["big", "d", "e", "f"]


@case
def set_id_bits_and_file_capabilities_are_dropped():
    pax = {"SCHILY.xattr.security.capability": "x", "SCHILY.xattr.user.kept": "value"}
    with accepted(tar(("s", b"xx", {"mode": 0o6755, "pax_headers": pax}),
                      ("d", DIR, {"mode": 0o2755}))) as run:
        assert stat.S_IMODE(run.stat("s").st_mode) == 0o755
        assert stat.S_IMODE(run.stat("d").st_mode) == 0o755
        assert "security.capability" not in os.listxattr(os.path.join(run.tree, "s"))


@case
def a_directory_may_come_twice_and_closed():
    with accepted(tar(("d", DIR, {"mode": 0}), ("d/f", b"xx"), ("d", DIR, {"mode": 0o500}))) as run:
        assert stat.S_IMODE(run.stat("d").st_mode) == 0o500


@case
def a_missing_last_padding_is_forgiven_a_cut_file_is_not():
    whole = tar(("a", b"x" * 700), ("b", b"y" * 700))
    end = 512 + 1024 + 512 + 700
    with accepted(whole[:end]) as run:
        assert run.read("b") == b"y" * 700
    refused(whole[:end - 1], BAD, 'entry "b"')
    refused(whole[:512 + 100], BAD, 'entry "a"')
    refused(whole[:1536 + 100], BAD, "after 1 entries")


@case
def paths_out_of_the_tree_are_refused():
    for name in ("../canary", "a/../../canary", "a/..", ".."):
        refused(tar((name, b"xx")), BAD, f'entry "{name}"', '".."')
    refused(tar(("l", LINK, {"linkname": ".."}), ("l/canary", b"xx")), BAD, 'entry "l/canary"',
            "symlink")
    refused(tar(("l", LINK, {"linkname": "/"}), ("l/tmp/x", b"xx")), BAD, "symlink")
    refused(tar(("l", LINK, {"linkname": "/etc"}), ("l", DIR)), BAD, 'entry "l/"')
    refused(tar(("l", LINK, {"linkname": "../canary"}), ("l", b"xx")), BAD, "two entries")
    refused(tar(("d/l", LINK, {"linkname": "../.."}), ("d/l/x/y/z", DIR)), BAD, "symlink")


@case
def hard_links_stay_inside():
    for target in ("../canary", "a/../../canary"):
        refused(tar(("h", HARD, {"linkname": target})), BAD, 'entry "h"', '".."')
    refused(tar(("h", HARD, {"linkname": "/etc/passwd"})), BAD, 'entry "h"', "no earlier file")
    refused(tar(("l", LINK, {"linkname": ".."}), ("h", HARD, {"linkname": "l/canary"})), BAD,
            'entry "h"')
    refused(tar(("d", DIR), ("h", HARD, {"linkname": "d"})), BAD, 'entry "h"')
    refused(tar(("h", HARD, {"linkname": "h"})), BAD, 'entry "h"')
    with accepted(tar(("l", LINK, {"linkname": "../canary"}), ("h", HARD, {"linkname": "l"}))) as run:
        assert stat.S_ISLNK(run.stat("h").st_mode)


@case
def nothing_is_written_twice():
    refused(tar(("a", b"one"), ("a", b"two")), BAD, 'entry "a"', "two entries")
    refused(tar(("a", b"one"), ("./a", LINK, {"linkname": "x"})), BAD, 'entry "./a"')
    refused(tar(("a", DIR), ("a", b"two")), BAD, 'entry "a"')
    refused(tar(("a", b"one"), ("a", DIR)), BAD, 'entry "a/"')
    refused(tar(("a", b"one"), ("a/b", b"two")), BAD, 'entry "a/b"', "through a file")


@case
def whiteout_tricks_are_refused():
    for name in (".wh.", ".wh..", ".wh...", "d/.wh.."):
        refused(tar((name, b"")), BAD, f'entry "{name}"')
    refused(tar((".wh.d/f", b"xx")), BAD, 'entry ".wh.d/f"')
    with accepted(tar(("f", b"xx"), ("f/.wh.g", b""))) as run:
        assert run.notes[0] == b"S0:0:f/.wh.g"  # nothing below a file shows anyway
    refused(tar(("l", LINK, {"linkname": ".."}), ("l/.wh.canary", b"")), BAD, "symlink")
    refused(tar(("l", LINK, {"linkname": ".."}), ("l/.wh..wh..opq", b"")), BAD, "symlink")


@case
def attributes_that_mean_something_to_the_kernel_are_refused():
    for name in ("user.overlay.opaque", "user.overlay.redirect", "trusted.overlay.opaque"):
        pax = {"SCHILY.xattr." + name: "y"}
        refused(tar(("d", DIR, {"pax_headers": pax})), BAD, 'entry "d/"', name)
        refused(tar(("f", b"xx", {"pax_headers": pax})), BAD, 'entry "f"', name)
        refused(tar(("l", LINK, {"linkname": "x", "pax_headers": pax})), BAD, 'entry "l"', name)


@case
def sizes_are_limited():
    refused(tar(*[(f"f{i}", b"") for i in range(11)]), LIMIT, 'entry "f10"', "10 entries",
            entries=10)
    refused(tar(("a", b"x" * 600), ("b", b"x" * 600)), LIMIT, 'entry "b"', size=1000)
    refused(tar(("a/" * 300, DIR)), LIMIT, "deeper")
    refused(tar(("a" * 256, b"xx")), LIMIT, "longer than 255")
    refused(tar(("a/" * 10 + "b" * 5000, b"xx")), BAD, "too long")
    refused(tar(("n" * (2 << 20), b"xx")), BAD)  # a name of megabytes in an extended header
    refused(tar(("l", LINK, {"linkname": "t" * 5000})), BAD, 'entry "l"', "too long")
    many = {f"SCHILY.xattr.user.a{i}": "x" for i in range(100)}
    refused(tar(("f", b"xx", {"pax_headers": many})), LIMIT, "attributes")


@case
def bombs_end_at_the_limit():
    refused(gzip.compress(tar(("zeros", b"\0" * (8 << 20)))), LIMIT, 'entry "zeros"')
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "hole",
              "GNU.sparse.realsize": str(1 << 50)}
    refused(tar(("hole", b"1\n0\n0\n".ljust(512, b"\0"), {"pax_headers": sparse})), LIMIT,
            "larger than")
    twice = gzip.compress(gzip.compress(tar(("a", b"xx"))))
    refused(twice, BAD, "more than once")


@case
def rubbish_is_refused():
    for data in (b"", b"not a tar", b"\x1f\x8b\x08garbage", os.urandom(4096), tar(("a", b"xx"))[:300],
                 gzip.compress(tar(("a", b"x" * 9000)))[:60]):
        refused(data, BAD)


def main():
    print(f"1..{len(CASES)}")
    failed = 0
    for number, function in enumerate(CASES, 1):
        try:
            function()
            print(f"ok {number} - {function.__name__}")
        except (AssertionError, OSError, subprocess.SubprocessError):
            failed += 1
            print(f"not ok {number} - {function.__name__}")
            print("# " + traceback.format_exc().replace("\n", "\n# "))
    return failed > 0


sys.exit(main())
