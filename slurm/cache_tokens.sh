#!/usr/bin/env bash
# Encode a data set into a token cache, once for all runs, under SLURM
#
#   sbatch --array=0-7 slurm/cache_tokens.sh --tokenizer RUN --data DIR
#
# An array: each of its jobs takes its share, and whoever is last puts the parts together. The arguments go to nfig_cache_tokens, see
# `nfig_cache_tokens --help`. What is done stays done: a job that is requeued, or the same command once more, does what is missing.
# sbatch's own options overrule the lines below.
#SBATCH --job-name=nfig-tokens
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-gpu=32G
#SBATCH --time=8:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out

# What differs between clusters; set it in the environment, as in `VENV=$HOME/nfig/.venv sbatch ...`
REPO=${REPO:-${SLURM_SUBMIT_DIR:-$PWD}}  # the clone
VENV=${VENV:-$REPO/.venv}  # where nfig is installed (`make venv`)
OUT=${OUT:-$REPO/runs/tokens}  # the cache, on a disk that all nodes see
DEVICE=${DEVICE:-cuda}  # a node without a usable GPU ends the job with a sentence, not after days on its processor
MODULES=${MODULES:-}  # environment modules to load, if any

source "$REPO/slurm/start.sh"
need nfig_cache_tokens
srun "$VENV/bin/nfig_cache_tokens" "$@" --device "$DEVICE" --out "$OUT" --shard "${SLURM_ARRAY_TASK_ID:-0}/${SLURM_ARRAY_TASK_COUNT:-1}"
