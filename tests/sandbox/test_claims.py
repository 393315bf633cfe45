"""Checks the claim that every case of the attack list is shown by a test.

    test_claims.py SOURCE_ROOT        prints TAP

Rows of test_attacks.c carry their case number; cases.txt names the tests of all others, and those
of known escapes. Each name must stand in its file as a test that is registered there.
"""
import pathlib
import re
import sys

TESTS = pathlib.Path(sys.argv[1]) / "tests"
SANDBOX = pathlib.Path(sys.argv[1]) / "sandbox"
CASES = 107
ESCAPES = """
CVE-2016-8659 CVE-2017-5226 CVE-2019-10063 CVE-2019-19921 CVE-2019-5736 CVE-2020-5291
CVE-2021-26910 CVE-2021-30465 CVE-2021-3493 CVE-2022-0185 CVE-2022-0492 CVE-2022-27650
CVE-2022-29162 CVE-2023-0386 CVE-2023-25809 CVE-2023-28642 CVE-2024-21626 CVE-2024-28185
CVE-2024-28189 CVE-2024-29021 CVE-2024-42472 CVE-2024-45310 CVE-2025-31133 CVE-2025-52565
CVE-2025-52881 CVE-2026-47766""".split()


def attack_numbers():
    text = (TESTS / "sandbox/test_attacks.c").read_text()
    table = text.split("attacks[] = {", 1)[1].split("\n};", 1)[0]
    return {int(n) for n in re.findall(r"^    \{(\d+),", table, re.M)}


def is_there(path, name):
    """Is NAME a test of that file: a row's word or sentence, a registered function, a case?"""
    text = (TESTS / path).read_text()
    if name is None:
        return True
    quoted = f'"{name}"' in text or f'"/payload/payload {name}"' in text
    return quoted or len(re.findall(rf"\b{name}\b", text)) >= (1 if path.endswith(".py") else 2)


def lines():
    for line in (TESTS / "sandbox/cases.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            case, path, *rest = line.split(None, 2)
            yield case, path, rest[0].strip().strip('"') if rest else None


def main():
    results = []
    claimed = {str(n) for n in attack_numbers()}
    for case, path, name in lines():
        claimed.add(case)
        known = case in ESCAPES or case.isdigit() and 1 <= int(case) <= CASES
        title = f"{case} is shown by {path} {name or ''}".rstrip()
        if not (TESTS / path).is_file():
            title += " # SKIP that test is not in this tree yet"
        results.append((known and ("SKIP" in title or is_there(path, name)), title))
    for case in [str(n) for n in range(1, CASES + 1)] + ESCAPES:
        results.append((case in claimed, f"{case} is claimed by a test"))
    clocks = [str(path) for path in SANDBOX.glob("*.c")
              if re.search(r"CLOCK_REALTIME|g_get_real_time|\btime\(NULL\)|gettimeofday",
                           path.read_text())]
    results.append((not clocks, "106 no limit hangs on a clock that can jump " + " ".join(clocks)))
    print(f"1..{len(results)}")
    for i, (ok, name) in enumerate(results, 1):
        print("ok" if ok else "not ok", i, name)
    sys.exit(not all(ok for ok, _ in results))


main()
