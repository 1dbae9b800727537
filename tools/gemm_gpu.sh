#!/usr/bin/env bash
# One visit to a Hopper GPU: are the kernels right, how fast are they, are they clean. Takes prebuilt
# binaries, so the GPU waits for no compiler but the kernels' own.
#
#   tools/gemm_gpu.sh OUT [BUILD]
#
# OUT receives logs and JSON; BUILD (default: build) holds gemm_gpu_test, scoring_gpu_test
# and gemm_bench. Every step has
# a time limit, so a kernel that hangs costs its own step; its name is the last in its log. Set
# LD_LIBRARY_PATH where NVRTC or cuBLASLt are not on the loader's path, DEEPGEMM_PYTHON to time DeepGEMM too
# (bench/peers/README.md).
set -uo pipefail
out=${1:?usage: tools/gemm_gpu.sh OUT [BUILD]}
bin=$(cd "${2:-build}" && pwd)
mkdir -p "$out"
peer=()
if [[ -n ${DEEPGEMM_PYTHON:-} ]]; then
  peer=(--deepgemm "$DEEPGEMM_PYTHON $(dirname "${BASH_SOURCE[0]}")/../bench/peers/deepgemm.py")
fi

step() { # step NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  timeout -s KILL "$limit" "$@" >"$out/$name.log" 2>&1
  printf '%-22s rc %-3s %3d s  %s\n' "$name" $? $((SECONDS - start)) \
    "$(grep -E 'PASSED|FAILED|geometric|ERROR SUMMARY' "$out/$name.log" | tail -n 1 | cut -c1-100)"
}

step tails 60 "$bin/gemm_gpu_test" --gtest_filter='GemmGpu.Tails*'
step candidates 150 "$bin/gemm_gpu_test" --gtest_filter='*GemmCandidates*'
step rest 90 "$bin/gemm_gpu_test" --gtest_filter='GemmGpu.*-GemmGpu.Tails*'
step scoring 120 "$bin/scoring_gpu_test"
step bench_scoring 120 "$bin/gemm_bench" --scoring --json "$out/scoring.json"
step bench_fp8 300 "$bin/gemm_bench" "${peer[@]}" --json "$out/gemm_fp8.json"
step bench_bf16 300 "$bin/gemm_bench" "${peer[@]}" --bf16 --json "$out/gemm_bf16.json"
for tool in memcheck racecheck synccheck; do
  step "$tool" 90 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    "$bin/gemm_gpu_test" --gtest_filter='GemmGpu.Tails*:GemmGpu.ACapturedGraph*'
  step "${tool}_scoring" 90 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    "$bin/scoring_gpu_test" --gtest_filter='*Extreme*:*EveryFp4*:*ACaptured*'
done
grep -hE '^(dense|grouped|group|geometric)' "$out/bench_fp8.log" "$out/bench_bf16.log"
grep -hE '^\[  FAILED|worst at|rows differ' "$out"/*.log | sort | uniq -c | sort -rn | head -n 40
