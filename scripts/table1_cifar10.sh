#!/usr/bin/env bash
# The paper's Table 1 on CIFAR-10, in the mini profile: budget 0.5 and everything, plain and five priors, three seeds.
# DATA=FOLDER scripts/table1_cifar10.sh     FOLDER holds train/<class>/* and test/<class>/*
# 18 runs of 2 to 5 minutes on two cores (docs/results.md); run again, it makes only what is missing.
set -euo pipefail

rela=${RELA:-rela}
profile=${PROFILE:-mini}
out=${OUT:-outputs/table1-cifar10-$profile}

if [ -z "${DATA:-}" ]; then
    echo "say where the images are: make table1-cifar10 DATA=FOLDER (train/<class>/* and test/<class>/* in it)" >&2
    exit 2
fi
if [ "$profile" != mini ]; then
    echo "PROFILE=$profile is not known; there is mini" >&2
    exit 2
fi

common=("experiment=cifar10_$profile" "dataset.root=\"$DATA\"" "paths.outputs=\"$out\"" "seed=0,1,2")
"$rela" train -m "${common[@]}" budget=0.5 prior=none,random_learner,random,patches,embedded
"$rela" train -m "${common[@]}" budget=1.0 prior=none
"$rela" table "$out" --format md > "$out/table.md"
"$rela" table "$out"
"$rela" table "$out" --cost --protocol lbfgs
