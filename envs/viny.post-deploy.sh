#!/usr/bin/env bash
# Snakemake runs this in the new conda environment, from the clone's root: rules need the package itself too.
set -euo pipefail
python -m pip install --no-deps --quiet .
