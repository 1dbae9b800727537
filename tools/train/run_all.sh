#!/bin/bash
# The whole recipe, from the corpus to the exported pair, on one machine with any number of GPUs.
#   run_all.sh CORPUS EVAL TOKENIZER_DIR WORK [quick]
# Every stage stops at its time budget (seconds, below), its learning rate follows the clock.
set -euo pipefail
corpus=$1 eval=$2 tokenizer=$3 work=$4 quick=${5:-}
here=$(cd "$(dirname "$0")" && pwd)
gpus=$(nvidia-smi -L | wc -l)
if [ -n "$quick" ]; then
    base=${BASE:-20} own=${OWN:-12} post=${POST:-12} generated=${GENERATED:-12} draft=${DRAFT:-15} limit=12
else
    base=${BASE:-330} own=${OWN:-60} post=${POST:-160} generated=${GENERATED:-150} draft=${DRAFT:-440} limit=320
fi
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4
mkdir -p "$work/run" "$work/pair/target" "$work/pair/draft"
cd "$here"
parallel() { torchrun --standalone --nproc-per-node "$gpus" "$@"; }
stamp() { echo "=== $* $(date -u +%T)"; }

stamp prepare
[ -f "$work/data/prompts.npz" ] ||
    python3 prepare.py --corpus "$corpus" --tokenizer "$tokenizer/tokenizer.json" --out "$work/data" | tail -1
stamp base
[ -f "$work/run/base.pt" ] || parallel train_target.py --data "$work/data" --out "$work/run" --save base.pt --seconds "$base" --floor 0.05
stamp own
parallel generate.py --data "$work/data" --folder "$work/run" --tokenizer "$tokenizer/tokenizer.json" \
    --checkpoint base.pt --name own --clean --seconds "$own" --prompt-batches 6 --seed 11
stamp post
parallel train_target.py --data "$work/data" --out "$work/run" --init base.pt --save joint.pt --seconds "$post" \
    --own-share 0.65 --draft-loss 0.6 --gamma 4 --muon-lr 0.008 --adam-lr 0.0012 --decay 0.95 --seed 12
stamp generated
python3 export.py --folder "$work/run" --target "$work/pair/target" --draft "$work/pair/draft"
cp "$tokenizer"/tokenizer*.json "$work/pair/target/"
parallel generate.py --data "$work/data" --folder "$work/run" --tokenizer "$tokenizer/tokenizer.json" \
    --checkpoint joint.pt --name generated --seconds "$generated" --prompt-batches 24 --seed 13
stamp joint evaluation
[ -n "$quick" ] || python3 evaluate.py --target "$work/pair/target" --draft "$work/pair/draft" --eval "$eval" --limit 64 \
    --temperatures 0 --samples 1 || true
stamp draft
parallel train_drafter.py --folder "$work/run" --seconds "$draft"
stamp evaluate
python3 export.py --folder "$work/run" --draft "$work/pair/draft"
python3 evaluate.py --target "$work/pair/target" --draft "$work/pair/draft" --eval "$eval" --limit "$limit" \
    --json "$work/pair/acceptance.json"
stamp done
touch "$work/done"
