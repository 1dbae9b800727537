#!/bin/bash
# The whole recipe, from the corpus to the exported pair, on one machine with any number of GPUs.
#   run_all.sh CORPUS EVAL TOKENIZER_DIR WORK [quick]
#   PAIR=DIR run_all.sh ...    goes on from DIR/demo-target and DIR/demo-draft instead of training the first pair
# Every stage stops at its time budget (seconds, below), its learning rate follows the clock.
set -euo pipefail
corpus=$1 eval=$2 tokenizer=$3 work=$4 quick=${5:-}
here=$(cd "$(dirname "$0")" && pwd)
gpus=$(nvidia-smi -L | wc -l)
if [ -n "$quick" ]; then
    base=20 own=12 post=12 teach=12 distil=12 generated=12 draft=15 limit=12
else
    base=330 own=70 post=160 teach=330 distil=200 generated=150 draft=255 limit=320
fi
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4
run=$work/run pair=$work/pair
mkdir -p "$run" "$pair/target" "$pair/draft"
cd "$here"
parallel() { torchrun --standalone --nproc-per-node "$gpus" "$@"; }
stamp() { echo "=== $* $(date -u +%T)"; }
train() { parallel train_target.py --data "$work/data" --out "$run" "$@"; }
answer() { parallel generate.py --data "$work/data" --folder "$run" --tokenizer "$tokenizer/tokenizer.json" "$@"; }
export_pair() {
    python3 export.py --folder "$run" --target "$pair/target" --draft "$pair/draft"
    cp "$tokenizer"/tokenizer*.json "$pair/target/"
}

stamp prepare
[ -f "$work/data/prompts.npz" ] ||
    python3 prepare.py --corpus "$corpus" --tokenizer "$tokenizer/tokenizer.json" --out "$work/data" | tail -1
if [ -z "${PAIR:-}" ]; then
    stamp base
    train --save base.pt --seconds "$base" --floor 0.05
    stamp own
    answer --checkpoint base.pt --name own --clean --seconds "$own" --prompt-batches 6 --seed 11
    stamp post
    train --init base.pt --save first.pt --mix decay --seconds "$post" \
        --own-share 0.65 --draft-loss 0.6 --gamma 4 --muon-lr 0.008 --adam-lr 0.0012 --decay 0.95 --seed 12
    rm "$run"/own.*.npz  # the next stages answer anew
    start=(--init first.pt)
else
    start=(--pair "$PAIR/demo-target" "$PAIR/demo-draft")
fi
stamp teach
train "${start[@]}" --save taught.pt --mix teach --answers --seconds "$teach" \
    --rows 32 --draft-loss 0.8 --gamma 4 --muon-lr 0.011 --adam-lr 0.002 --decay 0.85 --warmup 0.02 --floor 0.1 --seed 21
stamp own
answer --checkpoint taught.pt --name own --clean --seconds "$own" --prompt-batches 4 --seed 22
stamp distil
train --init taught.pt --save joint.pt --mix teach --answers --own-share 0.7 --seconds "$distil" \
    --rows 32 --draft-loss 0.8 --gamma 4 --muon-lr 0.005 --adam-lr 0.0008 --decay 0.95 --seed 23
export_pair
stamp joint evaluation
python3 evaluate.py --target "$pair/target" --draft "$pair/draft" --eval "$eval" --limit "$((limit < 64 ? limit : 64))" \
    --temperatures 0 --samples 4 --json "$pair/joint.json" || true
touch "$work/joint"
stamp generated
answer --checkpoint joint.pt --name generated --seconds "$generated" --prompt-batches 8 --seed 24
stamp draft
parallel train_drafter.py --folder "$run" --seconds "$draft" --rows 16 --muon-lr 0.006 --adam-lr 0.0012
stamp evaluate
export_pair
python3 evaluate.py --target "$pair/target" --draft "$pair/draft" --eval "$eval" --limit "$limit" \
    --prompts "$work/data/prompts.npz" --json "$pair/acceptance.json"
stamp done
touch "$work/done"
