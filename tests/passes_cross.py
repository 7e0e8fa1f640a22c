"""Runs models before and after passes in onnxruntime, at optimization level DISABLE_ALL, and compares the outputs.

    cargo build --release --example run_passes --example pass_steps
    python tests/passes_cross.py [MODEL.onnx ...]

Without arguments: the models of testdata. Needs onnx, onnxruntime and numpy. Inputs are random, at two batch sizes where the
batch is free.

- Clean-up, and clean-up after raising the opset to 17, 18, 20, 21 and 23, must change no bit.
- On the way from file to quantized file, with a recipe and a target that change from model to model, every pass that changes the
  model must do to the outputs no more than it declares. After a pass that quantizes, a value within the bound of a tie may take the
  neighbouring code: other passes then may move the outputs by twice what quantization has.
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
EXAMPLES = os.path.join(ROOT, "target/release/examples")
RECIPES = sorted(os.path.basename(f)[: -len(".yaml")] for f in glob.glob(ROOT + "/passes/recipes/*.yaml"))
WAYS = [(recipe, target) for recipe in RECIPES if recipe != "none" for target in ("qdq", "integer")]
# Squared error that ties may add to that of quantization.
TIES = 4.0
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


def error(reference, other):
    """Squared error relative to the reference, over all outputs."""
    noise = sum(float(((p.astype(np.float64) - q) ** 2).sum()) for p, q in zip(reference, other))
    return noise / max(sum(float((p.astype(np.float64) ** 2).sum()) for p in reference), 1e-300)


def steps_hold(path, recipe, target):
    """How many passes changed the model, and which of them did more than they declare."""
    broken = []
    with tempfile.TemporaryDirectory() as tmp:
        steps = run("pass_steps", path, tmp, recipe, target)
        first = session(os.path.join(tmp, "000.onnx"))
        inputs = [feeds(first, batch) for batch in (1, 3)]
        inputs = [x for x, free in inputs[: 2 if inputs[0][1] else 1]]
        outputs = lambda file: [session(file).run(None, x) for x in inputs]
        origin = old = outputs(os.path.join(tmp, "000.onnx"))
        lost = [None] * len(inputs)
        bound, quantizes = 0.0, False
        for step in steps:
            # What has no file is judged together with what comes after it.
            bound += {"bit-exact": 0.0, "quantizes": np.inf, "widens": np.inf}.get(step["numerics"], step["numerics"])
            quantizes |= step["numerics"] == "quantizes"
            if step["file"] is None:
                continue
            new = outputs(step["file"])
            for i, (a, b, o) in enumerate(zip(old, new, origin)):
                assert [p.shape for p in a] == [q.shape for q in b], step["pass"]
                far = max(float(np.abs(p.astype(np.float64) - q).max() / max(np.abs(p).max(), 1e-30)) for p, q in zip(a, b))
                tied = lost[i] is not None and bound > 0 and error(a, b) <= TIES * lost[i]
                if not np.isfinite(far) or not (far <= bound or tied):
                    broken.append(f"{step['pass']} declares {step['numerics']} and moves outputs by {far:.1e}")
                if quantizes or lost[i] is not None:
                    lost[i] = max(lost[i] or 0.0, error(o, b))
            old, bound, quantizes = new, 0.0, False
    return len(steps), broken


def run(example, *args):
    r = subprocess.run([os.path.join(EXAMPLES, example), *args], capture_output=True, text=True)
    if r.returncode != 0:
        raise RuntimeError(r.stderr.strip())
    return json.loads(r.stdout)


def main():
    models = sys.argv[1:] or sorted(glob.glob(ROOT + "/testdata/*/*.onnx"))
    failures = 0
    print(f"{'model':<58} before after    ms  bits   raised to")
    for number, path in enumerate(models):
        name = os.path.basename(path)
        opset = next(o.version for o in onnx.load(path, load_external_data=False).opset_import if o.domain == "")
        with tempfile.TemporaryDirectory() as tmp:
            out = os.path.join(tmp, "out.onnx")
            try:
                info = run("run_passes", path, out, "clean-up")
                onnx.checker.check_model(out, full_check=True)
                worst = compare(path, out)
                left = collections.Counter(n.op_type for n in onnx.load(out).graph.node)
                raised = []
                for to in (17, 18, 20, 21, 23):
                    if to <= opset:
                        continue
                    run("run_passes", path, out, f"raise-opset={to},clean-up")
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
                way = WAYS[number % len(WAYS)]
                count, broken = steps_hold(path, *way)
                print(f"    {count} passes changed it on the way to {way[0]}, {way[1]}; {len(broken)} broke their word")
                for b in broken:
                    failures += 1
                    print("    FAILED", b)
            except Exception as e:  # One model's failure must not hide the others'.
                failures += 1
                print(f"{name:<58} FAILED {e}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
