"""Images at the limit of 10^6 entries, as it stands and not a lowered one. Opt-in; prints TAP.

    test_image_limit.py ASSAY LIBEXEC           ASSAY_OPTIN=1 or ASSAY_OPTIN=limits
"""
import gzip
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

ASSAY, LIBEXEC = sys.argv[1:3]
LIMIT = 1_000_000
PER_DIR = 1000
TOO_MUCH = 6  # the exit status of a limit


def archive(path, entries):
    """That many entries: directories, and empty files in them. The last is named "last"."""
    with gzip.open(path, "wb", compresslevel=1) as out:
        for number in range(entries - 1):
            folder, file = divmod(number, PER_DIR)
            info = tarfile.TarInfo(f"d{folder}" if file == 0 else f"d{folder}/f{file}")
            info.type = tarfile.DIRTYPE if file == 0 else tarfile.REGTYPE
            info.mode = 0o755
            out.write(info.tobuf(tarfile.USTAR_FORMAT))
        out.write(tarfile.TarInfo("last").tobuf(tarfile.USTAR_FORMAT) + bytes(1024))


def run(top, *words):
    environ = {"PATH": os.environ["PATH"], "HOME": str(top), "ASSAY_STATE": str(top / "state"),
               "ASSAY_LIBEXEC": LIBEXEC}
    return subprocess.run([ASSAY, *map(str, words)], env=environ, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=900)


def below(folder):
    """How many entries there are."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))


def one_too_many(top):
    archive(top / "many.tar.gz", LIMIT + 1)
    done = run(top, "image", "import", top / "many.tar.gz", "t/many:1")
    assert done.returncode == TOO_MUCH, (done.returncode, done.stderr)
    assert 'entry "last": more than 1000000 entries' in done.stderr, done.stderr
    left = [path for name in ("layers", "names", "tmp") for path in (top / "state/images" / name).iterdir()]
    assert not left, left


def exactly_so_many(top):
    archive(top / "most.tar.gz", LIMIT)
    done = run(top, "image", "import", top / "most.tar.gz", "t/most:1")
    assert done.returncode == 0, done.stderr
    (layer,) = (top / "state/images/layers").iterdir()
    assert below(layer / "upper") == LIMIT
    done = run(top, "box", "run", "--image", "t/most:1", "--mount", "/bin:/mnt", "--", "/none")
    assert done.returncode == 127, done.stderr  # there is a box, and no program in it
    done = run(top, "image", "rm", "t/most:1")
    assert done.returncode == 0 and "1 layer" in done.stdout, (done.stdout, done.stderr)
    assert not list((top / "state/images/layers").iterdir())


CASES = {"an archive of one entry more than the limit is refused with that entry's name": one_too_many,
         "an archive of as many entries as the limit becomes an image, and is removed": exactly_so_many}


def main():
    top = pathlib.Path(tempfile.mkdtemp(prefix="assay-limit-"))
    why = None if {"1", "limits"} & set(os.environ.get("ASSAY_OPTIN", "").split(",")) \
        else "opt-in: ASSAY_OPTIN=limits"
    if why is None and run(top, "box", "run", "--", "/bin/true").returncode != 0:
        why = "no boxes on this host"
    failed = 0
    print("1..0 # SKIP " + why if why else f"1..{len(CASES)}")
    for number, (name, case) in enumerate(() if why else CASES.items(), 1):
        try:
            case(top)
            print(f"ok {number} - {name}", flush=True)
        except AssertionError as error:
            failed += 1
            print(f"not ok {number} - {name}\n# {error}", flush=True)
    shutil.rmtree(top)
    return int(failed > 0)


sys.exit(main())
