#!/bin/bash
# What a GPU has to show, in about 25 minutes on one H100, the most wanted first: images and training steps a second, the
# GPU's tests, growth over depth, batch and size, and the 50,000 samples that evaluators read.
#   bench/h100.sh            (in the repository, after `make venv`)
# A step that fails, or takes longer than its time, costs itself only; every number is in results/ as soon as it is measured.
# What there was no time for is listed, and can be asked for alone, as what the parts of a fast decoder are worth:
#   .venv/bin/python -m bench.gpu --rows "series:128 without-beside:128 without-search:128 without-joined:128" --out /tmp/extras
# A trial without a GPU: DEVICE=cpu PRESET=tiny OUT=/tmp/trial bench/h100.sh
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
PY=${PY:-.venv/bin/python}
DEVICE=${DEVICE:-cuda}
PRESET=${PRESET:-nfig_d16}
OUT=${OUT:-results}
SHARE=${SHARE:-100}  # of the times below, per cent
SAMPLES=${SAMPLES:-50000}
if [ "$DEVICE" = cuda ]; then
  $PY -c 'import sys,torch; sys.exit(0 if torch.cuda.is_available() else "PyTorch finds no CUDA device here: install a PyTorch with CUDA, and run this on a machine with a GPU")' || exit 1
  DEPTHS=16,24,12,20,30 BATCHES=64,8,1 SIDES=256,128,512
  ROWS=()
else
  DEPTHS=2,1 BATCHES=1,2 SIDES=32
  ROWS=(--rows "images:2 tokens:2 training:2 series:2 without-beside:2 waiting:0" --repeats 1)
fi
failed=()

# step NAME SECONDS COMMAND...: at most so long; what went wrong is told at the end
step() {
  local name=$1 seconds=$(($2 * SHARE / 100)) status=0
  shift 2
  echo "== $name"
  timeout --kill-after=10 "$seconds" "$@" || status=$?
  [ "$status" -eq 0 ] || failed+=("$name (status $status)")
}

step "images and training steps a second" 960 "$PY" -m bench.gpu --preset "$PRESET" --device "$DEVICE" --out "$OUT" --budget $((900 * SHARE / 100)) "${ROWS[@]}"
step "tests" 300 "$PY" -m pytest -q tests/test_gpu.py
step "growth" 480 "$PY" -m bench.scaling --preset "$PRESET" --device "$DEVICE" --depths $DEPTHS --batches $BATCHES --sides $SIDES --repeats 3 --out "$OUT"
step "samples" 600 "$(dirname "$PY")/nfig_sample" --model fashion-mnist --npz "$OUT/h100-samples" --n "$SAMPLES" --set run.batch_size=512 run.part=4096 --device "$DEVICE" --fast bf16  # killed and started again, it goes on
for f in "${failed[@]:-}"; do [ -z "$f" ] || echo "failed: $f"; done
echo "what was measured is in $OUT"
[ ${#failed[@]} -eq 0 ]
