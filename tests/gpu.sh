#!/usr/bin/env bash
# Everything that needs a card, in one go: tests/gpu.sh [RESULTS]
#
# Builds into build-gpu, measures what the card can do, runs every op on it against the oracle and
# once more in a graph of launches, the golden model, the trainer and the engine (equal bits, passes
# as graphs and op by op), the checkers of compute-sanitizer on small sizes, a table of speeds as
# shares of the ceilings with the time of a token op by op and as a graph, and a short CISPO run. On
# Hopper all but the last is done with the general kernels, too. Logs go to RESULTS
# (build-gpu/results). Ends with one line a step; 0 when none failed, 77 without a card.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

dir=build-gpu
results=$(mkdir -p "${1:-$dir/results}" && cd "${1:-$dir/results}" && pwd)
lines=()
failed=0
export PATH="$PATH:/usr/local/cuda/bin"

say() { printf '%s\n' "$*"; }

# step NAME SECONDS COMMAND...: output to RESULTS/NAME.log, one line for the end.
step() {
    local name=$1 seconds=$2 start=$SECONDS rc=0
    shift 2
    say "== $name"
    timeout "$seconds" "$@" >"$results/$name.log" 2>&1 || rc=$?
    case $rc in
    0) lines+=("ok      $name ($((SECONDS - start)) s)") ;;
    77) lines+=("skipped $name: $(tail -n 1 "$results/$name.log")") ;;
    *)
        lines+=("FAILED  $name ($rc): $results/$name.log")
        failed=1
        tail -n 20 "$results/$name.log"
        ;;
    esac
}

build() {
    [ -d $dir/meson-info ] || meson setup $dir -Dcuda=enabled -Dbuildtype=release || return 1
    ninja -C $dir
}

ceilings() {
    nvcc -O3 tests/kernels/gpu_ceiling.cu -lcublas -o $dir/gpu_ceiling && $dir/gpu_ceiling
}

ops() { $dir/tests/kernels/test_kernels_cuda_card --verbose; }

hopper() { [ "$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader -i 0)" = 9.0 ]; }

model() { $dir/tests/kernels/test_kernels_cuda_model_card --verbose; }

# check TOOL: on cases of fixed small size, each kernel family once, alone and in a graph
check() {
    local args=() case
    command -v compute-sanitizer >/dev/null || { say "compute-sanitizer is not installed"; return 77; }
    for case in weight attention lightning one_expert; do args+=(-p "/cuda_card/$case"); done
    compute-sanitizer --tool "$1" --error-exitcode 1 \
        $dir/tests/kernels/test_kernels_cuda_card "${args[@]}"
}

bench() {
    local copy gemm
    read -r copy gemm <"$results/ceilings.log" || return 1
    say "ceilings of this run: copy $copy GB/s, bf16 product $gemm TFLOP/s"
    $dir/tests/kernels/bench_cuda "$copy" "$gemm"
}

cispo() {
    local work assay=$dir/env/assay
    ASSAY_OPS=cuda $assay doctor --json | grep -q '"models run on cuda' || {
        ASSAY_OPS=cuda $assay doctor | grep '^ops'
        return 77
    }
    work=$(mktemp -d) || return 1
    $assay task generate repair --seed 1 --count 500 --split train --out "$work/train.jsonl" &&
        ASSAY_OPS=cuda $assay train examples/repair.conf --set "run.dir=$work/run" \
            --set "tasks.train=$work/train.jsonl" --set eval.every=1000 --set warmup.updates=30 \
            --set run.updates=3 --set rollout.groups=4 --set rollout.turns=2
    local rc=$?
    rm -rf "$work"
    return $rc
}

nvidia-smi >"$results/card.log" 2>&1 || { say "no card: $(head -n 1 "$results/card.log")"; exit 77; }
cat "$results/card.log"
export -f say build ceilings ops model check bench cispo
export dir results
step build 900 bash -c build
[ $failed -eq 0 ] || exit 1
step ceilings 120 bash -c ceilings
both() { step "$@"; hopper && ASSAY_CUDA=sm80 step "$1-sm80" "${@:2}"; }
both ops 120 bash -c ops
both model 60 bash -c model
for tool in memcheck racecheck synccheck; do both $tool 180 bash -c "check $tool"; done
both bench 180 bash -c bench
step cispo 180 bash -c cispo
cat "$results"/bench*.log
printf '%s\n' "${lines[@]}"
exit $failed
