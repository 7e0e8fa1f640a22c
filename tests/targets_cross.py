"""Judges how each target is written, in onnxruntime and OpenVINO.

    cargo build --release
    python tests/targets_cross.py target/release/fqvit-opt [MODEL.onnx DATA.npz]

Without a model: the trained digits model and three of testdata/zoo. Each is planned once with each recipe that quantizes,
and the plan is written for every target. For each file:

* it loads at all four optimization levels of onnxruntime, and in OpenVINO;
* its SQNR is the same at all of them within MOST_DB_APART, for target `integer` in onnxruntime exactly;
* no pair of int8 weights can saturate 16 bits with uint8 activations (see src/quant/pairs.rs).

And for target `qdq`:

* onnxruntime fuses every layer: no float MatMul or Gemm with a constant weight is left at its highest level, and no Softmax
  becomes a QLinearSoftmax;
* the codes of attention weights have no more distinct values than their bits allow.

Every other shipped recipe, for every target: the file passes the full check of onnx, loads at all four levels and gives
finite numbers. The onnxruntime is that of the Python this runs in, so a newer one is checked by running it there.
"""

import math
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
from onnx import numpy_helper

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
# Codes at ties move between runtimes that sum in another order.
MOST_DB_APART = 0.5
# Of networks with random weights, whose outputs hang on single codes; and where little is left, nothing is to be kept.
MOST_DB_APART_RANDOM = 1.5
LEAST_DB_RANDOM = 10.0
CODES_OF_FOUR_BITS = 16
JUDGED = ["fq-vit", "cpu", "linear-w8a8", "minmax-w8a8", "w4a8"]
TARGETS = ["qdq", "integer"]
ZOO = ["timm_deit", "hf_swin", "nn_encoder"]


def session(path, level, optimized=None):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(s, feed, batch):
    (name,) = [i.name for i in s.get_inputs()]
    return np.concatenate([s.run(None, {name: feed[i : i + batch]})[0] for i in range(0, len(feed), batch)])


def run_openvino(path, feed, batch):
    core = ov.Core()
    model = core.read_model(str(path))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled(feed[i : i + batch])[0] for i in range(0, len(feed), batch)])


def sqnr(reference, other):
    reference = reference.astype(np.float64)
    noise = float(((reference - other) ** 2).sum())
    return 10 * math.log10(float((reference**2).sum()) / noise) if noise else math.inf


