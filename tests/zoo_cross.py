"""Quantizes the models of testdata/zoo and judges every result with onnxruntime.

    cargo build --release
    python tests/zoo_cross.py target/release/fqvit-opt [MODEL.onnx ...]

The models are what several exporters write, with random weights and one outlier channel. Calibrated and judged on
different seeded normal samples. A result must pass the full check of onnx, keep the inputs and outputs, run at the basic
optimization level and with everything onnxruntime has, and stay close to the float model at both.

One line a model: what was recognised, the share of compute operators that run on integers, and the signal over the
error in dB, which must be 12 at least. EXPECTED says from the architecture what must be recognised.
"""

import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEAST_DB = 12.0
MOST_DB_APART = 1.0
SAMPLES = 24
# Attentions, LayerNorms and GELUs by the start of the file's name.
EXPECTED = {
    # Plain encoders of depth 2: two LayerNorms a block and the last one.
    "hf_vit": (2, 5, 2),
    "timm_vit": (2, 5, 2),
    "timm_deit": (2, 5, 2),
    "timm_dinov2": (2, 5, 2),
    "tv_vit": (2, 5, 2),
    # nn.TransformerEncoder without a last norm.
    "nn_encoder": (2, 4, 2),
    # Two stages of two blocks: 8 LayerNorms in blocks, one each at patch embedding, patch merging and the end.
    "hf_swin": (4, 11, 4),
    "timm_swin": (4, 11, 4),
    "tv_swin": (4, 11, 4),
}


def session(path, level):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(s, feed, batch):
    outs = [s.run(None, {s.get_inputs()[0].name: feed[i : i + batch]}) for i in range(0, len(feed), batch)]
    return [np.concatenate(o) for o in zip(*outs)]


def sqnr(reference, other):
    worst = math.inf
    for a, b in zip(reference, other):
        a = a.astype(np.float64)
        noise = float(((a - b) ** 2).sum())
        if noise:
            worst = min(worst, 10 * math.log10(float((a**2).sum()) / noise))
    return worst


def ports(path):
    """As the file declares them: onnxruntime writes down what it infers beyond that."""
    g = onnx.load(str(path), load_external_data=False).graph
    return [(v.name, v.type.SerializeToString()) for v in [*g.input, *g.output]]


def judge(program, model, folder):
    """What is wrong with the result, or its figures."""
    none = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    float_session = session(model, none)
    (port,) = float_session.get_inputs()
    batch = port.shape[0] if isinstance(port.shape[0], int) else 1
    shape = [batch] + [d if isinstance(d, int) else 16 for d in port.shape[1:]]
    rng = np.random.default_rng(7)
    data = rng.standard_normal([SAMPLES * batch] + shape[1:]).astype(np.float32)
    held = data[: 8 * batch]
    np.savez(folder / "calib.npz", **{port.name: data[8 * batch :]})
    out = folder / "q.onnx"
    out.unlink(missing_ok=True)
    done = subprocess.run(
        [program, model, "-o", out, "--calibrate", folder / "calib.npz", "--quiet", "--min-sqnr=-100",
         "--min-agreement=0", "--json", folder / "report.json"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        return False, f"exit status {done.returncode}: {(done.stderr or done.stdout).strip()}"
    onnx.checker.check_model(str(out), full_check=True)
    if ports(model) != ports(out):
        return False, "inputs or outputs changed"
    said = subprocess.run([program, "inspect", model], capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    found = re.search(r"(\d+) attentions, (\d+) LayerNorms, (\d+) GELUs", said)
    counts = tuple(map(int, found.groups())) if found else None
    covered = json.loads((folder / "report.json").read_text())["coverage"]
    reference = run(float_session, held, batch)
    db = {}
    for name, level in [("basic", ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
                        ("all", ort.GraphOptimizationLevel.ORT_ENABLE_ALL)]:
        s = session(out, level)
        got = run(s, held, batch)
        if not all(np.isfinite(g).all() for g in got):
            return False, f"[{name}] not finite"
        db[name] = sqnr(reference, got)
    expected = next(v for k, v in EXPECTED.items() if model.name.startswith(k))
    text = f"{counts} of {expected}, {covered['covered']} of {covered['total']} operators, "
    text += ", ".join(f"{k} {v:.2f} dB" for k, v in db.items())
    fine = min(db.values()) >= LEAST_DB and abs(db["basic"] - db["all"]) <= MOST_DB_APART and counts == expected
    return fine, text


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())
    models = [pathlib.Path(p) for p in sys.argv[2:]] or sorted((ROOT / "testdata" / "zoo").glob("*.onnx"))
    bad = 0
    for model in models:
        with tempfile.TemporaryDirectory() as tmp:
            try:
                fine, text = judge(program, model, pathlib.Path(tmp))
            except Exception as e:  # One model's failure must not hide the others'.
                fine, text = False, f"{type(e).__name__}: {e}"
        verdict = "ok" if fine else "FAIL"
        bad += not fine
        print(f"{verdict:5} {model.name}: {' '.join(text.split())[:300]}")
    print(f"{len(models)} models, {bad} failures")
    return 1 if bad or not models else 0


if __name__ == "__main__":
    sys.exit(main())
