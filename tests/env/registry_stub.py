"""A registry on loopback whose repositories each misbehave in one way, by their name.

Two more servers, one on another port and one on the same port of another address, play the storage
that blobs are redirected to; they refuse every request that brings an Authorization header.
"""
import contextlib
import hashlib
import http.server
import io
import json
import random
import re
import socket
import tarfile
import threading
import urllib.parse

OCI = "application/vnd.oci.image."
LAYER_BYTES = 300_000
PIECE_BYTES = 100_000


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def describe(data, kind, **more):
    return {"mediaType": OCI + kind, "digest": digest(data), "size": len(data), **more}


def tar(name, data):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def image(architecture, seed):
    numbers = random.Random(seed)
    layers = [tar(str(n), numbers.randbytes(n)) for n in (LAYER_BYTES, 1000, 0)]
    config = json.dumps({"os": "linux", "architecture": architecture,
                         "rootfs": {"type": "layers", "diff_ids": [digest(x) for x in layers]},
                         "config": {"Env": ["PATH=/bin"]}}).encode()
    manifest = {"schemaVersion": 2, "mediaType": OCI + "manifest.v1+json",
                "config": describe(config, "config.v1+json"),
                "layers": [describe(x, "layer.v1.tar") for x in layers]}
    return manifest, {digest(x): x for x in [config, *layers]}


MANIFEST, BLOBS = image("amd64", 1)
OTHER, OTHER_BLOBS = image("arm64", 2)
BLOBS.update(OTHER_BLOBS)
FIRST = MANIFEST["layers"][0]["digest"]
SEEN = {}  # how often a repository was asked for something
BASIC = "Basic dXNlcjpzZWNyZXQ="
LOCK = threading.Lock()


def changed(**fields):
    return json.dumps({**MANIFEST, **fields}).encode()


def with_layer(**fields):
    return changed(layers=[{**MANIFEST["layers"][0], **fields}])


PLAIN, ARM = changed(), json.dumps(OTHER).encode()


def index():
    entries = [describe(b"{}", "manifest.v1+json", platform={"os": "unknown",
                                                           "architecture": "unknown"})]
    for data, machine in ((ARM, "arm64"), (PLAIN, "amd64")):
        entries.append(describe(data, "manifest.v1+json",
                                platform={"os": "linux", "architecture": machine}))
    return json.dumps({"schemaVersion": 2, "manifests": entries}).encode()


MANIFESTS = {
    "index": index(),
    "name": with_layer(digest="sha256:../../../../../../../../../../../../../../../../tmp/xxxxxxxx"),
    "sha512": with_layer(digest="sha512:" + "0" * 128),
    "negative": with_layer(size=-1),
    "diffids": changed(layers=MANIFEST["layers"][:1]),
    "twice": b'{"schemaVersion": 2, "schemaVersion": 2}',
    "text": b"<html>hello</html>",
    "deep": b"[" * 1_000_000,
    "bomb": b" " * (9 << 20) + PLAIN,
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, message="no", **headers):
        body = json.dumps({"errors": [{"code": "X", "message": message}]}).encode()
        self.answer(status, body, **headers)

    def count(self, what):
        with LOCK:
            SEEN[what] = SEEN.get(what, 0) + 1
            return SEEN[what]

    def hang_up(self):
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client may be gone already
            self.connection.shutdown(socket.SHUT_RDWR)


class Storage(Handler):
    def do_GET(self):
        if "Authorization" in self.headers:
            return self.refuse(400, "the storage was shown a secret")
        return self.answer(200, BLOBS[self.path.rsplit("/", 1)[1]])


