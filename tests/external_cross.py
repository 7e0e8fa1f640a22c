"""Models whose weights lie in data files, as the onnx package writes them, from file to file.

    python tests/external_cross.py target/release/fqvit-opt

Each is compiled with several recipes, into its own folder and into another; the result is moved to an empty folder, must
load in onnxruntime there at every optimization level, and must compute what the compiled single file computes, bit for bit.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx.external_data_helper import convert_model_to_external_data

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS = ROOT / "testdata" / "digits"
LEVELS = [
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
]
# How the onnx package lays the data out: one file or one a tensor, from which size on, attributes of nodes as well.
LAYOUTS = {
    "one file": dict(all_tensors_to_one_file=True, location="model.onnx.data", size_threshold=1024),
    "one file, every tensor": dict(all_tensors_to_one_file=True, location="weights/all.bin", size_threshold=0),
    "a file a tensor": dict(all_tensors_to_one_file=False, size_threshold=1024),
    "a file a tensor, attributes too": dict(all_tensors_to_one_file=False, size_threshold=0, convert_attribute=True),
}
# INT4 beyond BASIC is onnxruntime's own matter (see docs).
RECIPES = {"none": LEVELS, "fq-vit": LEVELS, "linear-w8a8": LEVELS, "w4a8": LEVELS, "w4a8-int4": LEVELS[:2]}


def run(program, *args):
    done = subprocess.run([program, *map(str, args)], capture_output=True, text=True)
    if done.returncode not in (0, 2):
        sys.exit(f"{args}: {done.returncode}\n{done.stderr}")


def outputs(path, level, x):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})


def alone(path, level, x):
    """What a copy of the file computes in a folder that holds nothing else."""
    with tempfile.TemporaryDirectory() as empty:
        to = shutil.copy(path, pathlib.Path(empty) / "moved.onnx")
        return outputs(to, level, x)


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())
    x = np.load(DIGITS / "digits_eval.npz")["input"][:8].astype(np.float32)
    bad = 0
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        shutil.copy(DIGITS / "digits_vit.onnx", tmp / "near.onnx")
        want = {}
        data = ["--calibrate", DIGITS / "digits_calib.npz", "--samples", "16", "--quiet", "--no-verify"]
        for recipe in RECIPES:
            run(program, tmp / "near.onnx", "-o", tmp / f"near.{recipe}.onnx", "--recipe", recipe, *data)
        for name, layout in LAYOUTS.items():
            folder, other = tmp / name, tmp / (name + " out")
            (folder / "weights").mkdir(parents=True)
            other.mkdir()
            model = onnx.load(DIGITS / "digits_vit.onnx")
            convert_model_to_external_data(model, **layout)
            onnx.save(model, folder / "model.onnx")
            total = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            for recipe, levels in RECIPES.items():
                for out in (folder / "out.onnx", other / "out.onnx"):
                    run(program, folder / "model.onnx", "-o", out, "--recipe", recipe, *data, "--json", tmp / "report.json")
                    report = json.loads((tmp / "report.json").read_text())
                    near = tmp / f"near.{recipe}.onnx"
                    same = all(
                        (a == b).all()
                        for level in levels
                        for a, b in zip(want.setdefault((recipe, level), outputs(near, level, x)), alone(out, level, x))
                    )
                    sizes = (report["float"]["bytes"], report["quantized"]["bytes"]) == (total, out.stat().st_size)
                    ok = same and sizes
                    bad += not ok
                    if not ok:
                        print(f"FAIL {name}, {recipe}, {out.parent.name}: same {same}, sizes {sizes}")
                    out.unlink()
            print(f"ok   {name}: {total} bytes")
        # The layout of a cache: both names are links into another folder.
        cache = tmp / "cache"
        (cache / "blobs").mkdir(parents=True)
        (cache / "snapshots" / "7f").mkdir(parents=True)
        for blob, file in (("aa", "model.onnx"), ("bb", "model.onnx.data")):
            shutil.copy(tmp / "one file" / file, cache / "blobs" / blob)
            (cache / "snapshots" / "7f" / file).symlink_to(f"../../blobs/{blob}")
        run(program, cache / "snapshots" / "7f" / "model.onnx", "-o", tmp / "out.onnx", "--recipe", "none", *data)
        same = (alone(tmp / "out.onnx", LEVELS[0], x)[0] == want["none", LEVELS[0]][0]).all()
        bad += not same
        print("ok   links into a cache" if same else "FAIL links into a cache")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
