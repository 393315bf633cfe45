"""Compiles one .cu file for every architecture and keeps what ptxas said about its kernels.

usage: compile.py NVCC SOURCE OBJECT REPORT DEPFILE ROOT ARCH...
Architectures are as nvcc names them: 80, 90a. The report is ptxas -v's text.
"""
import subprocess
import sys


def main():
    nvcc, source, target, report, depfile, root, *archs = sys.argv[1:]
    command = [nvcc, "-std=c++17", "-O3", "-fmad=false", "-Werror", "all-warnings", "-Xptxas", "-v",
               "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wno-unknown-pragmas",
               "-MD", "-MF", depfile, "-MT", target, "-I", root, "-c", source, "-o", target]
    for arch in archs:
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    # what newer cards compile for themselves; 90a is for its cards alone
    if not archs[0].endswith("a"):
        command += ["-gencode", f"arch=compute_{archs[0]},code=compute_{archs[0]}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        return done.returncode
    with open(report, "w", encoding="utf-8") as file:
        file.write(done.stderr)
    return 0


sys.exit(main())
