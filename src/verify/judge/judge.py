"""Runs a float model and its quantized form in onnxruntime over the same samples, and times both.

Called by the program as `judge.py FOLDER SECONDS`. The folder holds `float.onnx`, `quantized.onnx`, `inputs.json` (the names of the
inputs) and `samples.npz` with arrays `SAMPLE.INPUT`. If it holds `calibration.npz` of the same form as well, what onnxruntime's own
static quantization makes of the float model with that runs and is timed beside the two. What comes out goes to `outputs.npz`, as
arrays `RUN.SAMPLE.OUTPUT`, and the rest to standard output, as JSON.
"""

import contextlib
import json
import pathlib
import statistics
import sys
import time
import zlib

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
    if array.dtype.kind in "OUS":
        # Equal texts become equal numbers.
        numbers = [zlib.crc32(str(text).encode()) for text in array.ravel()]
        return np.array(numbers, np.int64).reshape(array.shape)
    whole = array.dtype.kind in "iub"
    return np.ascontiguousarray(array, np.int64 if whole else np.float32)


def samples_of(path, names, half):
    """One dict of inputs a sample."""
    with np.load(path) as arrays:
        count = 1 + max(int(key.split(".")[0]) for key in arrays.files)
        samples = [{n: arrays[f"{i}.{k}"] for k, n in enumerate(names)} for i in range(count)]
    return [{n: a.astype(np.float16) if n in half else a for n, a in s.items()} for s in samples]


def static(folder, original, samples):
    """The float model as onnxruntime's static quantization makes it if nothing is asked of it, prepared as its guide says."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter(samples)

        def get_next(self):
            return next(self.left, None)

    prepared, made = folder / "prepared.onnx", folder / "static.onnx"
    # What both print is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            quant_pre_process(str(original), str(prepared), skip_symbolic_shape=True)
        except Exception:  # it is of use to some models only
            prepared = original
        quantize_static(str(prepared), str(made), Reader())
    return made


def main():
    folder, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
    original, quantized = folder / "float.onnx", folder / "quantized.onnx"
    names = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    runs = {"float": session(original, LEVELS["basic"])}
    runs |= {name: session(quantized, level) for name, level in LEVELS.items()}
    outputs = [o.name for o in runs["float"].get_outputs()]
    half = [i.name for i in runs["float"].get_inputs() if i.type == "tensor(float16)"]
    samples = samples_of(folder / "samples.npz", names, half)
    baseline = None
    if (folder / "calibration.npz").exists():
        try:
            file = static(folder, original, samples_of(folder / "calibration.npz", names, half))
            runs["static"] = session(file, LEVELS["all"])
            baseline = {"bytes": sum(f.stat().st_size for f in folder.glob(file.name + "*"))}
        except Exception as e:
            runs.pop("static", None)
            baseline = {"error": f"{type(e).__name__}: {str(e).strip().splitlines()[-1] if str(e).strip() else ''}"}
    found = {}
    for run, s in runs.items():
        for i, sample in enumerate(samples):
            for k, array in enumerate(s.run(outputs, sample)):
                found[f"{run}.{i}.{k}"] = plain(array)
    np.savez(folder / "outputs.npz", **found)
    # In turn, so that whatever else the machine does disturbs both.
    turns = [session(original, LEVELS["all"]), runs["all"]] + ([runs["static"]] if "static" in runs else [])
    for s in turns:
        s.run(outputs, samples[0])
    rounds, end = [], time.perf_counter() + seconds
    while len(rounds) < 3 or (len(rounds) < 25 and time.perf_counter() < end):
        times = []
        for s in turns:
            begin = time.perf_counter()
            s.run(outputs, samples[0])
            times.append((time.perf_counter() - begin) * 1e3)
        rounds.append(times)
    told = {
        "version": ort.__version__,
        "outputs": outputs,
        "rounds": len(rounds),
        "float_ms": statistics.median(r[0] for r in rounds),
        "quantized_ms": statistics.median(r[1] for r in rounds),
        "ratio": statistics.median(r[1] / r[0] for r in rounds),
    }
    if "static" in runs:
        baseline |= {"ms": statistics.median(r[2] for r in rounds), "ratio": statistics.median(r[2] / r[0] for r in rounds)}
    if baseline:
        told["baseline"] = baseline
    print(json.dumps(told))


main()
