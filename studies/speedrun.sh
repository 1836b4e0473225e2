#!/usr/bin/env bash
# From nothing to new clothes and their score: Fashion-MNIST, two processor cores, no GPU.
#
#   bash studies/speedrun.sh [FOLDER]        default: runs/speedrun; started again, it goes on
#
# The whole method in four commands: a tokenizer whose first tokens hold the layout (stage dropout),
# a transformer on its tokens, samples, and what they are worth beside what came out here before.
set -eu
cd "$(dirname "$0")/.."
[ ! -d .venv/bin ] || PATH="$PWD/.venv/bin:$PATH"
out=${1:-runs/speedrun}
data=fashion-mnist
began=$(date +%s)

# 1. Images to tokens and back: 1,500 steps of 64 images
nfig_train_tokenizer --preset speedrun --data $data --out "$out/tokenizer"

# 2. Tokens from tokens: 3,000 steps of 64 images; the images are encoded once, then only read
nfig_train --preset speedrun --tokenizer "$out/tokenizer" --data $data --out "$out/model"

# 3. Eight samples of each class, and the same growing stage by stage
nfig_sample --model "$out/model" --n 8 --out "$out/samples"
nfig_paper figure4 "$out/model" --out "$out/figure4"

# 4. The score: reconstructions, then 2,000 samples against the test images
nfig_evaluate tokenizer "$out/tokenizer" --data $data --n 2000 --out "$out/tokenizer.json"
nfig_evaluate generator "$out/model" --data $data --split test --n 2000 --out "$out/model.json"

python -m studies.speedrun "$out" --minutes $((($(date +%s) - began) / 60))
