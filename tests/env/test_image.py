"""assay image over a loopback registry and local archives, to a box and a grade. Prints TAP.

    test_image.py ASSAY LIBEXEC [--as-user] [WORD ...]        WORD selects cases by name

The registry is a stub in this process that can misbehave; no other network is used. Where boxes
are refused every case is a skip, unless ASSAY_BOX_MUST_WORK=1.
"""
import atexit
import base64
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback

ASSAY, LIBEXEC = sys.argv[1:3]
AS_USER = "--as-user" in sys.argv
WORDS = [word for word in sys.argv[3:] if not word.startswith("--")]
USER_ID = 61234
WHO = {"user": USER_ID, "group": USER_ID, "extra_groups": []} if AS_USER else {}
DIR, LINK = tarfile.DIRTYPE, tarfile.SYMTYPE
CASES = []


def case(function):
    CASES.append(function)
    return function


def sha(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar(entries):
    """{name: bytes, or DIR, or (LINK, target)} as a tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, what in entries.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            data = b""
            if what == DIR:
                info.type = DIR
            elif isinstance(what, tuple):
                info.type, info.linkname = what
            else:
                data = what
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def program_files(*programs):
    """Those host programs and the libraries they load, as entries."""
    entries = {}
    for program in programs:
        path = shutil.which(program)
        entries["bin/" + program] = pathlib.Path(path).read_bytes()
        listed = subprocess.run(["ldd", path], stdout=subprocess.PIPE, text=True, check=False).stdout
        for word in listed.split():
            if word.startswith("/"):
                entries[word[1:]] = pathlib.Path(word).read_bytes()
    return entries


@functools.cache
def pack(layer):
    return gzip.compress(layer, compresslevel=1, mtime=0)


class Image:
    """Layers, configuration and manifest, as blobs by digest."""

    def __init__(self, *layers, config=None):
        self.blobs, self.layers, ids = {}, [], []
        for layer in layers:
            packed = pack(layer)
            self.blobs[sha(packed)] = packed
            self.layers.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                                "digest": sha(packed), "size": len(packed)})
            ids.append(sha(layer))
        self.config = json.dumps({"os": "linux", "architecture": "amd64", "config": config or {},
                                  "rootfs": {"type": "layers", "diff_ids": ids}}).encode()
        self.blobs[sha(self.config)] = self.config
        self.manifest = json.dumps(
            {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
             "config": {"digest": sha(self.config), "size": len(self.config)},
             "layers": self.layers}).encode()
        self.blobs[sha(self.manifest)] = self.manifest

    def index(self):
        return json.dumps({"schemaVersion": 2, "manifests": [
            {"digest": "sha256:" + "0" * 64, "size": 1,
             "platform": {"os": "linux", "architecture": "s390x"}},
            {"digest": sha(self.manifest), "size": len(self.manifest),
             "annotations": {"org.opencontainers.image.ref.name": "1"},
             "platform": {"os": "linux", "architecture": HOST_ARCH}}]}).encode()

    def layout(self, folder):
        blobs = folder / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for digest, data in self.blobs.items():
            (blobs / digest[7:]).write_bytes(data)
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (folder / "index.json").write_bytes(self.index())
        return folder


HOST_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


class Handler(http.server.BaseHTTPRequestHandler):
    """A registry, with faults by name (self.server.faults) that are used up one by one."""
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fault(self, name):
        left = self.server.faults.get(name, 0)
        self.server.faults[name] = left - 1
        return left > 0

    def do_GET(self):  # pylint: disable=invalid-name
        server = self.server
        server.seen.append((self.path, dict(self.headers)))
        given = self.headers.get("Authorization")
        if self.path.startswith("/token"):
            if server.basic and given != server.basic:
                return self.answer(401, b"{}")
            return self.answer(200, b'{"token":"secret-token"}')
        if self.path.startswith("/storage/"):
            return self.blob(self.path.rsplit("/", 1)[1])
        if server.needs_token and given != "Bearer secret-token":
            realm = f'Bearer realm="http://127.0.0.1:{server.server_port}/token",service="stub",' \
                    'scope="repository:t/img:pull"'
            return self.answer(401, b"{}", WWW_Authenticate=realm)
        if self.fault("busy"):
            return self.answer(429, b"{}", Retry_After="1")
        kind, what = self.path.split("/")[-2:]
        if kind == "manifests":
            return self.send_manifest(what)
        if server.storage:
            return self.answer(307, Location=f"http://127.0.0.1:{server.storage}/storage/{what}")
        return self.blob(what)

    def send_manifest(self, what):
        image = self.server.image
        body = image.blobs.get(what) or (image.index() if what == "1" else None)
        if body is None:
            return self.answer(404, b'{"errors":[{"code":"X","message":"manifest unknown"}]}')
        digest = "sha256:" + "1" * 64 if self.fault("manifest_digest") else sha(body)
        return self.answer(200, body, Docker_Content_Digest=digest)

    def blob(self, digest):
        body = self.server.image.blobs[digest]
        start = self.headers.get("Range")
        if digest == sha(self.server.image.config):
            return self.answer(200, body)
        if self.fault("wrong_bytes"):
            body = bytes([body[0] ^ 1]) + body[1:]
        if self.fault("too_long"):
            body += b"x"
        if self.fault("too_short"):
            body = body[:-1]
        if start and not self.fault("no_range"):
            at = int(start.split("=")[1].rstrip("-"))
            return self.answer(206, body[at:], Content_Range=f"bytes {at}-{len(body) - 1}/{len(body)}")
        if self.fault("cut"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            return self.connection.close()
        if self.fault("stall"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:10])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.go_on.wait(20)
            return None
        return self.answer(200, body)


class Registry:
    def __init__(self, image, **faults):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.image, self.server.faults, self.server.seen = image, faults, []
        self.server.needs_token, self.server.storage, self.server.basic = False, 0, None
        self.server.stalled, self.server.go_on = threading.Event(), threading.Event()
        self.ref = f"127.0.0.1:{self.server.server_port}/t/img:1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.go_on.set()
        self.server.shutdown()
        self.server.server_close()


class Place:
    """A state directory of its own."""

    def __init__(self):
        self.top = pathlib.Path(tempfile.mkdtemp(prefix="assay-image-"))
        if AS_USER:
            os.chown(self.top, USER_ID, USER_ID)
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(self.top), "NO_COLOR": "1",
                        "ASSAY_STATE": str(self.top / "state"), "ASSAY_LIBEXEC": LIBEXEC}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["chmod", "-R", "u+rwX", str(self.top)], check=False)
        shutil.rmtree(self.top)

    def run(self, *words, status=0):
        done = subprocess.run([ASSAY, *map(str, words)], env=self.environ, text=True, check=False, **WHO,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100)
        assert done.returncode == status, (words, done.returncode, done.stdout, done.stderr)
        self.error = done.stderr
        return done.stdout

    def rows(self, *words):
        return [json.loads(line) for line in self.run(*words, "--json").splitlines()]

    def left(self):
        images = self.top / "state" / "images"
        return sorted(str(path.relative_to(images)) for name in ("layers", "names", "tmp")
                      for path in (images / name).iterdir())

    def refused(self, *words, status, said):
        self.run(*words, status=status)
        assert said in self.error, self.error
        assert not self.left(), self.left()


BASE = tar({"etc": DIR, "usr": DIR, "bin": DIR, "tmp": DIR} | program_files("sh", "cat", "ls", "id")
           | {"etc/a": b"lower", "etc/gone": b"x", "d/x": b"lower", "d/y": b"lower",
              "sub/old": b"x"})
TOP = tar({"etc/a": b"upper", "etc/.wh.gone": b"", "d/.wh..wh..opq": b"", "d/z": b"upper",
           ".wh.sub": b"", "sub/new": b"new"})
SAMPLE = Image(BASE, TOP, config={"Env": ["PATH=/bin", "WORD=from the image"], "WorkingDir": "/d",
                                  "Cmd": ["/bin/sh", "-c", "echo $WORD; pwd"]})


def shows(place, ref):
    out = place.run("box", "run", "--image", ref, "--", "/bin/sh", "-c",
                    "cat /etc/a; echo; ls /d /sub; ls /etc/gone 2>/dev/null || echo gone; echo $WORD")
    assert out == "upper\n/d:\nz\n\n/sub:\nnew\ngone\nfrom the image\n", out


@case
def an_oci_layout_becomes_the_root_of_a_box():
    with Place() as place:
        layout = SAMPLE.layout(place.top / "layout")
        assert place.run("image", "import", layout, "my/img:1") == "docker.io/my/img:1\n"
        shows(place, "my/img:1")
        assert place.run("box", "run", "--image", "my/img:1") == "from the image\n/d\n"
        place.run("image", "verify", "my/img:1")
        with tarfile.open(place.top / "layout.tar", "w") as archive:
            archive.add(layout, ".")
        place.run("image", "import", place.top / "layout.tar", "my/again:1")
        first, second = place.rows("image", "ls")
        assert first["id"] == second["id"] == sha(SAMPLE.config)
        assert len([name for name in place.left() if name.startswith("layers/")]) == 2
        assert {row["shared_bytes"] for row in place.rows("image", "du")} == {first["bytes"]}
        place.run("image", "rm", "my/img:1")
        shows(place, "my/again:1")
        assert "2 layers" in place.run("image", "rm", "my/again:1")
        assert place.left() == []
        place.run("box", "run", "--image", "my/again:1", "--", "/bin/sh", status=125)


@case
def docker_archives_of_both_forms_are_read():
    with Place() as place:
        config = hashlib.sha256(SAMPLE.config).hexdigest() + ".json"
        for form, names in (("old", ["1/layer.tar", "2/layer.tar"]),
                            ("new", ["blobs/sha256/one", "blobs/sha256/two"])):
            entries = {config: SAMPLE.config, names[0]: BASE, names[1]: TOP}
            manifest = [{"Config": config, "RepoTags": [f"saved/{form}:7"], "Layers": names}]
            entries["manifest.json"] = json.dumps(manifest).encode()
            if form == "new":
                entries |= {"oci-layout": b"{}", "index.json": SAMPLE.index()}
            else:
                entries["2/layer.tar"] = (LINK, "../real.tar")
                entries["real.tar"] = TOP
            (place.top / form).write_bytes(tar(entries))
            assert place.run("image", "import", place.top / form) == f"docker.io/saved/{form}:7\n"
            shows(place, f"saved/{form}:7")


@case
def a_tar_of_a_root_file_system_is_an_image():
    with Place() as place:
        (place.top / "My_Root.tar.gz").write_bytes(gzip.compress(BASE))
        assert place.run("image", "import", place.top / "My_Root.tar.gz") == \
            "docker.io/library/my_root:latest\n"
        row, = place.rows("image", "ls")
        assert row["id"] == sha(BASE) == row["layers"][0]["digest"]
        assert place.run("box", "run", "--image", "my_root", "--", "/bin/cat", "/etc/a") == "lower"


@case
def what_a_layout_says_is_checked():
    with Place() as place:
        broken = Image(BASE, config={})
        folder = broken.layout(place.top / "a")
        (folder / "blobs" / "sha256" / broken.layers[0]["digest"][7:]).write_bytes(b"other")
        place.refused("image", "import", folder, status=2, said=broken.layers[0]["digest"])
        wrong = Image(BASE)
        lying = json.loads(wrong.config)
        lying["rootfs"]["diff_ids"] = ["sha256:" + "2" * 64]
        entries = {"c.json": json.dumps(lying).encode(), "l.tar": BASE, "manifest.json": json.dumps(
            [{"Config": "c.json", "RepoTags": None, "Layers": ["l.tar"]}]).encode()}
        (place.top / "lying.tar").write_bytes(tar(entries))
        place.refused("image", "import", place.top / "lying.tar", status=2, said="uncompressed digest")
        for path in ("../../../etc/passwd", "l", "d"):
            evil = {"c.json": wrong.config, "l": (LINK, "/etc/passwd"), "d": DIR,
                    "manifest.json": json.dumps([{"Config": path, "Layers": [path]}]).encode()}
            (place.top / "evil.tar").write_bytes(tar(evil))
            place.run("image", "import", place.top / "evil.tar",
                      status=2 if path == "d" else 1)
            assert not place.left()
        (place.top / "up.tar").write_bytes(tar({"../x": b"data"}))
        place.refused("image", "import", place.top / "up.tar", status=2, said='entry "../x"')


@case
def a_pull_takes_tokens_waits_and_follows_redirects_without_them():
    with Place() as place, Registry(SAMPLE, busy=1) as registry, Registry(SAMPLE) as storage:
        registry.server.needs_token, registry.server.storage = True, storage.server.server_port
        place.run("image", "pull", registry.ref)
        shows(place, registry.ref)
        tokens = [path for path, _ in registry.server.seen if path.startswith("/token")]
        assert tokens == ["/token?service=stub&scope=repository%3At%2Fimg%3Apull"], tokens
        assert len(storage.server.seen) == 3
        assert all("Authorization" not in headers for _, headers in storage.server.seen)
        before = len(storage.server.seen)
        place.run("image", "pull", registry.ref)
        assert len(storage.server.seen) == before + 1, "layers that are there are not fetched"


@case
def credentials_go_to_the_token_server_only():
    with Place() as place, Registry(SAMPLE) as registry:
        registry.server.needs_token = True
        pair = base64.b64encode(b"user:pass word").decode()
        registry.server.basic = "Basic " + pair
        place.refused("image", "pull", registry.ref, status=4, said="--auth")
        host = registry.ref.split("/")[0]
        config = place.top / "config.json"
        config.write_text(json.dumps({"auths": {host: {"auth": pair}}}))
        registry.server.seen.clear()
        place.run("image", "pull", registry.ref, "--auth", config)
        for path, headers in registry.server.seen:
            given = headers.get("Authorization", "")
            assert given.startswith("Basic") == path.startswith("/token"), (path, given)


def helper_said(place, status, said):
    """A credential helper that notes what it is asked, and says this."""
    program = place.top / "bin" / "docker-credential-desk"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{{ echo \"$@\"; cat; }} > {place.top}/asked\n"
                       f"cat {place.top}/said\nexit {status}\n")
    program.chmod(0o755)
    (place.top / "said").write_text(said if isinstance(said, str) else json.dumps(said))


@case
def credential_helpers_are_asked():
    with Place() as place, Registry(SAMPLE) as registry:
        registry.server.needs_token = True
        registry.server.basic = "Basic " + base64.b64encode(b"user:pass word").decode()
        host, config = registry.ref.split("/")[0], place.top / "config.json"
        good = {"ServerURL": host, "Username": "user", "Secret": "pass word"}
        place.environ["PATH"] = f"{place.top}/bin:" + os.environ["PATH"]
        for settings in {"credsStore": "desk"}, {"credHelpers": {host: "desk"}, "credsStore": "none"}:
            config.write_text(json.dumps(settings | {"auths": {host: {}}}))
            helper_said(place, 0, good)
            place.run("image", "pull", registry.ref, "--auth", config)
            assert (place.top / "asked").read_text() == f"get\n{host}", (place.top / "asked").read_text()
            place.run("image", "rm", registry.ref)
        none = "desk: it gives no credentials"
        for ends, answer, said, status in (
                (1, "credentials not found in keychain\n", "desk: credentials not found in keychain;", 4),
                (1, good, none, 4), (0, "{", none, 4), (0, "", none, 4), (0, {"Username": "user"}, none, 4),
                (0, good | {"Secret": "other"}, "--auth", 4),
                (0, good | {"Username": "<token>"}, "identity tokens", 5)):
            helper_said(place, ends, answer)
            place.refused("image", "pull", registry.ref, "--auth", config, said=said, status=status)
        for name, said, status in (("none", "docker-credential-none: ", 4),
                                   ("../x", "no name of a credential helper", 2)):
            config.write_text(json.dumps({"credsStore": name}))
            place.refused("image", "pull", registry.ref, "--auth", config, said=said, status=status)
        registry.server.needs_token = False
        config.write_text(json.dumps({"credsStore": "none"}))
        place.run("image", "pull", registry.ref, "--auth", config)  # a public image needs no helper


def user_layers():
    """Trees that say who is who, and what upper layers can do to that."""
    base = tar({"etc": DIR, "bin": DIR, "usr": DIR} | program_files("sh", "id") | {
        "etc/passwd": b"root:x:0:0::/:/bin/sh\napp:x:7:8::/:/bin/sh\nbroken\nhuge:x:99999999999:8::/:\n",
        "etc/group": b"staff:x:50:app\n"})
    return {"plain": (base,), "gone": (base, tar({"etc/.wh.passwd": b""})),
            "opaque": (base, tar({"etc/.wh..wh..opq": b"", "etc/group": b"staff:x:51:\n"})),
            "link": (base, tar({"etc/passwd": (LINK, "/etc/group")}))}


@case
def a_box_runs_as_the_images_user():
    layers = user_layers()
    with Place() as place:
        for number, (tree, user, ids) in enumerate((
                ("plain", "app", "7 8"), ("plain", "7", "7 8"), ("plain", "9", "9 0"), ("plain", "7:3", "7 3"),
                ("plain", "app:staff", "7 50"), ("plain", "0", "0 0"), ("plain", "", "1000 1000"),
                ("opaque", "9:staff", "9 51"), ("gone", "7", "7 0"), ("link", "7", "7 0"),
                ("plain", "who", None), ("plain", "app:who", None), ("plain", "huge", None),
                ("plain", "broken", None), ("plain", "65536", None), ("plain", ":", None), ("gone", "app", None),
                ("opaque", "app", None), ("link", "staff", None))):
            folder = place.top / f"{number}"
            Image(*layers[tree], config={"User": user}).layout(folder)
            place.run("image", "import", folder, f"i:{number}")
            words, shell = ("box", "run", "--image", f"i:{number}"), ("--", "/bin/sh", "-c", "echo $(id -u) $(id -g)")
            if ids is None:
                place.run(*words, *shell, status=125)
                assert "its user" in place.error and "--uid" in place.error, place.error
            else:
                assert place.run(*words, *shell) == ids + "\n", (tree, user)
        assert place.run(*words, "--uid", "5", *shell) == "5 5\n"


@case
def a_cut_transfer_goes_on_where_it_stopped():
    for faults in ({"cut": 1}, {"cut": 2, "no_range": 1}):
        with Place() as place, Registry(SAMPLE, **faults) as registry:
            place.run("image", "pull", registry.ref)
            shows(place, registry.ref)
            ranges = [headers["Range"] for _, headers in registry.server.seen if "Range" in headers]
            size = SAMPLE.layers[0]["size"]
            assert ranges[0] == f"bytes={size // 2}-", ranges


@case
def what_a_registry_sends_is_checked():
    for fault, said in (("wrong_bytes", "has the digest"), ("too_long", "longer than announced"),
                        ("too_short", "bytes, not"), ("manifest_digest", "has the digest")):
        with Place() as place, Registry(SAMPLE, **{fault: 9}) as registry:
            place.refused("image", "pull", registry.ref, status=2, said=said)
    with Place() as place, Registry(SAMPLE) as registry:
        place.refused("image", "pull", registry.ref + "x", status=3, said="manifest unknown")
        place.refused("image", "pull", registry.ref, "--platform", "linux/riscv64", status=3,
                      said="s390x")
        place.run("image", "pull", registry.ref + "@" + sha(SAMPLE.manifest))
        place.run("image", "pull", registry.ref + "@sha256:" + "3" * 64, status=3)


@case
def ctrl_c_leaves_nothing():
    with Place() as place, Registry(SAMPLE, stall=1) as registry:
        pull = subprocess.Popen([ASSAY, "image", "pull", registry.ref], env=place.environ, **WHO,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert registry.server.stalled.wait(20)
        time.sleep(0.1)
        pull.send_signal(signal.SIGINT)
        _, error = pull.communicate(timeout=20)
        assert pull.returncode == 130 and b"interrupted" in error, (pull.returncode, error)
        assert place.left() == []


@case
def the_quota_is_kept():
    with Place() as place:
        (place.top / "big.tar").write_bytes(tar({"big": b"x" * (3 << 20)}))
        place.refused("image", "import", place.top / "big.tar", "--images-mib", "2", status=6,
                      said="larger than")
        place.run("image", "import", place.top / "big.tar", "--images-mib", "4")


# What a program inside sees of a tree; sizes of directories are the file system's own.
PICTURE = r"""
find /odd /d /sub /bin /lib* \( -type d -printf '%p d %m %U:%G %T@\n' \) -o \
    -printf '%p %y %m %n %U:%G %s %l %T@\n' | sort
find /etc /d /sub /odd -type f | sort | while read f; do sha256sum "$f"; done
getfattr -d -m - -h -R /odd 2>/dev/null
find /odd -type f -links +1 -printf '%i\n' | sort -u | wc -l
"""


def odd_layer():
    """Owners, modes, times, links, attributes, holes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        def add(name, kind=tarfile.REGTYPE, data=b"", **fields):
            info = tarfile.TarInfo("odd/" + name)
            info.type, info.size, info.mtime = kind, len(data), 981173106.25
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
        add("", DIR, mode=0o755)
        add("private", DIR, mode=0o700, uid=33, gid=33)
        add("private/secret", data=b"of 33", mode=0o600, uid=33, gid=33)
        add("locked", data=b"nobody's", mode=0, uid=12345, gid=54321)
        add("sticky", DIR, mode=0o1777, uid=65000, gid=65000)
        add("first", data=b"x" * 5000, pax_headers={"SCHILY.xattr.user.tag": "value"})
        add("second", tarfile.LNKTYPE, linkname="odd/first")
        add("link", LINK, linkname="../etc/a", uid=7)
        add("empty", data=b"")
        add("block", data=bytes(range(256)) * 16)
        add("b" * 254, data=b"a long name")  # mkfs.erofs 1.5 fails on 255
        add("image.erofs", data=b"not one of ours")
    return out.getvalue()


def has_erofs(place):
    rows = json.loads(subprocess.run([ASSAY, "doctor", "--json"], env=place.environ, check=False, **WHO,
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)["checks"]
    return next(row for row in rows if row["id"] == "erofs")


def erofs_image(place):
    tools = program_files("sh", "find", "sort", "sha256sum", "wc")
    if shutil.which("getfattr"):
        tools |= program_files("getfattr")
    image = Image(tar({"usr": DIR, "bin": DIR, "tmp": DIR} | tools), BASE, odd_layer(), TOP)
    place.run("image", "import", image.layout(place.top / "layout"), "t/odd:1")

    def picture(uid):
        return place.run("box", "run", "--image", "t/odd:1", "--uid", uid, "--env", "PATH=/bin", "--", "/bin/sh", "-c",
                         PICTURE)
    return picture


@case
def the_erofs_form_shows_the_same_entry_by_entry():
    with Place() as place:
        row = has_erofs(place)
        if row["status"] != "ok":
            return row["detail"]
        picture = erofs_image(place)
        layered = [picture("0"), picture("1000")]
        assert "/odd/private d 700 33:33 981173106.25" in layered[0], layered[0]
        assert "/odd/locked f 0 1 12345:54321 8  981173106.25" in layered[0], layered[0]
        place.run("image", "erofs", "t/odd:1")
        assert place.rows("image", "ls")[0]["erofs_bytes"] > 0
        assert [picture("0"), picture("1000")] == layered
        for _ in range(2):  # a box writes over it, as over layers
            assert place.run("box", "run", "--image", "t/odd:1", "--uid", "0", "--", "/bin/sh", "-c",
                             "cat /sub/new; echo; echo over > /sub/new; cat /sub/new") == "new\nover\n"
        place.run("image", "verify", "t/odd:1")
        (form,) = (place.top / "state/images/layers").glob("*/upper/image.erofs")
        with open(form, "r+b") as file:
            file.seek(4096)
            file.write(b"changed")
        place.run("image", "verify", "t/odd:1", status=2)
        with open(form, "r+b") as file:
            file.truncate(0)
        assert picture("0") == layered[0]  # what cannot be mounted is not used
        place.run("image", "rm", "t/odd:1")
        assert place.left() == []
    return None


@case
def without_erofs_images_are_layers():
    with Place() as place:
        row = has_erofs(place)
        if row["status"] == "ok":
            return "there is erofs"
        picture = erofs_image(place)
        layered = picture("0")
        place.run("image", "erofs", "t/odd:1", status=5)
        assert row["detail"].split(": ", 1)[1] in place.error, place.error
        assert picture("0") == layered
    return None


def conda_image():
    """What an image of SWE-bench's has: conda's activation, a toolchain, /testbed with history."""
    activate = b'conda() { export CONDA_DEFAULT_ENV="$2" PATH="/opt/miniconda3/envs/$2/bin:$PATH"; }\n'
    tools = program_files("bash", "sh", "git", "cat", "rm", "mkdir", "env", "grep", "ls", "sed", "cp",
                          "touch", "chmod", "head", "sort", "find", "patch", "mktemp", "mv", "ln")
    runner = b'#!/bin/bash\necho "PASSED by $CONDA_DEFAULT_ENV with $(cat /testbed/built) $IMAGE_WORD"\n'
    return Image(tar({"etc": DIR, "usr": DIR, "bin": DIR, "tmp": DIR, "root": DIR} | tools |
                     {"usr/bin": (LINK, "../bin")}),
                 tar({"opt/miniconda3/bin/activate": activate,
                      "opt/miniconda3/envs/testbed/bin/runner": runner,
                      "testbed/built": b"an extension", "testbed/.git/secret": b"the fix"}),
                 config={"Env": ["PATH=/opt/miniconda3/bin:/usr/bin:/bin", "IMAGE_WORD=word"]})


@case
def a_prebuilt_image_is_the_environment_of_a_task():
    with Place() as place:
        place.run("image", "import", conda_image().layout(place.top / "layout"),
                  "swebench/sweb.eval.x86_64.own_1776_repo-1:latest")
        hidden = "--- /dev/null\n+++ b/hidden\n@@ -0,0 +1 @@\n+x\n"
        script = ("#!/bin/bash\nset -uxo pipefail\nsource /opt/miniconda3/bin/activate\n"
                  "conda activate testbed\ncd /testbed\ngit status --short\n"
                  f"git apply -v - <<'EOF_114329324912'\n{hidden}EOF_114329324912\n"
                  ": '>>>>> Start Test Output'\n"
                  "touch $HOME/written\nls .git/secret || echo 'no secret'\nrunner\ncat answer\n"
                  ": '>>>>> End Test Output'\n")
        patch = "--- a/answer\n+++ b/answer\n@@ -1 +1 @@\n-FAIL it\n+PASS it\n"
        row = {"instance_id": "Own__repo-1", "repo": "own/repo", "base_commit": "0" * 40,
               "version": "1", "test_patch": hidden,
               "eval_script": script, "FAIL_TO_PASS": ["it"], "PASS_TO_PASS": [],
               "log_parser": "assay_plain", "files": {"answer": "FAIL it\n"}, "patch": "diff --git a/answer b/answer\n" + patch}
        (place.top / "rows.jsonl").write_text(json.dumps(row) + "\n")
        (place.top / "env.conf").write_text("[environment images]\nrepo = own/*\n"
                                            "image = swebench/sweb.eval.x86_64.{instance_id}\n")
        out = place.top / "out"
        place.run("eval", "--dataset", place.top / "rows.jsonl", "--predictions", "gold",
                  "--environments", place.top / "env.conf", "--fail-under", "1", "--out", out)
        log = "".join(path.read_text() for path in out.rglob("test_output.txt"))
        assert "PASSED by testbed with an extension word" in log, log
        assert "no secret" in log, log
        if has_erofs(place)["status"] == "ok":  # its /testbed is then a directory of that file
            place.run("image", "erofs", "swebench/sweb.eval.x86_64.own_1776_repo-1:latest")
            place.run("eval", "--dataset", place.top / "rows.jsonl", "--predictions", "gold", "--cache", "off",
                      "--environments", place.top / "env.conf", "--fail-under", "1", "--out", place.top / "out3")
        place.run("image", "rm", "swebench/sweb.eval.x86_64.own_1776_repo-1:latest")
        place.run("eval", "--dataset", place.top / "rows.jsonl", "--predictions", "gold", "--cache", "off",
                  "--environments", place.top / "env.conf", "--out", place.top / "out2", status=1)


def boxes_work():
    with Place() as place:
        done = subprocess.run([ASSAY, "box", "run", "--", "/bin/true"], env=place.environ, check=False, **WHO,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        return done.returncode == 0, done.stderr.strip().split("\n")[-1]


def programs_to(folder):
    """An ordinary user may not be able to read the build tree."""
    global ASSAY, LIBEXEC  # pylint: disable=global-statement
    atexit.register(shutil.rmtree, folder)
    for path in (ASSAY, *(os.path.join(os.path.dirname(ASSAY), name)
                          for name in ("assayd", "assay-worker")),
                 *(os.path.join(LIBEXEC, name) for name in ("assay-box", "assay-unpack"))):
        shutil.copy(path, folder)
    os.chmod(folder, 0o755)
    ASSAY, LIBEXEC = os.path.join(folder, "assay"), folder


def main():
    if AS_USER and os.geteuid() != 0:
        print("1..0 # SKIP already an ordinary user: the other run covers it")
        return 0
    if AS_USER:
        programs_to(tempfile.mkdtemp(prefix="assay-image-programs-"))
    works, why = boxes_work()
    if not works and os.environ.get("ASSAY_BOX_MUST_WORK") != "1":
        print(f"1..0 # SKIP no boxes on this host: {why}")
        return 0
    cases = [f for f in CASES if not WORDS or any(word in f.__name__ for word in WORDS)]
    print(f"1..{len(cases)}")
    failed = 0
    for number, function in enumerate(cases, 1):
        try:
            why = function()
            print(f"ok {number} - {function.__name__}" + (f" # SKIP {why}" if why else ""), flush=True)
        except Exception:  # pylint: disable=broad-except
            failed += 1
            print(f"not ok {number} - {function.__name__}")
            print("# " + traceback.format_exc().replace("\n", "\n# "), flush=True)
    return failed > 0


sys.exit(main())
