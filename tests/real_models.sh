#!/usr/bin/env bash
# Quantizes two trained vision transformers with the default recipe and judges them on photographs in onnxruntime.
#
#     tests/real_models.sh PROGRAM PYTHON FOLDER
#
# PROGRAM is fqvit-opt, PYTHON an interpreter with tests/requirements.txt. FOLDER is not part of the repository (weights
# and photographs are not ours to give away); it holds
#     data/vit_tiny.onnx    timm vit_tiny_patch16_224 (augreg), mean and std 0.5
#     data/deit_tiny.onnx   timm deit_tiny_patch16_224, ImageNet mean and std
#     data/calib/           photographs to calibrate on
#     data/eval/            others, prescaled, with labels.txt
#     tools/judge.py        prints figures as JSON
set -euo pipefail

if [ $# -ne 3 ]; then
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
program=$1 python=$2 folder=$3
out=target/real
mkdir -p "$out"

# MODEL PRESET LEAST_SQNR_DB MEAN STD
check() {
    local model=$1 preset=$2 least=$3 mean=$4 std=$5
    local float=$folder/data/$model.onnx quant=$out/$model.q.onnx
    "$program" "$float" -o "$quant" --recipe fq-vit --preset "$preset" --calibrate "$folder/data/calib" </dev/null
    "$program" verify "$float" "$quant" --data "$folder/data/eval" --resize 0 --preset "$preset" \
        --outputs "$out/$model.npz" --quiet </dev/null >/dev/null
    # shellcheck disable=SC2086  # a mean or std is one word or three
    "$python" "$folder/tools/judge.py" "$float" "$quant" --images "$folder/data/eval" \
        --mean $mean --std $std --json --other "$out/$model.npz" >"$out/$model.json"
    "$python" - "$out/$model.json" "$model" "$least" <<'PYTHON'
import json
import sys

path, model, least = sys.argv[1:]
with open(path) as f:
    r = json.loads(f.read().strip().splitlines()[-1])
size = r["mb_quant"] / r["mb_float"]
print(f"{model}: top-1 {r['top1_float']:.3f} -> {r['top1_quant']:.3f}, agreement {r['agree']:.3f}, "
      f"SQNR {r['sqnr_db']} dB (all optimizations {r['sqnr_db_all']} dB), size x{size:.3f}; our own runtime and "
      f"onnxruntime name the same class on {r['other_agree']:.4f}, largest difference {r['other_max_diff']}")
bad = [
    text
    for holds, text in [
        (r["valid"] and r["same_io"] and r["finite"], "the file is not valid, has other ports or gives NaN"),
        (r["sqnr_db"] >= float(least), f"SQNR {r['sqnr_db']} dB is below {least} dB"),
        (r["sqnr_db_all"] >= float(least), f"SQNR {r['sqnr_db_all']} dB with all optimizations is below {least} dB"),
        (r["other_agree"] >= 0.99, f"two runtimes name the same class on {r['other_agree']} only"),
        (size <= 0.30, f"the file has {size:.3f} of the float model's size, more than 0.30"),
    ]
    if not holds
]
sys.exit(f"{model}: " + "; ".join(bad) if bad else 0)
PYTHON
}

check vit_tiny inception 17.5 "0.5" "0.5"
check deit_tiny imagenet 17 "0.485 0.456 0.406" "0.229 0.224 0.225"
