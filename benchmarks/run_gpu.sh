#!/usr/bin/env bash
# The GPU benchmark of docs/performance.md in one run: an 8B Llama shape with random weights, then a small model, beside
# plain transformers; then that model's predictions on 200 prompts beside those of a CPU, where a reference is given.
#
#   benchmarks/run_gpu.sh [OUT]                    on a GPU
#   DEVICE=cpu benchmarks/run_gpu.sh [OUT]         the same at tiny size
#   MODEL=NAME REFERENCE=FILE                      another model; float32 scores of a CPU, written there by
#                                                  bench_gpu.py --model NAME --device cpu --write-reference FILE
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-gpu.md}
model=${MODEL:-smollm2-135m}
device=${DEVICE:-cuda}
run=("${PYTHON:-python}" "$here/bench_gpu.py" --device "$device" --table "$out")
if [ "$device" = cpu ]; then
    "${run[@]}" --shape tiny
    "${run[@]}" --model "$model" --queries 4 --repeats 1
else
    "${run[@]}" --shape "${SHAPE:-8b}"
    "${run[@]}" --model "$model" ${REFERENCE:+--reference "$REFERENCE"}
fi
