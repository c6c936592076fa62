#!/usr/bin/env bash
# What is claimed of elastic kernels, on this machine's GPU: tests/gpu/prove.sh FOLDER
#
# First what may run side by side: the corpus and all programs of the zoo, interrupted at random, and the
# corpus under compute-sanitizer. Then, alone, what is timed. FOLDER has a log of each and the records.
# About eight minutes with 16 cores. PYTHON names the interpreter, as for run.sh.
set -u
cd "$(dirname "$0")/../.."
folder=${1:?where to write}
python=${PYTHON:-python3}
mkdir -p "$folder"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

beside() {  # NAME COMMAND...: in the background, into its own log, for LIMIT seconds (600) at most
    local name=$1
    shift
    (timeout "${LIMIT:-600}" "$@" > "$folder/$name.log" 2>&1; echo "$name: exit $?" >> "$folder/exits.txt") &
}

: > "$folder/exits.txt"
for kind in cuda triton; do
    beside "$kind" "$python" -m pytest tests/gpu/test_elastic.py --noconftest -p no:cacheprovider -W default -q -k "$kind or thin or paused"
done
for i in 0 1 2 3; do
    beside "storm$i" "$python" benchmarks/interruptions.py --out "$folder/storm$i.json" --samples 0 --inferences 100 --part "$i/4"
done
for tool in memcheck racecheck; do
    beside "$tool" compute-sanitizer --tool "$tool" --print-limit 8 --error-exitcode 1 "$python" tests/gpu/sanitized.py
done
wait
cat "$folder/exits.txt"
"$python" benchmarks/elastic_cost.py --out "$folder/elastic-cost.json" | tee "$folder/cost.log"
"$python" benchmarks/interruptions.py --out "$folder/leaving.json" --inferences 0 --samples 200 | tee "$folder/leaving.log"
! grep -qv "exit 0$" "$folder/exits.txt"
