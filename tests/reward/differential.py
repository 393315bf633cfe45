"""Compares Assay's grader with the real SWE-bench graders on generated and mutated logs.

    python3 tests/reward/differential.py --tool build/tests/reward/grade_tool \
        --v4 CHECKOUT_OF_4.1.0 --v5 CHECKOUT_OF_5.0.2 [--seed N] [--cases N] [--parser NAME] [--logs DIR]

Run by hand: it needs two checkouts of SWE-bench, of which only the grading modules are imported
(their other imports are stubbed). Prints each difference with the request that shows it, and ends
with one line of counts; exit status 1 when anything differs.
"""
import argparse
import base64
import collections
import io
import json
import pathlib
import random
import signal
import subprocess
import sys
import types

# What the lines of each parser are made of. A log is random text over these pieces, GENERIC and
# NASTY, which finds more than mutation of whole logs does.
PYTEST = ["PASSED", "FAILED", "SKIPPED", "ERROR", "XFAIL", "XPASS", "tests/a.py::t", "a.py::T::t[x y]",
          "t.py::f[/tmp/q/z.py]", "[//a]", "[/a/*]", "[/b/c]", " - ", " - boom", "[1]", "[12] x.py:3: why",
          "[100%]", "MouseButton.LEFT", "MouseButton.RIGHT", "\x1b[32m", "\x1b[0m", "[1;31m", "[31m", "::", "["]
