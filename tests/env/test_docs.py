"""docs/protocol.md has a stanza for every route, and only for routes; the help names every command."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(sys.argv[1])
ASSAY = sys.argv[2]


def main():
    routes = re.findall(r'\{"([A-Z]+)", "(/[^"]*)"', (ROOT / "env" / "routes.c").read_text(encoding="utf-8"))
    stanzas = re.findall(r"^### ([A-Z]+) (/\S+)$", (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8"), re.M)
    commands = re.findall(r'\{"([a-z ]+)",\s*"[^"]*",\s*"[^"]*",\s*cli_', (ROOT / "env" / "cli_main.c").read_text(encoding="utf-8"))
    overview = subprocess.run([ASSAY, "help"], capture_output=True, text=True, check=True).stdout
    man = subprocess.run([ASSAY, "help", "--man"], capture_output=True, text=True, check=True).stdout
    checks = [
        ("every route has a stanza", len(routes) > 20 and set(routes) - set(stanzas)),
        ("every stanza has a route", set(stanzas) - set(routes)),
        ("no stanza is there twice", [s for s in stanzas if stanzas.count(s) > 1]),
        ("the overview names every command", [c for c in commands if f"  {c} " not in overview] or len(commands) < 20),
        ("the man page names every command", [c for c in commands if f".B {c} " not in man]),
    ]
    print(f"1..{len(checks)}")
    for number, (name, wrong) in enumerate(checks, 1):
        print("not ok" if wrong else "ok", number, "-", name, f"# {wrong}" if wrong else "")
    return any(wrong for _, wrong in checks)


sys.exit(main())
