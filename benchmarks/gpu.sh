#!/usr/bin/env bash
# All GPU checks and figures of the project, for whoever has a machine for a quarter of an hour: within LIMIT seconds
# (480), every figure printed as it comes and kept in $OUT/gpu.txt. Wants SmolLM2's weights (docs/tutorials, "Your own language
# model") and DATA, the folder of amazon-scientific. `bash benchmarks/gpu.sh quick` takes the first figures alone.
set -u
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
OUT=${OUT:-$(mktemp -d)} LIMIT=${LIMIT:-480} DATA=${DATA:-../shared/data/amazon-scientific} STARTED=$SECONDS
left() { echo $((LIMIT - SECONDS + STARTED)); }
run() { # seconds at most, then the command
  local most=$1; shift
  [ "$(left)" -lt "$most" ] && most=$(left)
  [ "$most" -lt 10 ] && { echo "left out for time: $*"; return; }
  timeout "$most" "$@" 2>&1 | grep -v -e Warning -e RETRY -e "Loading weights" -e "Writing model" | tail -n 30 | tee -a "$OUT/gpu.txt"
}
step() { local most=$1; shift; run "$most" python3 benchmarks/step.py --set "data.source=$DATA" --set cf.epochs=1 --set data.mf_rank=64 "$@"; }
smollm2="amazon-scientific-smollm2-paper --steps 15 --rounds 1"
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>/dev/null | tee -a "$OUT/gpu.txt"
step 180 $smollm2 --candidates 1 --validate --verbose  # the first process of a bare machine needs over two minutes
step 240 $smollm2 --candidates 8 --profile 20 --verbose  # of them one and a half minutes torch.compile
[ "${1:-}" = quick ] && exit 0
run 100 python3 -m pytest -n 0 -q -m gpu tests
step 100 $smollm2 --candidates 1 --set trial.batch_size=64
step 100 $smollm2 --candidates 1 --set trial.batch_size=64 --set recompute=true
step 100 $smollm2 --candidates 4
step 60 amazon-scientific --candidates 1,8 --set trial.batch_size=64 --rounds 1
step 60 amazon-scientific-idle --candidates 1,4 --rounds 1
step 60 amazon-scientific-ra-rec --candidates 1,4 --rounds 1