TOKENS = {
    "pytest": PYTEST, "pytest_options": PYTEST, "pytest_v2": PYTEST, "matplotlib": PYTEST, "seaborn": PYTEST,
    "django": ["test_x (a.b.C)", " ... ok", " ... OK", " ...  OK", " ... ", "...", " ... skipped 'why'",
               " ... FAIL", " ... ERROR", "FAIL: test_y (a.b)", "ERROR: test_z (c)", "FAIL:", "ERROR:", "ok", "okay",
               "--version is equivalent to version", "Applying sites.0002_alter_domain_unique...test_no_migrations",
               "Testing against Django installed in '/x' silenced).\nok\n", "Testing against Django installed in ",
               " silenced).\nok", "Internal Server Error: /a/b/\nok\n", "Internal Server Error: /",
               "System check identified no issues (0 silenced)\nok\n", " ... System check identified"],
    "sympy": ["test_a", "test_b ok", " ok", " E", " F", " f", "ok [FAIL]", "_____", "_", " sympy/x/test_y.py:test_z ",
              ".py:", ".py", "a.py:12 ", " _", "test_"],
    "gotest": ["--- PASS: ", "--- FAIL: ", "--- SKIP: ", "TestA/sub", " (0.00s)", " (", ")", "()", "--- "],
    "cargo": ["test ", "a::b", " ... ", "...", "ok", "FAILED", "ignored", " ok <0.1s>", "bench"],
    "jest": ["✓", "✕", "○", " adds ", " (3 ms)", " (12ms)", "(1 s)", " (5s)", "( ms)", "(", ")"],
    "jest_json": ["[PASSED]", "[FAILED]", " A > b", "[", "PASSED"],
    "vitest": ["✓", "×", "↓", " f.spec.ts > a", " 12ms", " 3 ms", " 4 m", " 5", "[skipped]", " 7s", "ms"],
    "tap": ["ok ", "not ok ", "1", " 2 ", "adds", " - x", "# SKIP y", "1..2", "ok"],
    "jq": ["PASS", "FAIL", ":", ": ", "tests/jqtest", "PASS: ", "FAIL:\t"],
    "redis": ["[ok]:", "[err]:", "[skip]:", "[ignore]:", " XADD", " (1 ms)", " (22 s)", " in tests/unit/x.tcl",
              " in ", "ms)"],
    "micropython_test": ["pass", "FAIL", "skip", "  basics/a.py", "  "],
    "googletest": ["1: ", "[       OK ]", "[  FAILED  ]", "[", " A.b", " (0 ms)", " ()", "OK", "FAILED", "]"],
    "ant": ["[junit]", " [PASS]", " [FAIL] ", " [ERR] ", " a.B", "[junit] "],
    "minitest": ["T#test_a", ". ", " = ", "= 0.01 s = ", ".", "F", "E", "=", "0.1"],
    "cucumber": ["Scenario", " .", " ..", " ...F", "F", " ....", "."],
    "ruby_unit": ["test: ", "a", ":", ":\t", " .", ": .: (0.1)", " E", " F:", " O", ": Ex", ": F_", "E"],
    "rspec_transformed_json": ["a b", " - passed", " - failed", " - pending", " - ", "passed"],
    "marked": ["1) ", "12)", "1)\u00a0", " fail", "a", ")"],
    "jekyll": ["T#a. x = .", "Scenario ..F", ". = E", " ...."],
    "immutable_js": ["✓ a (1 ms)", "[PASSED] b", "[FAILED] c", "✕ d"],
    "karma": ["Starting browser", "SUMMARY:", "✔", "✖", " ", "  ", "    ", "\t", "suite", " name", "✔ x"],
    "phpunit": ["Suite (A\\B)", " (", ")", "✔", "✘", "↩", " test", "S", "  ✔ does"],
    "maven": ["+ mvn test -Dtest=A#b", "-Dtest=", "C#d", " -q", "[INFO] BUILD SUCCESS", "[ERROR] BUILD FAILURE",
              "BUILD SUCCESS", "BUILD ", "FAILURE"],
    "gradle_custom": ["o.a.T > m", " PASSED", " FAILED", "PASSED", "FAILED", ">", " > ", "T", "> Task"],
    "highlightjs": ["✓", "✔", "1) ", "2)", " name", "(3ms)", "  ", "    ", "suite", "\n  5 passing", "passing",
                    "(12ms) "],
    "prismjs": ["./node_modules/.bin/mocha tests/run.js --reporter json", "{", "}", '{"failures": [], "passes": []}',
                '{"failures":[{"fullTitle":"a\\u00e9"}],"passes":[{"fullTitle":"b"}]}', '"passes"', "x\n"],
    "calypso": [" ./node_modules/.bin/jest ", "Test Suites", "  ● ", "✓", "✕", " (12ms)", "(3ms)", "  ", "    ",
                "suite", " name"],
    "chart_js": ["Chrome 11.0", "Chrome ", " (Linux)", " (Linux 0.0.0) ", "suite test ", "FAILED", "FAILED\n",
                 "\x1b[31m", "\x1b[1A\x1b[2K", "\x1bM", "Chrome\u00a01.2\u2028(X) "],
    "p5js": ["  1) ", "1)", "\n      ", "\n   ", " suite", ":", ":\n", "{", "}", "[", "]", "<b>", "</b>", "<b>x</b>", "<i>",
             "</i>", "{a}", "[b]", "\x1b[0m"],
    "react_pdf": ["PASS ", "FAIL ", "a.js", " (1.5ms)", " (2 s)", " (3.1s)", "(s)", "PASS\t"],
    "carbon": ["PASS ", "FAIL ", "a.js", " (1.5ms)", " (2 s)", " (3.1s)"],
    "grommet": ["PASS ", "FAIL ", "PASS\n", "a.js", " (1.5ms)", " (2 s)", " (3.1 ms)"],
    "emotion": ["PASS ", "FAIL ", "PASS\n", "a.js", "  b "],
    "eslint": ["  1)", "\n  2)", " rule", "Error", "AssertionError [x]", "TypeError: ", "    ", "\n\n"],
    "bpmn_js": ["2KPhantomJS 2.1.1 (Linux 0.0.0) ", "2KPhantomJS 2.1 (Linux x86_64) ", "Chrome Headless 1.2 (Linux x86_64) ",
                "HeadlessChrome 99.0 (Linux 0.0.0) ", "suite t ", "FAILED\n", "FAILED", "x"],
    "openlayers": ["Chrome Headless 99.0 (Linux x86_64) ", "Chrome 9.9 (Linux y) ", "a  b", " FAILED\n", "FAILED\n",
                   "  1) ", "\n  3)", "Error:", "case x", "case a: mismatch", ": mismatch", "\n"],
    "next": [" xvfb-run ", "Starting browser Chrome", "TOTAL", "✗", "✓", " name", "  ", "    ", "suite", "ERROR", "LOG x",
             "  in", "AssertionError: #", "\n\n", "\x1b[32m", "Running: a)\n\n\n  suite\n", "    1) x", "    ✓ y (3ms)",
             "\n    2) z\n"],
    "lighthouse": ["running 3 test files", "4 passing", "✔ a", "✔ b (3ms)", "1) c", "2) d (4ms)", "  ", "    ", "suite",
                   "PASS a.js (1.5ms)", "FAIL b", "./node_modules/.bin/mocha --reporter json", '"passes": [', '"failures": [',
                   '"fullTitle": "x y",\n', "]", "],", '"fullTitle": "z",\n'],
    "cypress": ["../..", '  "passes": [', '  "failures": [', '"fullTitle": "x y",\n', '"fullTitle": "z",\n', "  }", "  ],"],
    "plotly_js": ["  - ", "    - ", "suite", " :", "  * ", "      * ", "test", " : ok", " : FAILED", " : o\u212a", ": failed ok"],
    "quarto_cli": ["[smoke]", "[unit]", " > a", " ... ", "32mok", "31mFAILED", "34mINFO", "/tmp/abc.qmd", "/tmp/abc/",
                   "/tmp/xyz/", "/tmp/q1.qmd", "ERRORS", "failures:", "test result:", "passed", "failed", "steps", "..."],
    "doctest": ["<doctest binary=\"t\">", "</doctest>", "<doctest", '<TestCase name="a">', "</TestCase>", '<SubCase name="s &amp; t">',
                "<SubCase>", "</SubCase>", '<Expression success="true">', '<Expression success="false">', "</Expression>", "<X/>",
                "<Expression success='true'/>", "&lt;", "&bad;", "<!-- c -->", "<![CDATA[<x>]]>", "]]>", "text", "&#65;", "<?pi x?>",
                '<TestCase name="a\tb" />', '<TestCase  name = "q" name="r">'],
}
DOCTEST_WHOLE = ['<doctest><TestSuite>', '<TestCase name="c">', '<SubCase name="s">', '<Expression success="true"/>',
                 '<Expression success="false"> x </Expression>', '</SubCase>', '</TestCase>', '</TestSuite></doctest>']
