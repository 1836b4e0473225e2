#!/usr/bin/env bash
# Train a tokenizer (FR-VAE) under SLURM
#
#   sbatch slurm/train_tokenizer.sh --preset small --data DIR
#
# A process for each GPU of each node, as in `sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=64 slurm/train_tokenizer.sh ...`;
# --batch_size is that of all together. The arguments go to nfig_train_tokenizer, see `nfig_train_tokenizer --help`. The run folder is named after the job, and a requeued job keeps
# its number. When the cluster takes the node back, or the time is nearly up, the trainer saves, the job goes back into the queue, and
# the next start goes on from there. sbatch's own options overrule the lines below, as in
# `sbatch --time=48:00:00 --partition=gpu slurm/train_tokenizer.sh ...`.
#SBATCH --job-name=nfig-tokenizer
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-gpu=64G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
#SBATCH --output=%x-%j.out

# What differs between clusters; set it in the environment, as in `VENV=$HOME/nfig/.venv sbatch ...`
REPO=${REPO:-${SLURM_SUBMIT_DIR:-$PWD}}  # the clone
VENV=${VENV:-$REPO/.venv}  # where nfig is installed (`make venv`)
RUN=${RUN:-$REPO/runs/${SLURM_JOB_NAME:-nfig-tokenizer}-${SLURM_JOB_ID:-local}}  # the run folder, on a disk that all nodes see
PROCESSES=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}  # on each node
GRACE=${GRACE:-150}  # seconds that saving may take; less than the warning time of --signal above
DEVICE=${DEVICE:-cuda}  # a node without a usable GPU ends the job with a sentence, not after days on its processor
MODULES=${MODULES:-}  # environment modules to load, if any

source "$REPO/slurm/start.sh"
train nfig_train_tokenizer --out "$RUN" --device "$DEVICE" "$@"
