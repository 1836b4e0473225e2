#!/usr/bin/env bash
# What has to be measured again when a bundled model is replaced: run at the root of the repository.
#   studies/bundled.sh NAME      NAME is what Figure 4's page calls the new model, as stage-dropout
# Then execute the lessons 64 to 66 and 85, and the pages 90, 91, 93 and 94, which read the files.
set -euo pipefail
name=$1
nfig_paper figure4 "$name=fashion-mnist" --labels 0,5,8,9 --n 1000 --out results/figure_4
nfig_evaluate generator fashion-mnist --data fashion-mnist --n 1000 \
  --out results/analyses/generator-fashion-mnist.json
python -m studies.expected --write
