"""Quantizes the models of testdata/zoo and judges every result with onnxruntime.

    cargo build --release
    python tests/zoo_cross.py target/release/fqvit-opt [MODEL.onnx ...]

The models are what several exporters write, with random weights and one outlier channel. Calibrated and judged on
different seeded normal samples. A result must pass the full check of onnx, keep the inputs and outputs, run at the basic
optimization level and with everything onnxruntime has, and stay close to the float model at both.

KNOWN lists models that can not be compiled yet. One that compiles after all fails here, so that the list stays true.
"""

import math
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEAST_DB = 8.0
MOST_DB_APART = 1.0
SAMPLES = 24
KNOWN = {
    # The Attention operator of opset 23 is not taken apart yet.
    "hf_vit-sdpa.dynamo.opset23.onnx": "no attention was found",
    "timm_vit-fused.dynamo.dynbatch.opset23.onnx": "no attention was found",
    # Shifted windows: a mask added in five dimensions.
    "timm_swin-eager.dynamo.opset20.onnx": "expects tensor of rank 4",
    "timm_swin-eager.torchscript.dynbatch.opset17.onnx": "expects tensor of rank 4",
    "timm_swin-eager.torchscript.opset13.onnx": "expects tensor of rank 4",
    "tv_swin.dynamo.opset20.onnx": "expects tensor of rank 4",
    # A scale a channel on an Add that onnxruntime fuses and then refuses.
    "timm_deit_distilled-eager.torchscript.dynbatch.opset17.onnx": "Scale and Zero-point must be a scalar",
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


def ports(s):
    return [(v.name, v.type, v.shape) for v in s.get_inputs() + s.get_outputs()]


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
         "--min-agreement=0"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        return False, f"exit status {done.returncode}: {(done.stderr or done.stdout).strip()}"
    onnx.checker.check_model(str(out), full_check=True)
    reference = run(float_session, held, batch)
    db = {}
    for name, level in [("basic", ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
                        ("all", ort.GraphOptimizationLevel.ORT_ENABLE_ALL)]:
        s = session(out, level)
        if ports(s) != ports(float_session):
            return False, f"inputs or outputs changed: {ports(s)} for {ports(float_session)}"
        got = run(s, held, batch)
        if not all(np.isfinite(g).all() for g in got):
            return False, f"[{name}] not finite"
        db[name] = sqnr(reference, got)
    text = ", ".join(f"{k} {v:.2f} dB" for k, v in db.items())
    return min(db.values()) >= LEAST_DB and abs(db["basic"] - db["all"]) <= MOST_DB_APART, text


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
        known = KNOWN.get(model.name)
        if known is None:
            verdict = "ok  " if fine else "FAIL"
        elif not fine and known in text:
            verdict = "known"
        else:
            verdict = "FAIL"
            text += f" (listed as known to fail with `{known}`: bring the list up to date)"
        bad += verdict == "FAIL"
        print(f"{verdict:5} {model.name}: {' '.join(text.split())[:300]}")
    print(f"{len(models)} models, {bad} failures")
    return 1 if bad or not models else 0


if __name__ == "__main__":
    sys.exit(main())
