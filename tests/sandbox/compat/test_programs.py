"""What people run starts inside a box as it does outside: compilers, interpreters, virtual machines.

Each row is a shell script and what it prints; where it prints something else outside too, it is not
the box that is at fault. Prints TAP; a program that this machine lacks is a skip with its name.

    test_programs.py BOX_TOOL
"""
import os
import shutil
import subprocess
import sys
import tempfile

# name, programs, script, what it prints
ROWS = [
    ("gcc compiles threads, and what it made runs", ["gcc"], r"""
cat > a.c <<'E'
#include <pthread.h>
#include <stdio.h>
static void *half(void *n) { return (char *)n - 21; }
int main(void) { pthread_t t; void *r; pthread_create(&t, 0, half, (void *)42); pthread_join(t, &r);
    printf("%ld\n", (long)r); return 0; }
E
gcc -O2 -pthread -Wno-all -o a a.c && ./a""", "21"),
    ("gcc's address sanitizer works", ["gcc"], r"""
echo 'int main(int n, char **v) { char b[4]; (void)v; return b[n + 6]; }' > a.c
gcc -g -fsanitize=address -o a a.c && ./a 2>&1 | grep -o 'stack-buffer-overflow' | head -1""",
     "stack-buffer-overflow"),
    ("python forks, threads, asks for a loopback socket and a subprocess", ["python3"], r"""
cat > a.py <<'E'
import concurrent.futures as cf, multiprocessing as mp, socket, sqlite3, subprocess, tempfile, asyncio
def square(n): return n * n
async def sleep(): await asyncio.sleep(0); return 1
if __name__ == "__main__":
    with cf.ThreadPoolExecutor(4) as pool: a = sum(pool.map(square, range(10)))
    with mp.get_context("spawn").Pool(2) as pool: b = sum(pool.map(square, range(10)))
    server = socket.create_server(("127.0.0.1", 0))
    socket.create_connection(server.getsockname()).close()
    c = subprocess.run(["sh", "-c", "echo 5"], capture_output=True, text=True).stdout.strip()
    d = sqlite3.connect(tempfile.mktemp()).execute("select 6").fetchone()[0]
    print(a, b, c, d, asyncio.run(sleep()))
E
python3 a.py""", "285 285 5 6 1"),
    ("perl forks and opens pipes", ["perl"], r"""
perl -e 'open(my $p, "-|", "echo 7") or die; print <$p>; wait; print fork() ? (wait > 0 ? "y\n" : "n\n") : exit 0'""",
     "7\ny"),
    ("node runs workers, children and a server", ["node"], r"""
cat > a.js <<'E'
const {Worker} = require("worker_threads"), {execFileSync} = require("child_process");
const http = require("http"), fs = require("fs");
fs.writeFileSync("b.txt", "8");
new Worker("require('worker_threads').parentPort.postMessage(9)", {eval: true}).on("message", n => {
  const s = http.createServer((q, r) => r.end("10")).listen(0, "127.0.0.1", () =>
    http.get({port: s.address().port, host: "127.0.0.1"}, r => r.on("data", d => {
      console.log(fs.readFileSync("b.txt") + "", n, execFileSync("echo", ["11"]).toString().trim(), d + "");
      process.exit(0);
    })));
});
E
node a.js""", "8 9 11 10"),
    ("java compiles and runs threads", ["javac"], r"""
cat > A.java <<'E'
public class A { public static void main(String[] a) throws Exception { int[] n = new int[4];
  Thread t = new Thread(() -> n[0] = 12); t.start(); t.join();
  System.out.println(n[0] + " " + new java.security.SecureRandom().getClass().getSimpleName()); } }
E
java -Xshare:auto A.java""", "12 SecureRandom"),
    ("go builds and runs goroutines", ["go"], r"""
cat > a.go <<'E'
package main
import ("fmt"; "os/exec"; "sync")
func main() { var w sync.WaitGroup; n := make([]int, 4)
	for i := range n { w.Add(1); go func(i int) { n[i] = i * i; w.Done() }(i) }
	w.Wait(); out, _ := exec.Command("echo", "13").Output(); fmt.Print(n, " ", string(out)) }
E
GOTELEMETRY=off go run a.go""", "[0 1 4 9] 13"),
    ("git commits, packs and clones", ["git"], r"""
git init -q r && cd r && echo x > f && git add f && git -c user.name=a -c user.email=a@b commit -qm 14 &&
git gc -q && cd .. && git clone -q --no-hardlinks r s && git -C s log --format=%s""", "14"),
    ("make runs jobs through its pipe", ["make"], "printf 'all: a b\\n\\t@echo 15\\na b:\\n\\t@true\\n' > Makefile\nmake -s -j4", "15"),
]


def run(command):
    with tempfile.TemporaryDirectory() as here:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL, timeout=120,
                              env={**os.environ, "HOME": here, "LC_ALL": "C.UTF-8"})
    return done.stdout.strip() if done.returncode == 0 else f"{done.stdout}{done.stderr}"[-600:]


def compare(tool, script, want):
    """None, or what differs."""
    inside = run([tool, "run", "--mem", "3G", "--pids", "256", "--wall", "100s", "--", "sh", "-c", script])
    if inside == want:
        return None
    outside = run(["sh", "-c", script])
    return None if inside == outside else f"outside {outside!r}, in a box {inside!r}"


def main():
    tool = os.path.abspath(sys.argv[1])
    print(f"1..{len(ROWS)}")
    if subprocess.run([tool, "run", "--", "true"], capture_output=True, check=False).returncode != 0:
        for number, row in enumerate(ROWS, 1):
            print(f"ok {number} - {row[0]} # SKIP no boxes on this host")
        return 0
    failed = 0
    for number, (name, programs, script, want) in enumerate(ROWS, 1):
        missing = [p for p in programs if shutil.which(p, path="/usr/bin:/bin") is None]
        if missing:
            print(f"ok {number} - {name} # SKIP no {missing[0]} below /usr")
            continue
        wrong = compare(tool, script, want)
        failed += wrong is not None
        print("ok" if wrong is None else "not ok", number, "-", name)
        if wrong is not None:
            print("#", wrong.replace("\n", "\n# "))
        sys.stdout.flush()
    return int(failed > 0)


sys.exit(main())
