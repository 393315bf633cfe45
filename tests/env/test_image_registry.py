"""Pulls from a real registry, compared with what umoci unpacks. Opt-in; prints TAP.

    test_image_registry.py ASSAY LIBEXEC

Debian's docker-registry runs on a loopback port, filled by umoci and skopeo. Runs as root, with
ASSAY_OPTIN=1 or ASSAY_OPTIN=registry.
"""
import json
import os
import pathlib
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time

ASSAY, LIBEXEC = sys.argv[1:3]
STORE_ID = 0x78000000
TOOLS = ("docker-registry", "skopeo", "umoci")


def why_skip():
    wanted = os.environ.get("ASSAY_OPTIN", "").split(",")
    if "1" not in wanted and "registry" not in wanted:
        return "opt-in: ASSAY_OPTIN=registry"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return "not installed: " + " ".join(missing)
    return "umoci needs root to keep owners" if os.geteuid() != 0 else None


def call(*words, **options):
    done = subprocess.run(list(map(str, words)), check=False, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.PIPE, timeout=200, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{words}: {done.stdout}{done.stderr}")
    return done.stdout


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def registry_start(top, port):
    config = top / "registry.yml"
    config.write_text(f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: 127.0.0.1:{port}}}\n"
                      f"storage: {{filesystem: {{rootdirectory: {top}/registry}}}}\n")
    with open(top / "registry.log", "wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    raise RuntimeError("docker-registry does not listen")


def image_make(top):
    """Three layers: a tree of many kinds, changes and deletions in it, an opaque directory."""
    layout = top / "layout"
    call("umoci", "init", "--layout", layout)
    call("umoci", "new", "--image", f"{layout}:a")
    bundle = top / "bundle"
    call("umoci", "unpack", "--image", f"{layout}:a", bundle)
    root = bundle / "rootfs"
    shutil.copytree("/usr/share/doc", root / "usr/share/doc", symlinks=True,
                    ignore=lambda _, names: names[200:])
    for name in ("bin", "etc", "var/lib/x", "home/u", "opt/many/levels/deep"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/true", root / "bin/busybox")
    (root / "etc/a").write_text("lower")
    (root / "etc/gone").write_text("gone soon")
    (root / "var/lib/x/file").write_text("x")
    (root / "home/u/f").write_text("mine")
    os.chown(root / "home/u/f", 1000, 1001)
    os.chown(root / "home/u", 1000, 1001)
    os.chmod(root / "home/u", 0o700)
    os.link(root / "home/u/f", root / "home/u/again")
    os.symlink("../etc/a", root / "opt/link")
    os.setxattr(root / "etc/a", "user.note", b"kept")
    call("umoci", "repack", "--image", f"{layout}:a", bundle)
    shutil.rmtree(bundle)
    call("umoci", "unpack", "--image", f"{layout}:a", bundle)
    (root / "etc/a").write_text("upper")
    (root / "etc/gone").unlink()
    shutil.rmtree(root / "opt/many")
    (root / "opt/many").write_text("a file now")
    call("umoci", "repack", "--image", f"{layout}:a", bundle)
    (top / "x2").mkdir()
    (top / "x2" / "new").write_text("new")
    call("umoci", "insert", "--opaque", "--image", f"{layout}:a", top / "x2", "var/lib/x")
    call("umoci", "config", "--image", f"{layout}:a", "--config.env", "WORD=here")
    return layout


def entry_of(path, shift):
    info = os.lstat(path)
    kind = stat.S_IFMT(info.st_mode)
    owner = (info.st_uid - shift, info.st_gid - shift)
    if stat.S_ISLNK(info.st_mode):
        return kind, owner, os.readlink(path)
    what = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
    notes = sorted((name, os.getxattr(path, name)) for name in os.listxattr(path)
                   if name.startswith("user.") and not name.startswith(("user.overlay.", "user.rootlesscontainers")))
    return kind, owner, stat.S_IMODE(info.st_mode) & 0o1777, int(info.st_mtime) \
        if stat.S_ISREG(info.st_mode) else 0, what, notes


def tree_of(root, shift):
    entries = {}
    for folder, dirs, files in os.walk(root):
        for name in dirs + files:
            path = pathlib.Path(folder, name)
            entries[str(path.relative_to(root))] = entry_of(path, shift)
    return entries


def merged_tree(images, layers, top):
    """The layers under an overlay, mounted in a mount namespace that ends with its reader."""
    lower = ":".join(str(images / "layers" / digest.replace(":", "-") / "upper")
                     for digest in reversed(layers))
    mount, out = top / "mount", top / "copy"
    mount.mkdir()
    script = f'mount -t overlay overlay -o ro,userxattr,lowerdir="$1" {mount} && cp -a {mount} {out}'
    call("unshare", "-m", "sh", "-c", script, "sh", lower)
    return tree_of(out, STORE_ID)


def compare(top, port):
    layout = image_make(top)
    ref = f"127.0.0.1:{port}/test/image:1"
    call("skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", f"oci:{layout}:a",
         f"docker://{ref}")
    environ = {"PATH": os.environ["PATH"], "HOME": str(top), "ASSAY_STATE": str(top / "state"),
               "ASSAY_LIBEXEC": LIBEXEC}
    pulled = json.loads(call(ASSAY, "image", "pull", ref, "--json", env=environ))
    bundle = top / "oracle"
    call("umoci", "unpack", "--image", f"{layout}:a", bundle)
    want = tree_of(bundle / "rootfs", 0)
    have = merged_tree(top / "state" / "images", [row["digest"] for row in pulled["layers"]], top)
    differ = sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))
    for name in differ[:10]:
        print("#", name, str(want.get(name))[:200], str(have.get(name))[:200])
    print(f"# {len(want)} entries, {len(pulled['layers'])} layers")
    return not differ and len(want) > 100


def main():
    reason = why_skip()
    if reason:
        print(f"1..0 # SKIP {reason}")
        return 0
    top = pathlib.Path(tempfile.mkdtemp(prefix="assay-registry-"))
    process = None
    print("1..1")
    try:
        port = free_port()
        process = registry_start(top, port)
        good = compare(top, port)
    finally:
        if process is not None:
            process.terminate()
            process.wait()
        shutil.rmtree(top, ignore_errors=True)
    print(f"{'ok' if good else 'not ok'} 1 - a pulled tree equals what umoci unpacks, entry by entry")
    return not good


sys.exit(main())
