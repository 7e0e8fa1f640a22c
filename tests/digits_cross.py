"""Judges the quantized digits model with onnxruntime, independently of the program that made it.

    fqvit-opt testdata/digits/digits_vit.onnx -o Q.onnx --calibrate testdata/digits/digits_calib.npz
    fqvit-opt verify testdata/digits/digits_vit.onnx Q.onnx --data testdata/digits/digits_eval.npz --outputs OUT.npz
    python tests/digits_cross.py testdata/digits/digits_vit.onnx Q.onnx testdata/digits/digits_eval.npz OUT.npz

The file must pass the full check of onnx, keep the graph's inputs and outputs, be smaller, name at least 93.6 % of the
digits (the float model names 94.2 %), at the basic optimization level and with everything onnxruntime has, and the two
must be within 0.5 dB of each other. OUT.npz holds what the program's own runtime computes; it must name the same digit
as onnxruntime for 99 % of the samples.
"""

import math
import os
import sys

import numpy as np
import onnx
import onnxruntime as ort

LEAST_ACCURACY = 0.936
MOST_DB_APART = 0.5
LEAST_AGREEMENT = 0.99
LARGEST_SIZE = 0.5
BATCH = 50
LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def run(path, feed, level):
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input": feed[i : i + BATCH]})[0] for i in range(0, len(feed), BATCH)])


def sqnr(reference, other):
    """10 log10(signal / noise); infinite for equal arrays."""
    reference = reference.astype(np.float64)
    noise = float(((reference - other) ** 2).sum())
    return 10 * math.log10(float((reference**2).sum()) / noise) if noise else math.inf


def ports(model):
    held = {t.name for t in model.graph.initializer}
    describe = lambda v: (v.name, v.type.SerializeToString(deterministic=True))
    return [describe(v) for v in model.graph.input if v.name not in held], [describe(v) for v in model.graph.output]


def main(float_path, quant_path, data_path, own_path):
    failed = []

    def check(what, measured, holds):
        print(f"{'ok  ' if holds else 'FAIL'} {what}: {measured}")
        failed.extend([] if holds else [what])

    onnx.checker.check_model(quant_path, full_check=True)
    model = onnx.load(quant_path)
    kept = ports(model) == ports(onnx.load(float_path))
    check("inputs and outputs are kept", kept, kept)
    share = os.path.getsize(quant_path) / os.path.getsize(float_path)
    check(f"share of the size, at most {LARGEST_SIZE}", f"{share:.3f}", share <= LARGEST_SIZE)
    ops = {n.op_type for n in model.graph.node}
    integer = "MatMulInteger" in ops
    # For target `qdq` a Softmax of codes is how Log-Int-Softmax is written.
    left = sorted(ops & ({"Softmax", "Erf", "Pow", "Exp"} if integer else {"Erf", "Pow", "Exp"}))
    check("no float softmax or decomposed form is left", left or "none", not left)

    data = np.load(data_path)
    labels = data["labels"]
    reference = run(float_path, data["input"], "basic")
    print(f"     float: accuracy {(reference.argmax(-1) == labels).mean():.3f} on {len(labels)} digits")
    ratio, answer, outputs = {}, {}, {}
    for level in LEVELS:
        got = run(quant_path, data["input"], level)
        accuracy = float((got.argmax(-1) == labels).mean())
        agreement = float((got.argmax(-1) == reference.argmax(-1)).mean())
        ratio[level], answer[level], outputs[level] = sqnr(reference, got), got.argmax(-1), got
        check(f"[{level}] finite", bool(np.isfinite(got).all()), bool(np.isfinite(got).all()))
        check(f"[{level}] accuracy, at least {LEAST_ACCURACY}", f"{accuracy:.3f}", accuracy >= LEAST_ACCURACY)
        print(f"     [{level}] SQNR {ratio[level]:.2f} dB, agreement with float {agreement:.3f}")
    apart = abs(ratio["basic"] - ratio["all"]) if ratio["basic"] != ratio["all"] else 0.0
    check(f"dB between the levels, at most {MOST_DB_APART}", f"{apart:.3f}", apart <= MOST_DB_APART)

    own = np.load(own_path)[model.graph.output[0].name]
    check("outputs of the program's own runtime", own.shape, own.shape == reference.shape)
    if own.shape == reference.shape:
        same = float((own.argmax(-1) == answer["basic"]).mean())
        check(f"both runtimes name the same digit, at least {LEAST_AGREEMENT}", f"{same:.3f}", same >= LEAST_AGREEMENT)
        # For target `integer` there is nothing left that two runtimes could compute differently.
        for level in LEVELS if integer else []:
            apart = float(np.abs(own - outputs[level]).max())
            check(f"[{level}] largest difference between the runtimes, 0", apart, apart == 0)
    print(f"{len(failed)} failures")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
