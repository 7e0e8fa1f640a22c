#!/usr/bin/env python3
"""fqvit-opt beside onnxruntime's static quantizer on the models of testdata/architectures.

    cargo build --release
    python benches/architectures.py target/release/fqvit-opt [NAME-PART ...]

For each model, dB against the float model (of detectors, boxes of a hundred that are found again) on data that nothing was
calibrated on, in onnxruntime at its basic optimization level: of `fq-vit` (8 bits, attention weights 4), of `linear-w8a8`,
and of the quantizer as it comes (8 bits throughout). The last lines count who is nearer.
Needs onnx, onnxruntime, numpy, pillow.
"""

import logging
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import onnx

import peers

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/architectures")]
import architectures_cross as table  # noqa: E402
import packed  # noqa: E402

RECIPES = ["fq-vit", "linear-w8a8"]


def one_by_one(feed):
    n = table.CALIBRATION
    cut = lambda v, i: v[i * (len(v) // n) : (i + 1) * (len(v) // n)]
    return ({name: cut(v, i) for name, v in feed.items()} for i in range(n))


def measure(program, path, folder):
    model, name = packed.read(path), path.name.split(".")[0]
    float_file, calib = folder / "float.onnx", folder / "calib.npz"
    onnx.save(model, str(float_file))
    feed, held = table.samples(model, table.CALIBRATION, 1), table.samples(model, table.HELD, 2)
    np.savez(calib, **feed)
    files = {}
    for recipe in RECIPES:
        files[recipe] = folder / f"{recipe}.onnx"
        args = [program, float_file, "-o", files[recipe], "--calibrate", calib, "--recipe", recipe, "--no-verify"]
        subprocess.run([*map(str, args), "--quiet"], check=True, capture_output=True)
    files["peer"] = folder / "peer.onnx"
    peers.quantize(float_file, files["peer"], one_by_one(feed), {})
    how = table.matched if table.is_list(name) else table.decibels
    reference = table.run(float_file, held, "ORT_DISABLE_ALL")
    return [how(reference, table.run(f, held, "ORT_ENABLE_BASIC")) for f in files.values()]


def main():
    logging.disable(logging.ERROR)
    program = str(pathlib.Path(sys.argv[1]).resolve())
    paths = [p for p in sorted(table.MODELS.glob("*.onnx.xz")) if not sys.argv[2:] or any(x in p.name for x in sys.argv[2:])]
    found = []
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found.append(measure(program, path, pathlib.Path(folder)))
                print(path.name.split(".")[0], *(f"{x:.1f}" for x in found[-1]), flush=True)
            except Exception as e:  # One model's failure must not hide the others'.
                print(path.name.split(".")[0], f"failed: {type(e).__name__}: {str(e)[:100]}", flush=True)
    for i, recipe in enumerate(RECIPES):
        more = [x[i] - x[-1] for x in found]
        print(f"{recipe}: nearer on {sum(m > 0 for m in more)} of {len(more)}, by {statistics.median(more):.1f} in the median")


if __name__ == "__main__":
    main()