class Registry(Handler):
    def do_GET(self):
        if self.path.startswith("/token"):
            return self.token(urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query))
        found = re.fullmatch(r"/v2/([a-z0-9]+)/(manifests|blobs)/(.+)", self.path)
        if not found:
            return self.refuse(404, "no such page")
        repo, kind, name = found.groups()
        if not self.known(repo):
            return None
        return getattr(self, kind)(repo, name)

    def challenge(self, repo, realm=None):
        realm = realm or f"http://127.0.0.1:{self.server.server_port}/token?of={repo}"
        text = f'Bearer realm="{realm}",service="stub, \\"the\\"",scope="repository:{repo}:pull"'
        self.refuse(401, "who are you", WWW_Authenticate='Negotiate, Basic realm="x", ' + text)
        return False

    def known(self, repo):
        """Whether the request may go on; else it was answered."""
        said = self.headers.get("Authorization")
        if repo == "basic" and said != BASIC:
            self.refuse(401, "who are you", WWW_Authenticate='Basic realm="x"')
            return False
        if repo == "negotiate":
            self.refuse(401, "who are you", WWW_Authenticate="Negotiate")
            return False
        if repo == "strange":
            return self.challenge(repo, "http://192.0.2.1/token")
        if repo in ("token", "tokenbusy", "tokenlate", "login", "otherport", "otherhost",
                    "badtoken", "notoken", "forever"):
            if said != f"Bearer good-{repo}" or repo == "forever":
                return self.challenge(repo)
        if repo == "expiring":  # each token is good for two requests
            n = int((said or "Bearer 0").split(" ")[1])
            if n == 0 or self.count(f"expiring {n}") > 2:
                return self.challenge(repo)
        return True

    def token(self, query):
        repo = query["of"][0]
        if query["scope"] != [f"repository:{repo}:pull"] or query["service"] != ['stub, "the"']:
            return self.refuse(400, "the token is not asked for as the challenge says")
        if repo == "tokenbusy" and self.count("tokenbusy") == 1:
            return self.refuse(502, "later")
        if repo == "tokenlate":
            return self.refuse(502 if self.count("tokenlate") == 1 else 401, "not you")
        if (repo == "login") != (self.headers.get("Authorization") == BASIC):
            return self.refuse(401, "login refused")
        token = {"expiring": str(self.count("tokens")), "badtoken": "a\r\nX: y"}
        field = "nothing" if repo == "notoken" else "access_token" if repo == "login" else "token"
        return self.answer(200, json.dumps({field: token.get(repo, f"good-{repo}")}).encode())

    def manifests(self, repo, name):
        if repo == "missing":
            return self.refuse(404, "manifest unknown \x1b[2J")
        if repo == "forbidden":
            return self.refuse(403, "denied")
        if repo == "busy" and self.count("busy") == 1:
            return self.refuse(429, "too many", Retry_After=1)
        if repo == "patient":
            return self.refuse(503, "later", Retry_After=100_000)
        if repo == "broken" and self.count("broken") < 3:
            return self.refuse(500, "broken")
        body = MANIFESTS.get(repo, PLAIN)
        if name.startswith("sha256:"):
            body = {digest(x): x for x in (PLAIN, ARM)}.get(name, PLAIN)
        if repo == "header":
            return self.answer(200, body, Docker_Content_Digest=digest(b""))
        if repo == "halfdocument" and self.count("halfdocument") == 1:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(b"x" * 40)
            return self.hang_up()
        return self.answer(200, body, Docker_Content_Digest=digest(body))

    def blobs(self, repo, name):
        data = BLOBS[name]
        port = self.server.server_port
        redirects = {"otherport": f"http://127.0.0.1:{self.server.storage_port}/{name}",
                     "otherhost": f"http://127.0.0.2:{port}/{name}",
                     "loop": f"http://127.0.0.1:{port}{self.path}",
                     "tofile": "file:///etc/passwd",
                     "touser": f"http://a:b@127.0.0.1:{self.server.storage_port}/{name}",
                     "tofar": f"http://192.0.2.1/{name}"}
        if repo in redirects:
            return self.answer(307, Location=redirects[repo])
        if name == FIRST and repo in ("cut", "norange", "badrange", "dead"):
            return self.pieces(repo, data)
        if name == FIRST:
            data = {"flipped": b"x" + data[1:], "long": data + b"x",
                    "short": data[:-1]}.get(repo, data)
        return self.answer(200, data)

    def pieces(self, repo, data):
        """Promises all that is left, sends a piece, hangs up."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if repo == "norange" and start > 0:
            return self.answer(200, data)
        said = start + (1 if repo == "badrange" else 0)
        self.send_response(206 if start > 0 else 200)
        if start > 0:
            self.send_header("Content-Range", f"bytes {said}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:start + (1 if repo == "dead" else PIECE_BYTES)])
        return self.hang_up()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_args):
        """Clients that hang up are what is tested; the rest shows in the client."""


def serve(handler, host="127.0.0.1", port=0):
    server = Server((host, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def start():
    """The registry's port."""
    registry, storage = serve(Registry), serve(Storage)
    registry.storage_port = storage.server_port
    serve(Storage, "127.0.0.2", registry.server_port)
    return registry.server_port
