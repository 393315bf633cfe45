"""Boxes under pure cgroup version 2: a guest with a Debian kernel runs the limit suites (opt-in).

Usage: guest.py BUILD_ROOT. Prints TAP. Needs ASSAY_OPTIN=1 (or a list with "guest"),
qemu-system-x86_64, and Debian's kernel and busybox-static packages, which apt-get downloads and
which are unpacked, not installed. ASSAY_GUEST_KERNEL=FILE.deb takes another kernel.
"""
import json
import lzma
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
QEMU = "qemu-system-x86_64"
MEMORY_MIB, CPUS, GUEST_SECONDS = 2048, 2, 1400
MODULES = ["virtio_pci", "virtio_blk", "overlay"]
SUITES = ["limits", "layers", "robust", "egress", "tool", "doctor"]
PROGRAMS = """sh dash bash cat sleep stat head tail touch id mkdir rmdir rm mv ln ls cp chmod chown mkfifo
    yes wc true false sort grep sed cut find env printf echo tty test pwd uname seq tr dd kill ps
    sync mount umount hostname setpriv unshare expr basename dirname readlink mktemp od nproc flock unlink""".split()

# name, group, uid, command: what the guest runs. A group of "-" is the root's.
PROBES = [
    ("root at the root group", "-", 0),
    ("root beside a stranger in a scope", "scope", 0),
    ("a user alone in a delegated group", "fresh", 61234),
    ("a user below a slice of its own", "slice/session", 61234),
    ("a user without delegation", "closed", 61234),
]
BURN = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.1 & sleep 0.1 & wait"


def skip(why):
    print(f"1..0 # SKIP {why}")
    sys.exit(0)


def wanted():
    words = os.environ.get("ASSAY_OPTIN", "").split(",")
    if not {"1", "guest"} & set(words):
        skip("opt-in: ASSAY_OPTIN=guest")
    if shutil.which(QEMU) is None:
        skip(f"{QEMU} is not installed")


def run(*argv, **more):
    return subprocess.run(argv, check=True, capture_output=True, text=True, **more).stdout


def package(name, top):
    """The unpacked files of a Debian package, downloaded once."""
    into = top / name
    if not into.is_dir():
        with tempfile.TemporaryDirectory(dir=top) as tmp:
            run("apt-get", "download", name, cwd=tmp)
            deb = next(pathlib.Path(tmp).glob("*.deb"))
            run("dpkg-deb", "-x", str(deb), str(into))
    return into


def kernel(top):
    given = os.environ.get("ASSAY_GUEST_KERNEL")
    if given:
        into = top / pathlib.Path(given).name
        if not into.is_dir():
            run("dpkg-deb", "-x", given, str(into))
        return into
    text = run("apt-cache", "depends", "linux-image-cloud-amd64")
    return package(re.search(r"Depends: (linux-image-\S+)", text).group(1), top)


def module_files(root):
    """Files of the modules and of what they depend on, in the order they are to be loaded."""
    found = {}
    for path in root.rglob("*.ko*"):
        found[path.name.split(".ko")[0].replace("-", "_")] = path
    order = []

    def add(name):
        name = name.replace("-", "_")
        if name not in found or any(name == n for n, _ in order):
            return  # built in, or there already
        data = found[name].read_bytes()
        if found[name].suffix == ".xz":
            data = lzma.decompress(data)
        for needed in re.search(rb"\0depends=([^\0]*)\0", data).group(1).decode().split(","):
            add(needed)
        if not any(name == n for n, _ in order):
            order.append((name, data))

    for name in MODULES:
        add(name)
    return order


class Cpio:
    """A "newc" archive: everything belongs to root, whoever makes it."""

    def __init__(self):
        self.out, self.made, self.inode = bytearray(), set(), 1

    def entry(self, name, mode, data=b""):
        self.inode += 1
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        self.out += b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
        self.out += b"\0" * (-len(self.out) % 4) + data
        self.out += b"\0" * (-len(self.out) % 4)

    def parents(self, name):
        for parent in list(pathlib.PurePosixPath(name).parents)[-2::-1]:
            if str(parent) not in self.made:
                self.made.add(str(parent))
                self.entry(str(parent), stat.S_IFDIR | 0o755)

    def file(self, name, data, mode=0o755):
        name = name.lstrip("/")
        if name not in self.made:
            self.parents(name)
            self.made.add(name)
            self.entry(name, stat.S_IFREG | mode, data)

    def link(self, name, target):
        name = name.lstrip("/")
        if name not in self.made:
            self.parents(name)
            self.made.add(name)
            self.entry(name, stat.S_IFLNK | 0o777, target.encode())

    def directory(self, name, mode=0o755):
        self.parents(name + "/x")

    def finish(self):
        self.entry("TRAILER!!!", 0)
        return bytes(self.out)


