"""Runs a float model and its quantized form in onnxruntime over the same samples, and times both.

Called by the program as `judge.py FOLDER SECONDS`. The folder holds `float.onnx`, `quantized.onnx`, `inputs.json` (the names of the
inputs) and `samples.npz` with arrays `SAMPLE.INPUT`. What comes out goes to `outputs.npz`, as arrays `RUN.SAMPLE.OUTPUT`, and
the rest to standard output, as JSON.
"""

import json
import pathlib
import statistics
import sys
import time

import numpy as np
import onnxruntime as ort

LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def session(path, level):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = level
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def plain(array):
    """In one of two types: what is compared are numbers, or labels."""
    whole = array.dtype.kind in "iub"
    return np.ascontiguousarray(array, np.int64 if whole else np.float32)


def main():
    folder, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
    original, quantized = folder / "float.onnx", folder / "quantized.onnx"
    names = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    with np.load(folder / "samples.npz") as arrays:
        count = 1 + max(int(key.split(".")[0]) for key in arrays.files)
        samples = [{n: arrays[f"{i}.{k}"] for k, n in enumerate(names)} for i in range(count)]
    runs = {"float": session(original, LEVELS["basic"])}
    runs |= {name: session(quantized, level) for name, level in LEVELS.items()}
    outputs = [o.name for o in runs["float"].get_outputs()]
    half = [i.name for i in runs["float"].get_inputs() if i.type == "tensor(float16)"]
    samples = [{n: a.astype(np.float16) if n in half else a for n, a in s.items()} for s in samples]
    found = {}
    for run, s in runs.items():
        for i, sample in enumerate(samples):
            for k, array in enumerate(s.run(outputs, sample)):
                found[f"{run}.{i}.{k}"] = plain(array)
    np.savez(folder / "outputs.npz", **found)
    # In turn, so that whatever else the machine does disturbs both.
    pair = [session(original, LEVELS["all"]), runs["all"]]
    for s in pair:
        s.run(outputs, samples[0])
    rounds, end = [], time.perf_counter() + seconds
    while len(rounds) < 3 or (len(rounds) < 25 and time.perf_counter() < end):
        times = []
        for s in pair:
            begin = time.perf_counter()
            s.run(outputs, samples[0])
            times.append((time.perf_counter() - begin) * 1e3)
        rounds.append(times)
    told = {
        "version": ort.__version__,
        "outputs": outputs,
        "rounds": len(rounds),
        "float_ms": statistics.median(f for f, _ in rounds),
        "quantized_ms": statistics.median(q for _, q in rounds),
        "ratio": statistics.median(q / f for f, q in rounds),
    }
    print(json.dumps(told))


main()
