"""assay image pull from a registry that goes wrong or lies (registry_stub.py). Prints TAP.

    test_registry.py ASSAY LIBEXEC

Every pull has a proxy in its environment at which nobody listens: loopback must go round it.
Pulls that succeed unpack in boxes; where boxes are refused these are skips, unless
ASSAY_BOX_MUST_WORK=1.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import registry_stub

ASSAY, LIBEXEC = sys.argv[1:3]
PORT = registry_stub.start()
GOOD = ("plain", "token", "tokenbusy", "expiring", "otherport", "otherhost", "cut", "norange",
        "halfdocument", "index", "broken")
USAGE, NONE, REFUSED, FAILED = 2, 3, 4, 1
BAD = {
    "missing": (NONE, "manifest unknown \\x1b[2J"),
    "forbidden": (REFUSED, "refuses (403): denied"),
    "patient": (FAILED, "given up after 1 tries: the registry answers 503: later"),
    "basic": (REFUSED, "refuses (401): who are you; log in"),
    "login": (REFUSED, "refuses (401): login refused"),
    "tokenlate": (REFUSED, "refuses (401): not you"),
    "negotiate": (REFUSED, "refuses (401): who are you"),
    "strange": (REFUSED, "http://192.0.2.1/token?service="),
    "forever": (REFUSED, "refuses (401): who are you"),
    "badtoken": (USAGE, "there is none"),
    "notoken": (USAGE, "there is none"),
    "header": (USAGE, "has the digest"),
    "loop": (USAGE, "more than 5 redirects"),
    "tofile": (USAGE, "file:///etc/passwd: not a usable"),
    "touser": (USAGE, "not a usable http or https URL"),
    "tofar": (REFUSED, "http://192.0.2.1/"),
    "flipped": (USAGE, "has the digest"),
    "long": (USAGE, "longer than announced"),
    "short": (USAGE, "bytes, not"),
    "badrange": (USAGE, "a range that was not asked for"),
    "dead": (FAILED, "given up after 64 tries"),
    "name": (USAGE, "digest"),
    "sha512": (USAGE, "digest"),
    "negative": (USAGE, "size"),
    "diffids": (USAGE, "it names 3 layers, the manifest 1"),
    "twice": (USAGE, "duplicate"),
    "text": (USAGE, "line 1"),
    "deep": (USAGE, "depth"),
    "bomb": (USAGE, "longer than announced"),
}


def pull(repo, *words, logins=None):
    """Status and error of a pull into a store of its own."""
    with tempfile.TemporaryDirectory(prefix="assay-registry-") as top:
        auth = pathlib.Path(top, "config.json")
        auth.write_text(json.dumps({"auths": logins or {}}))
        environ = {"PATH": os.environ["PATH"], "HOME": top, "NO_COLOR": "1",
                   "ASSAY_STATE": top + "/state", "ASSAY_LIBEXEC": LIBEXEC,
                   "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
        done = subprocess.run([ASSAY, "image", "pull", f"127.0.0.1:{PORT}/{repo}", "--platform",
                               "linux/amd64", "--auth", str(auth), *words], env=environ, text=True,
                              check=False, capture_output=True, timeout=60)
        subprocess.run(["chmod", "-R", "u+rwX", top], check=True)
        return done.returncode, done.stderr


def pulls(repo, **options):
    status, error = pull(repo, **options)
    assert status == 0, (status, error)


def refuses(repo, status, said, **options):
    got, error = pull(repo, **options)
    assert got == status and said in error, (got, error)
    assert all(c.isprintable() or c == "\n" for c in error), error


def a_busy_registry_is_waited_for():
    start = time.monotonic()
    pulls("busy")
    assert time.monotonic() - start >= 1


def login(port):
    return {f"127.0.0.1:{port}": {"auth": registry_stub.BASIC.split()[1]}}


def a_login_is_shown_to_the_token_server():
    pulls("login", logins=login(PORT))


def a_login_is_shown_to_a_registry_without_tokens():
    pulls("basic", logins=login(PORT))


def the_login_of_another_port_is_not_used():
    refuses("basic", REFUSED, "refuses (401)", logins=login(PORT + 1))


def boxes_work():
    with tempfile.TemporaryDirectory() as top:
        environ = {"PATH": os.environ["PATH"], "HOME": top, "ASSAY_STATE": top + "/state",
                   "ASSAY_LIBEXEC": LIBEXEC}
        return subprocess.run([ASSAY, "box", "run", "--", "/bin/true"], env=environ, check=False,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def main():
    boxed = [(f"pulls: {repo}", lambda repo=repo: pulls(repo)) for repo in GOOD]
    boxed += [(f.__name__, f) for f in (a_busy_registry_is_waited_for,
                                        a_login_is_shown_to_the_token_server,
                                        a_login_is_shown_to_a_registry_without_tokens)]
    plain = [(f"refuses: {repo}", lambda repo=repo: refuses(repo, *BAD[repo])) for repo in BAD]
    plain.append(("the_login_of_another_port_is_not_used", the_login_of_another_port_is_not_used))
    skip = not boxes_work() and os.environ.get("ASSAY_BOX_MUST_WORK") != "1"
    print(f"1..{len(boxed) + len(plain)}")
    failed = 0
    for number, (name, function) in enumerate(boxed + plain, 1):
        if skip and number <= len(boxed):
            print(f"ok {number} - {name} # SKIP no boxes on this host")
            continue
        try:
            function()
            print(f"ok {number} - {name}", flush=True)
        except Exception as error:  # pylint: disable=broad-except
            failed += 1
            print(f"not ok {number} - {name}\n# {error!r}", flush=True)
    return failed > 0


sys.exit(main())