def libraries(path):
    done = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
    return re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, flags=re.M)


def add_program(cpio, source, target):
    cpio.file(target, pathlib.Path(source).read_bytes())
    for library in libraries(source):
        real = "/usr" + library if library.startswith("/lib") else library
        cpio.file(real, pathlib.Path(library).read_bytes())


def plan_text():
    """What init.sh runs: probes in every kind of group, then the suites."""
    lines = []
    for name, group, uid in PROBES:
        slug = name.replace(" ", "_")
        tool = "/t/box-tool run --json --mem 64M --cpus 0.9 --cpu-weight 50 --"
        lines.append(f"run probe:{slug} {group} {uid} {tool} sh -c '{BURN}'")
        lines.append(f"run oom:{slug} {group} {uid} {tool} /payload hog private 200"
                     .replace("--mem", "--file /t/payload:/payload --mem"))
    lines.append("run doctor:root - 0 /t/box-tool probe")
    for suite in SUITES:
        lines.append(f"run suite:{suite}:root - 0 /t/test_sandbox_{suite} -k")
        lines.append(f"run suite:{suite}:user fresh 0 /t/test_sandbox_{suite} -k --as-user")
    return "\n".join(lines) + "\n"


def root_archive(build, busybox, modules):
    cpio = Cpio()
    for name in ("proc", "sys", "dev", "tmp", "run", "root", "new", "var", "var/tmp", "home", "opt", "usr/local/bin",
                 "usr/local/lib"):
        cpio.directory(name)
    for name in ("bin", "sbin", "lib", "lib64"):
        cpio.link(name, f"usr/{name}")
    cpio.file("usr/bin/busybox", (busybox / "bin/busybox").read_bytes())
    for program in PROGRAMS:
        path = shutil.which(program)
        if path is None:
            raise SystemExit(f"this machine has no {program}")
        add_program(cpio, path, f"usr/bin/{program}")
    for mke2fs in ("/sbin/mke2fs",):
        add_program(cpio, mke2fs, "usr/sbin/mke2fs")
    for name in ["payload"] + [f"test_sandbox_{suite}" for suite in SUITES]:
        add_program(cpio, build / "tests/sandbox" / name, f"t/{name}")
    for name in ("assay-box", "assay-egress", "box-tool"):
        add_program(cpio, build / "sandbox" / name, f"t/{name}")
    for i, (name, data) in enumerate(modules):
        cpio.file(f"modules/{i:02}-{name}.ko", data)
    cpio.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:61234:61234::/:/bin/sh\n", 0o644)
    cpio.file("etc/group", b"root:x:0:\nuser:x:61234:\n", 0o644)
    cpio.file("t/plan", plan_text().encode(), 0o644)
    cpio.file("t/init", (HERE / "init.sh").read_bytes())
    cpio.file("init", (HERE / "first.sh").read_bytes())
    return cpio.finish()


