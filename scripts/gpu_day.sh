#!/usr/bin/env bash
# The day of the GPU: what there is to check and to measure on one, in one command of eight minutes.
#
# NOT RUN ON A GPU YET: written on a machine without one, and rehearsed there with small numbers.
#
#   [OUT=FOLDER] [DATA=PLACE] [PYTHON=python] [LIMIT=480] scripts/gpu_day.sh
#   SMALL=1 scripts/gpu_day.sh                        the rehearsal: everything once, small, on the CPU
#
# OUT    where results go (outputs/gpu_day), runs and caches too. A second call goes on: what is there is not done again
# DATA   CIFAR-10 as a folder or an archive with train/<class>/* and test/<class>/*; without it Table 1 is left out
# LIMIT  seconds in all
# PARTS  some of the parts: sanity, step, resnet50, extract, after, table1
#
# The packages hydra-core, omegaconf, lightly, open_clip_torch, ftfy, wcwidth may lie in any folder of PYTHONPATH.
#
#   lines.jsonl   one line for each check and each figure, written when it is known
#   results.md    the same as a page, with Table 1 as it stands
#   log.txt       all that the parts have printed
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" scripts/gpu_day.py
