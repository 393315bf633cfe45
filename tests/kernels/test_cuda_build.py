"""What the compiler made of the CUDA kernels, and that nothing else depends on CUDA. Prints TAP.

usage: test_cuda_build.py SOURCES LIBRARY PROGRAM REPORT...
SOURCES is the folder of the .cu files, PROGRAM a program that must run without CUDA.
"""
import pathlib
import re
import subprocess
import sys

ARCHS = ("sm_80", "sm_90a")
HOPPER = ("sm_90a",)  # files *_sm90.cu

# Frames that are no spill: the slow path of sinf and cosf for large angles.
FRAMES = {"rope_kernel"}

ENTRIES = {"cuda_ops", "cuda_needs"}

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
# ptxas on products of a warpgroup that it takes one by one, or waits for where nobody asked
SERIAL = re.compile(r"\(C75\d\d\)")


def short(symbol):
    """gemm_22_kernel of _Z14gemm_22_kernelPK7GemmJob..., static or not; a_kernel<1,2> of a
    template's _Z8a_kernelILi1ELi2EE..."""
    at = re.match(r"_ZL?(\d+)", symbol) or re.match(r"_ZN\w*?\d+_GLOBAL__N\w*?(\d+)", symbol)
    if not at:
        return symbol
    end = at.end() + int(at.group(1))
    numbers = re.match(r"I((?:Li\d+E)+)E", symbol[end:])
    given = ",".join(re.findall(r"\d+", numbers.group(1))) if numbers else ""
    return symbol[at.end():end] + (f"<{given}>" if given else "")


def rows(reports):
    for path in reports:
        row = None
        for line in pathlib.Path(path).read_text(encoding="utf-8").split("\n"):
            if found := ENTRY.search(line):
                row = {"file": pathlib.Path(path).stem, "kernel": short(found.group(1)),
                       "arch": found.group(2)}
            elif row is not None and (found := FRAME.search(line)):
                row["frame"], stores, loads = map(int, found.groups())
                row["spills"] = stores + loads
            elif row is not None and (found := USED.search(line)):
                row["registers"] = int(found.group(1))
                shared = SHARED.search(line)
                row["shared"] = int(shared.group(1)) if shared else 0
                yield row
                row = None


def written(folder):
    """File, name and architecture of all kernels; of a macro's, of those it is called for."""
    have = set()
    for path in sorted(pathlib.Path(folder).glob("*.cu")):
        text = path.read_text(encoding="utf-8")
        for other in re.findall(r'#include "kernels/cuda/(\w+\.cu)"', text):
            text += (path.parent / other).read_text(encoding="utf-8")
        found = re.findall(r"__global__[^;{]*?(\w+_kernel)\(", text.replace("##", "@"))
        names = {name for name in found if "@" not in name}
        names |= {f"gemm_{a}{b}_kernel" for a, b in re.findall(r"^GEMM_KERNEL\((\d), (\d)\)", text,
                                                               flags=re.M)}
        archs = HOPPER if path.stem.endswith("_sm90") else ARCHS
        have |= {(path.stem, name, arch) for name in names - {"_kernel"} for arch in archs}
    return have


def linked(path):
    return subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout


def main():
    sources, library, program, *reports = sys.argv[1:]
    table = sorted(rows(reports), key=lambda row: (row["file"], row["kernel"], row["arch"]))
    print("# file               kernel                   arch    registers  shared  frame  spills")
    for row in table:
        print(f"# {row['file']:<18} {row['kernel']:<24} {row['arch']:<8}{row['registers']:>9}{row['shared']:>8}"
              f"{row['frame']:>7}{row['spills']:>8}")
    have = {(row["file"], row["kernel"].split("<")[0], row["arch"]) for row in table}
    missing = [f"{file}: {name} for {arch}" for file, name, arch in sorted(written(sources) - have)]
    serial = [line.strip() for path in reports
              for line in pathlib.Path(path).read_text(encoding="utf-8").split("\n")
              if SERIAL.search(line)]
    spilled = [f"{row['file']}: {row['kernel']} for {row['arch']}" for row in table
               if row["spills"] or (row["frame"] and row["kernel"] not in FRAMES)]
    exported = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True,
                              text=True, check=True).stdout.split("\n")
    exported = {line.split()[-1] for line in exported if line}
    checks = [
        ("every kernel is compiled for every architecture", missing or not table),
        ("no kernel spills", spilled),
        ("products of a warpgroup run on", serial),
        ("the library exports its entries alone", exported - ENTRIES),
        ("its entries are exported", ENTRIES - exported),
        ("the library finds all it needs", "not found" in linked(library)),
        ("programs need no CUDA", re.findall(r"\S*(?:cuda|cublas|nccl)\S*", linked(program))),
    ]
    print(f"1..{len(checks)}")
    for i, (name, wrong) in enumerate(checks, 1):
        print(f"{'not ok' if wrong else 'ok'} {i} - {name}")
        if wrong:
            print("#", wrong)
    return any(wrong for _, wrong in checks)


sys.exit(main())
