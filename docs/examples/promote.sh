#!/bin/sh
# Prune a model, check it against its limits, and put it where the service reads it, only if all of that went well.
#
#     docs/examples/promote.sh MODEL.onnx EVAL.npz LIVE_FOLDER
#
# The file that is live changes in one step, or not at all. Exit status: that of onnxprune.
set -eu
model=$1 eval=$2 live=$3
name=$(basename "$model" .onnx)
work=$(mktemp -d "$live/.promote.XXXXXX")  # on the same disk, so that the last step is a rename
trap 'rm -rf "$work"' EXIT

onnxprune "$model" -o "$work/$name.onnx" --record "$work/$name.json" \
    --sparsity "${SPARSITY:-0.5}" --pack --eval-data "$eval" \
    --require "metric_drop<=${MOST_DROP:-0.01}" --require "size<=${MOST_SIZE:-0.6}"
onnxprune verify "$model" "$work/$name.onnx" --record "$work/$name.json"

mv "$work/$name.json" "$live/$name.json"
mv "$work/$name.onnx" "$live/$name.onnx"
echo "live: $live/$name.onnx"
