"""Compiles small models in every form forms.py knows and judges each result in tract and onnxruntime.

    cargo build --release
    python tests/forms_cross.py target/release/fqvit-opt [NAME-PART ...]

A model must compile with the default recipe to one that passes the full check of onnx, keeps its inputs and outputs, runs
in tract and in onnxruntime at two optimization levels, agrees between the three, stays near the float model, and has
exactly the attentions, LayerNorms and GELUs recognised that it was built with. REFUSED lists what is refused, with what
the message must say: no file is written then.
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

import forms_loop  # noqa: F401: adds its cases
import forms_mixed  # noqa: F401: adds its cases
import forms_other  # noqa: F401: adds its cases
import forms_scores  # noqa: F401: adds its cases
import forms_vit  # noqa: F401: adds its cases
from forms import CASES

LEAST_DB = 12.0
LEAST_DB_BETWEEN = 25.0
HELD = 8
REFUSED = {
    "sparse-twice": "names element",
    "sparse-hostile": "larger than 2 GB",
    "already-quantized": "quantized already",
    "foreign-operator": "nothing is left to quantize",
}


def session(path, level):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(path, feed, level, batch):
    s = session(path, level)
    n = len(next(iter(feed.values())))
    rows = [s.run(None, {k: v[i : i + batch] for k, v in feed.items()}) for i in range(0, n, batch)]
    return [np.concatenate(o) for o in zip(*rows)]


def sqnr(reference, other):
    worst = math.inf
    for a, b in zip(reference, other):
        a, b = a.astype(np.float64), b.astype(np.float64)
        if not np.isfinite(b).all():
            return -math.inf
        noise = float(((a - b) ** 2).sum())
        if noise:
            worst = min(worst, 10 * math.log10(float((a**2).sum()) / noise))
    return worst


def ports(path):
    g = onnx.load(str(path)).graph
    given = {t.name for t in g.initializer}
    return [[(v.name, v.type.SerializeToString()) for v in vs if v.name not in given] for vs in (g.input, g.output)]


def run(*args):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, " ".join((done.stderr + done.stdout).split())


def judge(program, name, folder):
    case = CASES[name]()
    model, quantized = folder / "float.onnx", folder / "q.onnx"
    onnx.save(case.model, str(model))
    none = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    held = {k: v[:HELD] for k, v in case.feed.items()}
    dim = case.model.graph.input[0].type.tensor_type.shape.dim[0]
    batch = dim.dim_value or 1
    if name not in REFUSED:
        # onnx's shape inference takes sparse weights for tensors of rank 0.
        onnx.checker.check_model(str(model), full_check=not case.model.graph.sparse_initializer)
        onnx.save(case.reference or case.model, str(folder / "reference.onnx"))
        reference = outputs(folder / "reference.onnx", held, none, batch)
    np.savez(folder / "calib.npz", **{k: v[HELD:] for k, v in case.feed.items()})
    np.savez(folder / "held.npz", **held)
    status, said = run(program, model, "-o", quantized, "--calibrate", folder / "calib.npz", "--quiet", "--min-sqnr=-100",
                       "--min-agreement=0", "--no-verify", *case.flags)
    if name in REFUSED:
        fine = status == 1 and REFUSED[name] in said and not quantized.exists()
        return fine, f"refused: {said[:200]}" if fine else f"should be refused with `{REFUSED[name]}`: {said[:300]}"
    if status != 0:
        return False, f"exit status {status}: {said[:400]}"
    wrong = []
    onnx.checker.check_model(str(quantized), full_check=True)
    if ports(model) != ports(quantized):
        wrong.append("inputs or outputs changed")
    db, out = {}, {}
    for key, level in [("basic", ort.GraphOptimizationLevel.ORT_ENABLE_BASIC), ("all", ort.GraphOptimizationLevel.ORT_ENABLE_ALL)]:
        out[key] = outputs(quantized, held, level, batch)
    # What tract makes of the result; what it makes of the float model is no matter here.
    status, said = run(program, "verify", quantized, quantized, "--data", folder / "held.npz", "--outputs", folder / "tract.npz",
                       "--quiet", "--min-sqnr=-100", "--min-agreement=0")
    if status != 0:
        wrong.append(f"tract: {said[:300]}")
    else:
        t = np.load(folder / "tract.npz")
        out["tract"] = [t[v.name] for v in case.model.graph.output]
    if "float16" in name:
        # The float model too is run in float32.
        status, said = run(program, "verify", model, quantized, "--data", folder / "held.npz", "--quiet", "--min-sqnr=12")
        if status != 0:
            wrong.append(f"verify: {said[:300]}")
    for key, o in out.items():
        db[key] = sqnr(reference, o)
        if db[key] < LEAST_DB:
            wrong.append(f"{key} is under {LEAST_DB} dB")
        between = sqnr(out["basic"], o)
        if between < LEAST_DB_BETWEEN:
            wrong.append(f"{key} and basic differ: {between:.1f} dB")
    _, said = run(program, "inspect", model, *case.flags)
    counts = re.search(r"(\d+) attentions, (\d+) LayerNorms, (\d+) GELUs", said)
    got = tuple(int(n) for n in counts.groups()) if counts else said[:200]
    want = (case.attentions, case.norms, case.gelus)
    if got != want:
        wrong.append(f"recognised {got} of {want}")
    text = f"{got} " + ", ".join(f"{k} {v:.1f} dB" for k, v in db.items())
    return not wrong, "; ".join([text, *wrong])


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())
    names = [n for n in CASES if not sys.argv[2:] or any(p in n for p in sys.argv[2:])]
    bad = 0
    for name in names:
        with tempfile.TemporaryDirectory() as tmp:
            try:
                fine, text = judge(program, name, pathlib.Path(tmp))
            except Exception as e:  # One model's failure must not hide the others'.
                fine, text = False, f"{type(e).__name__}: {str(e)[:400]}"
        bad += not fine
        print(f"{'ok  ' if fine else 'FAIL'} {name}: {text}", flush=True)
    print(f"{len(names)} models, {bad} failures")
    return 1 if bad or not names else 0


if __name__ == "__main__":
    sys.exit(main())
