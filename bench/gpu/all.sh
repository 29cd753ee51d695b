#!/usr/bin/env bash
# What only a GPU can say, on one H100, in order of value:   bench/gpu/all.sh [RESULTS]
#
#   A part takes ten minutes at most. One that has a line in RESULTS (results.jsonl) is not run again, so this can be started again
#   after whatever stopped it; a part that failed leaves its output in RESULTS.d/PART.log and is tried again next time.
#   bench/gpu/all.sh --tiny [RESULTS] runs every part on the CPU at toy size: it proves the parts, and says nothing of speed.
#   `eight_rows` reads the raw files and SmolLM2 of MEDSCHOOL_STORE, as `medschool fetch quickstart` puts them; --tiny invents them.
set -u
cd "$(dirname "$0")/../.." || exit 1
tiny= size=false; [ "${1:-}" = --tiny ] && { tiny=--tiny size=true; shift; }
results=${1:-results.jsonl}
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
mkdir -p "$results.d"

# every rank of DeepSpeed on one card: what it reaches, whether it resumes, what it needs, how others do, what it is for
for part in mfu_zero1 mfu_zero2 mfu_zero3 drill_zero3 memory fsdp eight_rows serving; do
  if grep -qs "^{\"part\": \"$part\", \"tiny\": $size" "$results"; then echo "$part: has a result"; continue; fi
  echo "$part: $(date +%T)"
  timeout --kill-after=30 "${PART_S:-600}" "$python" bench/gpu/parts.py "$part" "$results" $tiny >"$results.d/$part.log" 2>&1 \
    && tail -n 1 "$results" || echo "$part: no result (exit code $?), see $results.d/$part.log"
done
