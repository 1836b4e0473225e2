#!/usr/bin/env bash
# Train the transformer on a tokenizer's tokens under SLURM
#
#   sbatch slurm/train_nfig.sh --preset small --tokenizer DIR --data DIR
#
# A process for each GPU of one node, as in `sbatch --gpus=8 slurm/train_nfig.sh ...`. The arguments go to nfig_train, see `nfig_train --help`. The run folder is named after the job,
# and a requeued job keeps its number: when the cluster takes the node back, or the time is up, the next start goes on
# from the last checkpoint. sbatch's own options override the lines below, as in
# `sbatch --time=48:00:00 --partition=gpu slurm/train_nfig.sh ...`.
#SBATCH --job-name=nfig-train
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=%x-%j.out

# What differs between clusters; set it in the environment, as in `VENV=$HOME/nfig/.venv sbatch ...`
REPO=${REPO:-${SLURM_SUBMIT_DIR:-$PWD}}  # the clone
VENV=${VENV:-$REPO/.venv}  # where nfig is installed (`make venv`)
RUN=${RUN:-$REPO/runs/${SLURM_JOB_NAME:-nfig-train}-${SLURM_JOB_ID:-local}}  # the run folder
PROCESSES=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}  # one for each GPU; --batch_size is that of all together
MODULES=${MODULES:-}  # environment modules to load, if any

for m in $MODULES; do module load "$m"; done
set -euo pipefail
[ -x "$VENV/bin/nfig_train" ] || { echo "no nfig_train in $VENV/bin: run 'make venv' in the clone, or set VENV" >&2; exit 1; }
echo "$(date -u +%FT%TZ) nfig_train on $(hostname), start $((${SLURM_RESTART_COUNT:-0} + 1)), run folder $RUN"

start=()  # one process, or one for each GPU
if [ "$PROCESSES" -gt 1 ]; then start=("$VENV/bin/torchrun" --standalone --nproc-per-node "$PROCESSES" --no-python); fi
"${start[@]}" "$VENV/bin/nfig_train" --out "$RUN" "$@" &
training=$!
trap 'echo "the time is nearly up: back into the queue"; scontrol requeue "$SLURM_JOB_ID"' USR1
trap 'kill -TERM "$training"' TERM INT
wait "$training" || wait "$training"  # a signal ends the first wait early; the second has the command's own status
