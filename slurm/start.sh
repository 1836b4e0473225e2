# shellcheck shell=bash
# What the jobs beside it share; sourced by them. Wants REPO, VENV, MODULES, and for `train` PROCESSES and GRACE

for m in $MODULES; do module load "$m"; done
set -euo pipefail
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # since SLURM 22.05 srun does not take this over by itself

# need COMMAND: is it installed where VENV says?
need() {
  [ -x "$VENV/bin/$1" ] || { echo "no $1 in $VENV/bin: run 'make venv' in the clone, or set VENV" >&2; exit 1; }
  echo "$(date -u +%FT%TZ) $1 on ${SLURM_JOB_NODELIST:-$(hostname)}, start $((${SLURM_RESTART_COUNT:-0} + 1))"
}

# back: into the queue with this job
back() { echo "back into the queue"; scontrol requeue "$SLURM_JOB_ID"; }

# warned: SLURM says that the time is nearly up. The trainers finish their step, save and leave; if that takes longer than GRACE seconds, their last checkpoint has to do
warned() {
  echo "the time is nearly up: asking the trainers to save"
  requeue=yes
  scancel --signal=USR1 "$SLURM_JOB_ID" || true  # reaches every process of the job but this one
  (sleep "$GRACE" && back) &
  late=$!
}

# train COMMAND ARGUMENTS: PROCESSES processes on each node; they meet on the first one. Launcher and shell let the signal pass
train() {
  need "$1"
  local first port status=0
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  port=$((20000 + SLURM_JOB_ID % 20000))
  requeue=
  # shellcheck disable=SC2016  # "$@" is for the inner shell
  srun --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c 'trap "" USR1; exec "$@"' train \
    "$VENV/bin/torchrun" --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$PROCESSES" --rdzv-backend c10d \
    --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" --rdzv-endpoint "$first:$port" --no-python "$VENV/bin/$1" "${@:2}" &
  local training=$!
  trap warned USR1
  trap 'kill -TERM "$training"' TERM INT
  while kill -0 "$training" 2>/dev/null; do status=0; wait "$training" || status=$?; done  # a signal ends a wait early
  if [ -n "$requeue" ]; then kill "$late" || true; fi
  if [ "$status" -ne 0 ] && [ -n "$requeue" ]; then back; fi
  return "$status"
}
