#!/usr/bin/env bash
# What there is to measure on one GPU, in one command and under ten minutes.
#
# NOT RUN ON A GPU YET: written on a machine without one, where only the part that finds no GPU has been tried.
#
#   [OUT=FOLDER] [DATA=FOLDER] [PYTHON=python] scripts/gpu_bench.sh
#
# OUT   where results go (outputs/gpu_bench), as they come; eight files
# DATA  CIFAR-10 as train/<class>/* and test/<class>/*; without it Table 1 is left out
# WORK  runs and caches of Table 1 (outputs/gpu_bench_work)
#
# Most wanted first; a step that fails or takes too long is noted in steps.txt and the others go on:
#   step.json      ResNet-18 at 32 px: phase 1 in pairs/s at batch 512 and 128, and BYOL's
#   extract.json   CLIP ViT-B/16, random weights, images/s
#   augment.json   views on the device, eager and compiled, against kornia
#   table1.md      Table 1 on CIFAR-10, what needs no download: plain, the random learner and our own BYOL ResNet-18 as
#   table1.json    priors, at 10, 20, 50 % and plain at 100 %; the paper's protocol. As many cells as the time allows,
#                  cheap ones first; the same command goes on with the others
set -u
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-outputs/gpu_bench}
WORK=${WORK:-outputs/gpu_bench_work}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
LIMIT=${LIMIT:-570} # seconds in all
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
SECONDS=0
mkdir -p "$OUT"
: > "$OUT/steps.txt"

# step NAME SECONDS COMMAND...: at most so long; output to log.txt, how it ended to steps.txt
step() {
  local name=$1 limit=$2 begun=$SECONDS left=$((LIMIT - SECONDS)) status
  shift 2
  [ "$limit" -gt "$left" ] && limit=$left
  if [ "$limit" -lt 10 ]; then
    echo "$name: left out, the time is up" | tee -a "$OUT/steps.txt"
    return 1
  fi
  echo "== $name: $*" >> "$OUT/log.txt"
  timeout --signal=TERM --kill-after=20 "$limit" "$@" >> "$OUT/log.txt" 2>&1
  status=$?
  echo "$name: exit $status after $((SECONDS - begun)) s" | tee -a "$OUT/steps.txt"
  return $status
}

rela() { local name=$1 limit=$2; shift 2; step "$name" "$limit" "$PYTHON" -m rela_cli "$@"; }

cell() { # cell NAME key=value ...: one run of Table 1, and the table as it then stands
  local name=$1
  shift
  rela "$name" "$LIMIT" train experiment=table1_cifar10 dataset=image_folder dataset.root="$DATA" \
    "probe.protocols=[rela,lbfgs,knn]" paths.outputs="$WORK" "$@" || return
  "$PYTHON" -m rela_cli table "$WORK" --format md > "$OUT/table1.md" 2>> "$OUT/log.txt"
  "$PYTHON" -m rela_cli table "$WORK" --format json > "$OUT/table1.json" 2>> "$OUT/log.txt"
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv > "$OUT/gpu.txt" 2>&1
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "torch sees no GPU here: nothing to measure" | tee -a "$OUT/steps.txt"
  exit 3
fi
for row in step extract augment; do
  rela "$row" 90 bench "$row" --device cuda --rounds 5 --json "$OUT/$row.json" --markdown
done
if [ -n "${DATA:-}" ]; then
  for budget in 0.1 0.2 0.5; do
    for prior in none random_learner; do cell "$prior-$budget" prior=$prior budget=$budget; done
  done
  cell none-1.0 prior=none budget=1.0 paths.run="$WORK/runs/teacher"
  if [ -f "$WORK/runs/teacher/result.json" ]; then
    for budget in 0.1 0.2 0.5; do
      cell "own-$budget" prior=rela_run prior.run="$WORK/runs/teacher" budget=$budget
    done
  fi
else
  echo "table1: left out, DATA is not set" | tee -a "$OUT/steps.txt"
fi
echo "$SECONDS s in all; results in $OUT" | tee -a "$OUT/steps.txt"