GENERIC = ["\n", "\n", "\n", "\n", " ", " ", "  ", "\t", "a", "x.y", "(", ")", ":", "_", "0", "12", "-", "é", "."]
NASTY = ["\r", "\r\n", "\x00", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\u00a0", "\u1680", "\u180e", "\u2003", "\u2028", "\u3000",
         "\u200b", "\u0663", "\u00b2", "\u2167", "\u0301", "\ufeff", "\U0001f600", "\U0001d7d8", "K", "\x7f", "\x1b[0m"]
BROKEN = [b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xc0\xaf", b"\xf5", b"\xe0\x80\x80", b"\xf4\x90\x80\x80"]
MARKS = [">>>>> Start Test Output", ">>>>> End Test Output", ">>>>> Patch Apply Failed", ">>>>> Reset Failed", ">>>>> Tests Errored",
         ">>>>> Tests Timed Out", ">>>>> Test Exit Code: 1", ">>>>> Test Exit Code: 0", ">>>>> Test Exit Code:  -2",
         "Executed 3 of 4", "Executed 0 of 0", "TOTAL: 5 SUCCESS", "7 passing", "Tests:  3", "Test Suites: 1 failed, 2 total",
         "\n# tests 9", "3 specs, 0 failures", "x': ok\n", ">>>>> Test Exit Code:\u0661"]
IDS = ["owner__repo-1", "jekyll__jekyll-9141", "jekyll__jekyll-8761", "immutable-js__immutable-js-2006",
       "immutable-js__immutable-js-2005"]
VERSIONS = ["1.27", "9.5", "10.0", "2.1", "3.0", "11.2", "x", ""]


def stub(name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module
    return module


def serve(release, folder):
    """Answers requests with the real grader of one checkout; runs in a process of its own."""
    root = pathlib.Path(folder) / "swebench"
    stub("swebench").__path__ = [str(root)]
    stub("swebench.harness").__path__ = [str(root / "harness")]
    for name in ("datasets", "docker", "dotenv", "git", "requests", "unidiff"):
        stub(name).__getattr__ = lambda member: object
    spec = collections.namedtuple("TestSpec", "repo version instance_id log_parser eval_type FAIL_TO_PASS PASS_TO_PASS")
    if release == "4":
        stub("swebench.harness.test_spec").__path__ = []
        stub("swebench.harness.test_spec.test_spec", TestSpec=spec)
    from swebench.harness import grading
    from swebench.harness.log_parsers import javascript, python  # noqa: F401
    import swebench.harness.log_parsers as parsers
    grading.open = lambda data: io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
    modules = [getattr(parsers, m) for m in ("c", "go", "java", "javascript", "php", "python", "ruby", "rust")]

    def find(name):
        for module in modules:
            for form in ("parse_log_" + name, "parse_" + name):
                if hasattr(module, form):
                    return getattr(module, form)
        return None

    def alarm(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, alarm)
    out, sys.stdout = sys.stdout, sys.stderr
    sys.stderr = io.StringIO()
    sys.stdout = io.StringIO()
    for line in sys.stdin:
        request = json.loads(line)
        row = request["row"]
        name = row["log_parser"]
        parser = find(name)
        if parser is None:
            print(json.dumps({"absent": True}), file=out, flush=True)
            continue
        if release == "4":
            grading.MAP_REPO_TO_PARSER = {row["repo"]: parser}
            grading.MAP_REPO_VERSION_TO_SPECS = {row["repo"]: {row["version"]: {"test_cmd": "t"}}}
        else:
            grading.PARSER_REGISTRY = {name: parser}
        test_spec = spec(**{key: row[key] for key in spec._fields})
        data = base64.b64decode(request["log"]).decode("utf-8", "replace").encode()
        try:
            signal.alarm(10)
            status_map, found = grading.get_logs_eval(test_spec, data)
            kind = grading.EvalType(row["eval_type"]) if release == "5" else grading.EvalType.PASS_AND_FAIL
            tests = grading.get_eval_tests_report(status_map, row, eval_type=kind)
            answer = {"found": found, "status_map": status_map, "tests_status": tests,
                      "resolution": grading.get_resolution_status(tests) if found else None}
        except TimeoutError:
            answer = {"slow": True}
        except Exception as error:  # the harness would record an error for this instance
            answer = {"raised": repr(error)}
        signal.alarm(0)
        sys.stdout.seek(0)
        sys.stdout.truncate()
        print(json.dumps(answer), file=out, flush=True)


def make_text(rng, name, seeds):
    own = TOKENS[name]
    if seeds and rng.random() < 0.15:
        lines = rng.choice(seeds).split("\n")
        start = rng.randrange(len(lines))
        lines = lines[start:start + rng.randrange(1, 40)]
        for _ in range(rng.randrange(4)):
            i = rng.randrange(len(lines))
            at = rng.randrange(len(lines[i]) + 1)
            lines[i] = lines[i][:at] + rng.choice(own + NASTY) + lines[i][at + rng.randrange(3):]
        return "\n".join(lines)
    if name == "doctest" and rng.random() < 0.5:
        parts = [DOCTEST_WHOLE[0]]
        for _ in range(rng.randrange(4)):
            parts += [DOCTEST_WHOLE[1]] + [rng.choice(DOCTEST_WHOLE[2:6] + own[-8:]) for _ in range(rng.randrange(5))] + \
                     [DOCTEST_WHOLE[6]] if rng.random() < 0.3 else \
                     [DOCTEST_WHOLE[1], DOCTEST_WHOLE[2]] + rng.choices(DOCTEST_WHOLE[3:5] + ["<!-- c -->", "&amp;", "\n", "é"], k=2) + \
                     [DOCTEST_WHOLE[5], DOCTEST_WHOLE[6]]
        return "x\n" + "\n".join(parts + [DOCTEST_WHOLE[7]]) + "\n"
    nasty = rng.choice([0, 0, 0.05, 0.2])
    pieces = []
    if rng.random() < 0.5:  # whole lines of a few own pieces in the order of the table
        for _ in range(rng.randrange(1, 12)):
            picked = sorted(rng.sample(range(len(own)), min(len(own), rng.randrange(1, 6))))
            if rng.random() < 0.2:
                rng.shuffle(picked)
            for i in picked:
                pieces.append(own[i] + rng.choice(["", "", " ", "a"]))
                if rng.random() < nasty / 2:
                    pieces.append(rng.choice(NASTY))
            pieces.append("\n")
        return "".join(pieces)
    for _ in range(rng.randrange(1, rng.choice([6, 20, 60]))):
        roll = rng.random()
        pieces.append(rng.choice(NASTY) if roll < nasty else rng.choice(GENERIC) if roll < 0.45 else rng.choice(own))
    return "".join(pieces)


def make_log(rng, name, seeds):
    inside = make_text(rng, name, seeds)
    parts = ["+ : '", MARKS[0], "'\n", inside, "\n+ : '", MARKS[1], "'\n"]
    if rng.random() < 0.3:
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(MARKS) + rng.choice(["", "\n"]))
    if rng.random() < 0.1:
        parts.insert(0, make_text(rng, name, seeds))
    if rng.random() < 0.03:
        del parts[rng.randrange(len(parts))]
    data = "".join(parts).encode("utf-8", "surrogatepass")
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(BROKEN) + data[at:]
    return data, inside


def make_request(rng, name, mode, seeds):
    data, inside = make_log(rng, name, seeds)
    words = [w for w in inside.replace("\x00", "").split() if w] + ["tests/a.py::t", "a.py::T::t[x", "None > x"]
    words += [line.strip().replace("\x00", "") for line in inside.split("\n")]
    pick = lambda: [rng.choice(words) for _ in range(rng.randrange(4))]
    row = {"repo": "fake/" + name, "version": rng.choice(VERSIONS), "instance_id": rng.choice(IDS), "log_parser": name,
           "eval_type": rng.choice(["pass_and_fail", "pass_and_fail", "fail_only"]) if mode == "compat-5" else "pass_and_fail",
           "FAIL_TO_PASS": pick(), "PASS_TO_PASS": pick(), "FAIL_TO_FAIL": [], "PASS_TO_FAIL": []}
    return {"mode": mode, "row": row, "log": base64.b64encode(data).decode()}


def ask(process, request):
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def differs(theirs, ours):
    if "raised" in theirs:
        return "error" not in ours
    if ours.get("failed") or "error" in ours:
        return True
    keep = lambda a: json.dumps([a[k] for k in ("found", "status_map", "tests_status", "resolution")])
    return keep(theirs) != keep(ours)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--tool", required=True)
    options.add_argument("--v4", required=True)
    options.add_argument("--v5", required=True)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--cases", type=int, default=200, help="per parser and release")
    options.add_argument("--parser")
    options.add_argument("--logs", help="a folder of real logs to mutate")
    options = options.parse_args()

    start = lambda argv: subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    tool = start([options.tool])
    real = {mode: start([sys.executable, __file__, "--serve", release, folder])
            for mode, release, folder in (("compat-4.1", "4", options.v4), ("compat-5", "5", options.v5))}
    seeds = [p.read_text(errors="replace") for p in sorted(pathlib.Path(options.logs).glob("*/log"))] if options.logs else []
    counts = collections.Counter()
    for name in sorted(TOKENS):
        if options.parser and name != options.parser:
            continue
        for mode in real:
            rng = random.Random(f"{options.seed} {name} {mode}")
            for _ in range(options.cases):
                request = make_request(rng, name, mode, seeds)
                theirs = ask(real[mode], request)
                if "absent" in theirs:
                    break
                ours = ask(tool, request)
                counts["cases"] += 1
                counts["raised"] += "raised" in theirs
                counts["nonempty"] += bool(theirs.get("status_map"))
                if "slow" in theirs:
                    counts["slow"] += 1
                elif differs(theirs, ours):
                    counts["different"] += 1
                    counts["different " + name + " " + mode] += 1
                    if counts["different " + name + " " + mode] <= 2:
                        print(f"--- {name} {mode}\n{base64.b64decode(request['log'])!r}\nrow    {request['row']}\n"
                              f"theirs {theirs}\nours   {ours}")
    print(dict(counts))
    return counts["different"] > 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        sys.exit(main())
