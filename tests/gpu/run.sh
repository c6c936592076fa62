#!/usr/bin/env bash
# The tests that need a GPU, from the checkout: tests/gpu/run.sh [options of pytest]
# PYTHON names the interpreter; it needs pytest, torch, triton, cuda-bindings, numpy and platformdirs.
set -eu
cd "$(dirname "$0")/../.."
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# The settings in tests/conftest.py are for Hypothesis, which is not needed here.
exec "${PYTHON:-python3}" -m pytest tests/gpu --noconftest -p no:cacheprovider -W default -v "$@"
