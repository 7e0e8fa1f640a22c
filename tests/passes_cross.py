"""Runs the clean-up passes over real models and compares the outputs in onnxruntime, bit for bit.

    cargo build --release --no-default-features --example run_passes
    python tests/passes_cross.py [MODEL.onnx ...]

Without arguments: the models of testdata. Needs onnx, onnxruntime and numpy. Every model is checked (full check with
shape inference), run at two batch sizes where the batch is free, and compared with the original at optimization level
DISABLE_ALL: clean-up, and clean-up after raising the opset to 17, 18, 20, 21 and 23, must change no bit.
"""
import collections
import glob
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARY = os.path.join(ROOT, "target/release/examples/run_passes")
SHAPE_OPS = ["Constant", "Shape", "ConstantOfShape", "Gather", "Unsqueeze", "Concat", "Slice", "Cast", "Where",
             "Equal", "Expand", "Identity", "Mod", "Range"]


def session(path):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(s, batch):
    rng = np.random.default_rng(batch)
    free = False
    out = {}
    for i in s.get_inputs():
        free |= any(not isinstance(d, int) for d in i.shape)
        out[i.name] = rng.standard_normal([d if isinstance(d, int) else batch for d in i.shape]).astype(np.float32)
    return out, free


def compare(before, after):
    """The largest difference, relative to the largest output; 0 means bit for bit."""
    a, b = session(before), session(after)
    assert [(i.name, i.type) for i in a.get_inputs()] == [(i.name, i.type) for i in b.get_inputs()]
    assert [(o.name, o.type) for o in a.get_outputs()] == [(o.name, o.type) for o in b.get_outputs()]
    worst = 0.0
    for batch in (1, 3):
        x, free = feeds(a, batch)
        for p, q in zip(a.run(None, x), b.run(None, x)):
            assert p.shape == q.shape, (p.shape, q.shape)
            if p.tobytes() != q.tobytes():
                worst = max(worst, float(np.abs(p - q).max() / np.abs(p).max()), 1e-12)
        if not free:
            break
    return worst


def run(model, out, passes):
    r = subprocess.run([BINARY, model, out, passes], capture_output=True, text=True)
    if r.returncode != 0:
        raise RuntimeError(r.stderr.strip())
    return json.loads(r.stdout)


def main():
    models = sys.argv[1:] or sorted(glob.glob(ROOT + "/testdata/*/*.onnx"))
    failures = 0
    print(f"{'model':<58} before after    ms  bits   raised to")
    for path in models:
        name = os.path.basename(path)
        opset = next(o.version for o in onnx.load(path, load_external_data=False).opset_import if o.domain == "")
        with tempfile.TemporaryDirectory() as tmp:
            out = os.path.join(tmp, "out.onnx")
            try:
                info = run(path, out, "clean-up")
                onnx.checker.check_model(out, full_check=True)
                worst = compare(path, out)
                left = collections.Counter(n.op_type for n in onnx.load(out).graph.node)
                raised = []
                for to in (17, 18, 20, 21, 23):
                    if to <= opset:
                        continue
                    run(path, out, f"raise-opset={to},clean-up")
                    m = onnx.load(out)
                    assert [o.version for o in m.opset_import if o.domain == ""] == [to]
                    onnx.checker.check_model(out, full_check=True)
                    d = compare(path, out)
                    worst = max(worst, d)
                    raised.append(f"{to}" if d == 0 else f"{to}:{d:.1e}")
                failures += worst != 0
                rest = {k: left[k] for k in SHAPE_OPS if left[k]}
                print(f"{name:<58} {info['before']:6} {info['after']:5} {info['ms'][0]:5.1f}  "
                      f"{'equal' if worst == 0 else f'{worst:.1e}'}  {' '.join(raised):<15} {rest}")
                for n in info["notes"]:
                    print("    note:", n)
            except Exception as e:  # One model's failure must not hide the others'.
                failures += 1
                print(f"{name:<58} FAILED {e}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
