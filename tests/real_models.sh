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
#     tools/judge.py, tools/judge_openvino.py   print figures as JSON
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
    local float=$folder/data/$model.onnx quant=$out/$model.q.onnx integer=$out/$model.integer.onnx plan=$out/$model.yaml
    rm -f "$plan"
    "$program" "$float" -o "$quant" --recipe fq-vit --preset "$preset" --calibrate "$folder/data/calib" --plan "$plan" \
        </dev/null
    # The other target, from the same decisions.
    "$program" "$float" -o "$integer" --plan "$plan" --target integer --no-verify </dev/null >/dev/null
    "$program" verify "$float" "$integer" --data "$folder/data/eval" --resize 0 --preset "$preset" \
        --outputs "$out/$model.npz" --quiet </dev/null >/dev/null
    # shellcheck disable=SC2086  # a mean or std is one word or three
    "$python" "$folder/tools/judge.py" "$float" "$integer" --images "$folder/data/eval" \
        --mean $mean --std $std --json --other "$out/$model.npz" >"$out/$model.integer.json"
    # shellcheck disable=SC2086
    "$python" "$folder/tools/judge.py" "$float" "$quant" --images "$folder/data/eval" \
        --mean $mean --std $std --json >"$out/$model.json"
    # shellcheck disable=SC2086
    "$python" "$folder/tools/judge_openvino.py" "$float" "$quant" --images "$folder/data/eval" --limit 100 \
        --mean $mean --std $std --json >"$out/$model.openvino.json"
    "$python" - "$out/$model" "$model" "$least" <<'PYTHON'
import json
import sys

path, model, least = sys.argv[1:]
read = lambda kind: json.loads(open(f"{path}{kind}.json").read().strip().splitlines()[-1])
bad = []
for target, r in [("qdq", read("")), ("integer", read(".integer"))]:
    size = r["mb_quant"] / r["mb_float"]
    print(f"{model} {target}: top-1 {r['top1_float']:.3f} -> {r['top1_quant']:.3f}, agreement {r['agree']:.3f}, "
          f"SQNR {r['sqnr_db']} dB (all optimizations {r['sqnr_db_all']} dB), size x{size:.3f}")
    bad += [
        f"{target}: {text}"
        for holds, text in [
            (r["valid"] and r["same_io"] and r["finite"], "the file is not valid, has other ports or gives NaN"),
            (r["sqnr_db"] >= float(least), f"SQNR {r['sqnr_db']} dB is below {least} dB"),
            (r["sqnr_db_all"] >= float(least), f"SQNR {r['sqnr_db_all']} dB with all optimizations is below {least} dB"),
            (size <= 0.30, f"the file has {size:.3f} of the float model's size, more than 0.30"),
        ]
        if not holds
    ]
# Codes at ties move between runtimes that sum floats; of integers there is one sum.
print(f"{model} integer: our own runtime and onnxruntime name the same class on {r['other_agree']:.4f}, largest difference "
      f"{r['other_max_diff']}")
if r["other_agree"] < 0.99:
    bad.append(f"integer: two runtimes name the same class on {r['other_agree']} only")
o = read(".openvino")
apart = abs(o["sqnr_db_openvino"] - o["sqnr_db_onnxruntime"])
print(f"{model} qdq: OpenVINO {o['sqnr_db_openvino']} dB, onnxruntime {o['sqnr_db_onnxruntime']} dB on the same photographs")
if apart > 0.5:
    bad.append(f"qdq: OpenVINO and onnxruntime are {apart:.2f} dB apart")
sys.exit(f"{model}: " + "; ".join(bad) if bad else 0)
PYTHON
}

# MODEL PRESET DOUBTED: whether pictures with a mean and std are said to have the wrong ones.
look() {
    local said doubted=no
    said=$("$program" "$folder/data/$1.onnx" -o "$out/none.onnx" --calibrate "$folder/data/calib" --preset "$2" --dry-run \
        --quiet </dev/null)
    if grep -q "surer of its classes with\|look like pixels that were not normalised" <<<"$said"; then doubted=yes; fi
    echo "$1 with preset $2: doubted: $doubted"
    [ "$doubted" = "$3" ] || { echo "$1 with preset $2: doubted should be $3: $said"; exit 1; }
}

look vit_tiny inception no
look vit_tiny imagenet yes
look vit_tiny unit yes
look deit_tiny imagenet no
look deit_tiny inception yes
look deit_tiny unit yes

check vit_tiny inception 17.5 "0.5" "0.5"
check deit_tiny imagenet 17 "0.485 0.456 0.406" "0.229 0.224 0.225"