def boot(kernel_image, archive, work, serial):
    """The serial line's text. A box needs a root that is no initramfs, so a disk takes a copy."""
    (work / "initrd").write_bytes(archive)
    with open(work / "disk", "wb") as disk:
        disk.truncate(1 << 30)
    argv = [QEMU, "-accel", "tcg", "-cpu", "max", "-smp", str(CPUS), "-m", str(MEMORY_MIB),
            "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", str(kernel_image), "-initrd", str(work / "initrd"),
            "-drive", f"file={work / 'disk'},if=virtio,format=raw,cache=unsafe",
            "-append", "console=ttyS0 loglevel=0 panic=-1 cgroup_no_v1=all"]
    with open(serial, "wb") as out:
        try:
            subprocess.run(["nice", "-n", "10"] + argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                           timeout=GUEST_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            print(f"# the guest was ended after {GUEST_SECONDS} s")
    return serial.read_text(errors="replace").replace("\r", "")


class Tap:
    def __init__(self):
        self.n = self.failed = 0

    def say(self, ok, name, why="", skipped=""):
        self.n += 1
        self.failed += not ok
        print(f"{'ok' if ok else 'not ok'} {self.n} - {name}{' # SKIP ' + skipped if skipped else ''}")
        for line in why.splitlines() if not ok else []:
            print("#", line)


def sections(text):
    """name -> (status, text) of what each `run` said."""
    found = {}
    for match in re.finditer(r"^@@ begin (\S+)\n(.*?)(?:^@@ end \1 (\d+)$|\Z)", text, flags=re.M | re.S):
        found[match[1]] = (int(match[3]) if match[3] else -1, match[2])
    return found


def object_in(found, name):
    """The JSON line of a section; the kernel may have spoken in between."""
    said = found.get(name, (-1, ""))[1]
    return next((line for line in said.split("\n") if line.startswith("{")), said)


def check_probe(tap, found, name):
    slug = name.replace(" ", "_")
    said, killed = object_in(found, f"probe:{slug}"), object_in(found, f"oom:{slug}")
    try:
        ran, oom = json.loads(said), json.loads(killed)
    except ValueError:
        tap.say(False, f"{name}: boxes run", said + killed)
        return
    limits = ran["box"]["limits"]
    if name == "a user without delegation":
        why = [m["why"] for m in ran["box"]["missing"] if m["layer"] == "cgroup"]
        tap.say(limits["memory"] == "sampler" and limits["pids"] == "rlimit" and bool(why),
                f"{name}: limits are held otherwise, and the report says why: {why}", said)
        tap.say(oom["outcome"] == "out_of_memory" and oom["mem_by"] == "sampler",
                f"{name}: a hog is ended by the sampler", killed)
        return
    by = {key: limits[key] for key in ("memory", "swap", "pids", "cpu_milli", "cpu_weight")}
    tap.say(set(by.values()) == {"cgroup2"}, f"{name}: version 2 holds every limit", json.dumps(by) + said)
    tap.say("cgroup" in ran["box"]["layers"] and ran["mem_by"] == ran["cpu_by"] == "cgroup2"
            and ran["cpu_user_us"] > 0 and ran["pids_peak"] >= 3 and 0 < ran["mem_peak_bytes"] < 64 << 20,
            f"{name}: memory.peak, cpu.stat and pids.peak count", said)
    tap.say(oom["outcome"] == "out_of_memory" and oom["oom_kills"] >= 1
            and 32 << 20 < oom["mem_peak_bytes"] <= 64 << 20, f"{name}: a hog is killed by memory.max", killed)


def check_doctor(tap, found):
    try:
        rows = {row["id"]: row for row in json.loads(object_in(found, "doctor:root"))["checks"]}
    except (KeyError, ValueError):
        tap.say(False, "the doctor reports", str(found.get("doctor:root")))
        return
    for key in ("box", "cgroup_memory", "cgroup_pids", "cgroup_cpu", "cgroup_kill", "memory_peak", "clone_into"):
        tap.say(rows[key]["status"] == "ok", f"doctor: {key}: {rows[key]['detail']}", json.dumps(rows[key]))
    for row in rows.values():
        if row["status"] != "ok":
            print(f"# doctor {row['status']} {row['id']}: {row['detail']}; {row['fix']}")


def check_suite(tap, found, suite, who):
    status, said = found.get(f"suite:{suite}:{who}", (-1, "it did not run"))
    for match in re.finditer(r"^(ok|not ok) \d+ (\S+)(.*)$", said, flags=re.M):
        skipped = re.search(r"# SKIP (.*)", match[3])
        tap.say(match[1] == "ok", f"{who}: {match[2]}", match[3], skipped[1] if skipped else "")
    tap.say(status == 0, f"{who}: suite {suite} ends well", said[-2000:])


def main():
    wanted()
    build = pathlib.Path(sys.argv[1])
    top = build / "guest"
    top.mkdir(exist_ok=True)
    try:
        linux, busybox = kernel(top), package("busybox-static", top)
    except (subprocess.CalledProcessError, AttributeError) as error:
        skip(f"no kernel package: {getattr(error, 'stderr', error)}".replace("\n", " "))
    archive = root_archive(build, busybox, module_files(linux))
    with tempfile.TemporaryDirectory(dir=top) as work:
        text = boot(next(linux.glob("boot/vmlinuz-*")), archive, pathlib.Path(work), top / "serial.log")
    found, tap = sections(text), Tap()
    print("#", *re.findall(r"^@@ kernel (.*)$", text, flags=re.M))
    for name, _, _ in PROBES:
        check_probe(tap, found, name)
    check_doctor(tap, found)
    for suite in SUITES:
        for who in ("root", "user"):
            check_suite(tap, found, suite, who)
    tap.say("@@ leftovers 0" in text, "no group of a slot is left", text[-1500:])
    print(f"1..{tap.n}")
    return tap.failed > 0


sys.exit(main())
