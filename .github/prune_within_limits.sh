#!/usr/bin/env bash
# The step of action.yml: prune as $RECIPE says, within its limits and those of $REQUIRE (one a line), with the flags of
# $ARGUMENTS. JSON, report and record go into a folder that is kept also where a limit is missed.
set -uo pipefail
evidence=${RUNNER_TEMP:-/tmp}/onnxprune-evidence
mkdir -p "$evidence"
limits=()
while IFS= read -r limit; do
    limit=$(echo "$limit" | xargs)
    if [ -n "$limit" ]; then limits+=(--require "$limit"); fi
done <<< "${REQUIRE:-}"
# shellcheck disable=SC2086 # several flags in one text
onnxprune run "$RECIPE" ${limits[@]+"${limits[@]}"} ${ARGUMENTS:-} --json --force \
    --report "$evidence/report.html" --record "$evidence/record.json" > "$evidence/pruning.json"
status=$?
model=$(python - "$evidence/pruning.json" <<'PY'
import json, sys
try:
    print(json.load(open(sys.argv[1])).get("output") or "")
except ValueError:
    print("")
PY
)
{
    echo "evidence=$evidence"
    echo "json=$evidence/pruning.json"
    echo "model=$model"
} >> "${GITHUB_OUTPUT:-/dev/stdout}"
exit "$status"