def unsafe_pairs(model):
    """int8 weights whose products with uint8 could saturate: names and how many pairs."""
    held = {t.name: t for t in model.graph.initializer}
    made = {o: n for n in model.graph.node for o in n.output}
    found = {}
    for n in model.graph.node:
        if n.op_type not in ("MatMul", "Gemm", "MatMulInteger"):
            continue
        name = n.input[1]
        if name in made and made[name].op_type == "DequantizeLinear":
            name = made[name].input[0]
        t = held.get(name)
        if t is None or t.data_type != onnx.TensorProto.INT8:
            continue
        w = numpy_helper.to_array(t).astype(np.int32)
        if any(a.name == "transB" and a.i for a in n.attribute):
            w = w.T
        w = w[: len(w) // 2 * 2].reshape(-1, 2, w.shape[-1])
        bad = int(((np.maximum(w, 0).sum(1) > 128) | (np.maximum(-w, 0).sum(1) > 128)).sum())
        if bad:
            found[t.name] = bad
    return found


LAYERS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv")


def float_layers(path):
    """How many layers of the file itself have float weights: a recipe may leave some as they are."""
    model = onnx.load(str(path))
    held = {t.name for t in model.graph.initializer}
    return sum(n.op_type in LAYERS and n.input[1] in held for n in model.graph.node)


def unfused(path, meant):
    """Layers that onnxruntime left in float, beyond those that are `meant` to be, and what it made of Softmax."""
    model = onnx.load(str(path))
    held = {t.name for t in model.graph.initializer}
    made = {o: n for n in model.graph.node for o in n.output}
    constant = lambda v: v in held or (v in made and made[v].op_type == "DequantizeLinear" and made[v].input[0] in held)
    left = [n.name for n in model.graph.node if n.op_type in LAYERS and constant(n.input[1])]
    return (left if len(left) > meant else []) + [n.name for n in model.graph.node if n.op_type == "QLinearSoftmax"]


def most_codes(path, feed, batch):
    """The largest number of distinct codes of attention weights in one attention and head."""
    model = onnx.load(str(path))
    codes = [n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear" and re.search(r"/code(_\d+)?$", n.output[0])]
    model.graph.output.extend(onnx.ValueInfoProto(name=c) for c in codes)
    s = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    most = 0
    for value in s.run(codes, {s.get_inputs()[0].name: feed[:batch]}) if codes else []:
        heads = value.reshape(-1, *value.shape[-3:]) if value.ndim > 3 else value[None, None]
        most = max(most, *(len(np.unique(heads[:, h])) for h in range(heads.shape[1])))
    return most


def compiled(program, model, recipe, target, calib, folder):
    """The file, or what went wrong."""
    out = folder / f"{recipe}.{target}.onnx"
    args = [program, model, "-o", out, "--recipe", recipe, "--target", target, "--calibrate", calib, "--no-verify", "--quiet"]
    # A recipe that quantizes nothing has no plan.
    plan = [] if recipe == "none" else ["--plan", folder / f"{recipe}.yaml"]
    done = subprocess.run([*args, *plan], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    said = (done.stderr or done.stdout).strip()[:300]
    return out, f"exit status {done.returncode}: {said}" if done.returncode else None


def load_everywhere(program, model, calib, held, batch, folder):
    """What is wrong with the files of the recipes that are not judged in full."""
    bad = []
    for recipe in sorted(p.stem for p in (ROOT / "passes/recipes").glob("*.yaml")):
        for target in TARGETS if recipe not in JUDGED else []:
            label = f"{model.name} {recipe} {target}"
            out, wrong = compiled(program, model, recipe, target, calib, folder)
            if wrong:
                bad.append(f"{label}: {wrong}")
                continue
            try:
                onnx.checker.check_model(str(out), full_check=True)
                for level in LEVELS:
                    if not np.isfinite(run(session(out, level), held[:batch], batch)).all():
                        bad.append(f"{label}: not finite at {level}")
            except Exception as e:  # Which level it was is in the message.
                bad.append(f"{label}: {str(e)[:300]}")
    return bad


def judge(program, model, calib, held, most_apart, folder):
    """Lines that say what was measured, and what is wrong."""
    float_session = session(model, "ORT_DISABLE_ALL")
    (port,) = float_session.get_inputs()
    batch = port.shape[0] if isinstance(port.shape[0], int) else 8
    held = held[: len(held) // batch * batch]
    reference = run(float_session, held, batch)
    lines, bad = [], []
    for recipe in JUDGED:
        for target in TARGETS:
            label = f"{model.name} {recipe} {target}"
            out, wrong = compiled(program, model, recipe, target, calib, folder)
            if wrong:
                bad.append(f"{label}: {wrong}")
                continue
            outputs = {}
            try:
                for level in LEVELS:
                    outputs[level] = run(session(out, level, folder / "optimized.onnx"), held, batch)
                outputs["OpenVINO"] = run_openvino(out, held, batch)
            except Exception as e:  # Which level it was is in the message.
                bad.append(f"{label}: {str(e)[:300]}")
                continue
            db = {k: sqnr(reference, o) for k, o in outputs.items()}
            lines.append(f"{label}: " + ", ".join(f"{k.removeprefix('ORT_')} {v:.2f} dB" for k, v in db.items()))
            kept = most_apart == MOST_DB_APART or max(db.values()) > LEAST_DB_RANDOM
            if kept and max(db.values()) - min(db.values()) > most_apart:
                bad.append(f"{label}: more than {most_apart} dB apart")
            if target == "integer" and recipe in ("fq-vit", "w4a8"):
                differ = [k for k in LEVELS if not np.array_equal(outputs[k], outputs[LEVELS[0]])]
                bad.extend(f"{label}: other bits at {k}" for k in differ)
            pairs = unsafe_pairs(onnx.load(str(out)))
            bad.extend(f"{label}: {n} pairs of {name} can saturate" for name, n in pairs.items())
            if target == "qdq":
                session(out, "ORT_ENABLE_ALL", folder / "optimized.onnx")
                bad.extend(f"{label}: {name} is no product of codes" for name in
                           unfused(folder / "optimized.onnx", float_layers(out)))
                codes = most_codes(out, held, batch)
                if codes > CODES_OF_FOUR_BITS or (recipe == "fq-vit" and codes < 3):
                    bad.append(f"{label}: {codes} codes of attention weights")
    bad += load_everywhere(program, model, calib, held, batch, folder)
    return lines, bad


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())
    jobs = []
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        if sys.argv[2:]:
            jobs.append((pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]), np.load(sys.argv[3])["input"], MOST_DB_APART))
        else:
            digits = ROOT / "testdata/digits"
            held = np.load(digits / "digits_eval.npz")["input"]
            jobs.append((digits / "digits_vit.onnx", digits / "digits_calib.npz", held, MOST_DB_APART))
            for model in sorted((ROOT / "testdata/zoo").glob("*.onnx")):
                if any(model.name.startswith(z) for z in ZOO) and not any(j[0].name[:7] == model.name[:7] for j in jobs):
                    (port,) = session(model, "ORT_DISABLE_ALL").get_inputs()
                    batch = port.shape[0] if isinstance(port.shape[0], int) else 1
                    shape = [24 * batch] + [d if isinstance(d, int) else 16 for d in port.shape[1:]]
                    data = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
                    np.savez(tmp / f"{model.stem}.npz", **{port.name: data[8 * batch :]})
                    jobs.append((model, tmp / f"{model.stem}.npz", data[: 8 * batch], MOST_DB_APART_RANDOM))
        wrong = []
        for i, job in enumerate(jobs):
            folder = tmp / str(i)
            folder.mkdir()
            lines, bad = judge(program, *job, folder)
            print(*lines, *(f"FAIL {b}" for b in bad), sep="\n", flush=True)
            wrong += bad
    print(f"{len(jobs)} models, {len(wrong)} failures")
    return 1 if wrong or not jobs else 0


if __name__ == "__main__":
    sys.exit(main())
