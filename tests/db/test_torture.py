"""Kills a writer with SIGKILL in mid-flight, again and again: nothing that it announced as durable may be lost."""
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time

ROUNDS = 8


def main():
    program = sys.argv[1]
    state = tempfile.mkdtemp(prefix="assay-torture-")
    announced = set()
    problems = []
    try:
        for round_number in range(ROUNDS):
            writer = subprocess.Popen([program, "torture", state], stdout=subprocess.PIPE, text=True)
            lines = 0
            for line in writer.stdout:
                announced.add(line.strip())
                lines += 1
                if lines >= 64 + 37 * round_number:
                    break
            time.sleep(0.003 * round_number)  # not a wait: it moves the kill into another step
            writer.kill()
            for line in writer.stdout:
                if line.endswith("\n"):
                    announced.add(line.strip())
            writer.wait()
            database = sqlite3.connect(os.path.join(state, "assay.db"))
            if database.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
                problems.append(f"round {round_number}: integrity_check")
            stored = {row[0] for row in database.execute("SELECT public_id FROM job")}
            double = database.execute("SELECT count(*) FROM (SELECT key FROM job WHERE state IN (0,1,2) "
                                      "GROUP BY key,repeat HAVING count(*)>1)").fetchone()[0]
            database.close()
            if announced - stored:
                problems.append(f"round {round_number}: {len(announced - stored)} grades are lost")
            if double:
                problems.append(f"round {round_number}: {double} keys twice")
    finally:
        shutil.rmtree(state, ignore_errors=True)
    print("1..1")
    for problem in problems:
        print("#", problem)
    print("not ok" if problems or not announced else "ok", "1 - a killed writer loses nothing that it announced",
          f"({ROUNDS} kills, {len(announced)} grades)")
    return bool(problems)


sys.exit(main())
