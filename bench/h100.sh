#!/bin/bash
# What a GPU has to show, in under 20 minutes on one H100: the GPU's tests, speed of generation and of training, and
# growth over depth, batch and size. Writes results/bench_cuda.json and results/growth_cuda.json.
#   bench/h100.sh            (in the repository, after `make venv`)
set -euo pipefail
cd "$(dirname "$0")/.."
PY=${PY:-.venv/bin/python}
$PY -c 'import sys,torch; sys.exit(0 if torch.cuda.is_available() else "PyTorch finds no CUDA device here: install a PyTorch with CUDA, and run this on a machine with a GPU")'
$PY -m pytest -q tests/test_gpu.py
timeout 420 $PY -m bench.gpu --out results
timeout 600 $PY -m bench.scaling --device cuda --depths 16,12,20,24,30 --batches 1,8,64 --sides 256,128,512 --repeats 3 --out results
time "$(dirname "$PY")/nfig_sample_npz" fashion-mnist results/h100-samples --n 50000 --batch_size 512 --part 4096 --device cuda --fast bf16   # what evaluators read; killed and started again, it goes on
echo "done: results/bench_cuda.json, results/growth_cuda.json"
