"""Checks that the house is in order: who may include whom, sizes, headers, banned calls.

Prints TAP. Run by `meson test --suite tidy`; the table is docs/architecture.md's.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(sys.argv[1]).resolve()

ROOMS = {
    "base": set(),
    "db": {"base"},
    "sandbox": {"base"},
    "tasks": {"base", "db"},
    "reward": {"base", "db"},
    "kernels": set(),
    "policy": {"base", "kernels"},
    "env": {"base", "db", "sandbox", "tasks", "reward", "policy", "kernels"},
}
ROOMS["tests"] = set(ROOMS)

# header -> where it may be included (a path prefix; a test may include what its room may)
FOREIGN = {
    "git2.h": ("tasks/repo",),
    "sqlite3.h": ("db/",),
    "libpq-fe.h": ("db/",),
    "cuda_runtime.h": ("kernels/cuda",), "cublas_v2.h": (),
    "seccomp.h": ("sandbox/",),
    "sched.h": ("sandbox/",),
    "sys/mount.h": ("sandbox/",),
    "libsoup/soup.h": ("env/",),
    "archive.h": ("sandbox/",),
    "mpi.h": ("kernels/",),
    "nccl.h": ("kernels/comm_nccl",), "cuda_runtime_api.h": ("kernels/comm_nccl",),
    "curl/curl.h": ("env/client.c", "sandbox/", "tasks/", "policy/"),
}

BANNED = {
    "strcpy": "g_strdup or g_strlcpy", "strcat": "GString", "sprintf": "g_strdup_printf",
    "strtok": "strcspn", "sscanf": "g_ascii_string_to_signed", "atoi": "g_ascii_string_to_signed",
    "system": "posix_spawn", "popen": "posix_spawn", "gets": "fd_read_all",
    "usleep": "wait for the event", "alloca": "g_autofree", "rand": "getrandom",
    "strtol": "g_ascii_string_to_signed",
}

LINES_MAX, COLUMNS_MAX, FUNCTION_MAX = 800, 100, 70


def sources():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True,
                            capture_output=True, check=False).stdout.split("\n")
    for name in listed:
        path = ROOT / name
        if name.endswith((".c", ".h", ".cu", ".cpp")) and path.is_file() and not name.startswith("examples/"):
            yield name, path.read_text(encoding="utf-8")


def code_only(text):
    """The text with comments and string contents blanked, lines kept."""
    def blank(match):
        return re.sub(r"[^\n]", " ", match.group())
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', blank, text,
                  flags=re.S)


def check_includes(name, text):
    room = name.split("/")[0]
    for header in re.findall(r'#include "([^"]+)"', text):
        target = header.split("/")[0]
        if "/" in header and target in ROOMS and target != room and target not in ROOMS[room]:
            yield f"{room} may not include {target} ({header})"
        if "/" not in header and not header.endswith((".inc", ".def")):
            yield f'#include "{header}" is not written from the repository root'
    for header in re.findall(r"#include <([^>]+)>", text):
        homes = FOREIGN.get(header)
        if homes and room != "tests" and not name.startswith(homes):
            yield f"<{header}> belongs in {' or '.join(homes)}"


def check_shape(name, text):
    lines = text.split("\n")
    if len(lines) > LINES_MAX:
        yield f"{len(lines)} lines, more than {LINES_MAX}"
    if not text.startswith("/*"):
        yield "does not open with a comment that says what it is"
    table = False  # rows between "clang-format off" and "on" may be as long as they read best
    for number, line in enumerate(lines, 1):
        table = "clang-format off" in line or (table and "clang-format on" not in line)
        if len(line) > COLUMNS_MAX and not table:
            yield f"line {number} has {len(line)} columns"
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line):
            yield f"line {number}: a left-over marker"


def check_functions(name, text):
    start = None
    for number, line in enumerate(code_only(text).split("\n"), 1):
        if line == "{":
            start = number
        elif line == "}" and start is not None:
            if number - start - 1 > FUNCTION_MAX:
                yield f"function at line {start} has {number - start - 1} lines"
            start = None


def check_banned(name, text):
    code = code_only(text)
    for word, instead in BANNED.items():
        for match in re.finditer(r"(?<![\w.>])" + word + r"\s*\(", code):
            yield f"line {code.count(chr(10), 0, match.start()) + 1}: {word}: use {instead}"
    if re.search(r"\bgoto\b", code):
        yield "goto"


def check_room_tables():
    """Every room has a README.md whose table names every source file of the room."""
    for room in ROOMS:
        if not (ROOT / room).is_dir() or room == "tests":
            continue
        readme = ROOT / room / "README.md"
        if not readme.exists():
            yield f"{room}/README.md is missing"
            continue
        text = readme.read_text(encoding="utf-8")
        for path in sorted((ROOT / room).glob("*.[ch]")):
            if path.stem not in text:
                yield f"{room}/README.md does not name {path.name}"


def main():
    found = list(sources())
    checks = [check_includes, check_shape, check_functions, check_banned]
    print(f"1..{len(checks) + 1}")
    failed = 0
    for i, check in enumerate(checks, 1):
        bad = [f"{name}: {why}" for name, text in found for why in check(name, text)]
        print(f"{'not ok' if bad else 'ok'} {i} - {check.__name__}")
        for line in bad:
            print("#", line)
        failed += bool(bad)
    bad = list(check_room_tables())
    print(f"{'not ok' if bad else 'ok'} {len(checks) + 1} - check_room_tables")
    for line in bad:
        print("#", line)
    return failed + bool(bad) > 0


sys.exit(main())
