"""Runs the models of `tests/integer_norm.rs` in onnxruntime.

    cargo test --release --test integer_norm
    python tests/integer_norm_cross.py target/tmp/integer_norm

At each optimization level: the distance to double precision, and the codes behind the norm against those of the float
LayerNormalization; they may differ where the value is a tie to within rounding. Needs onnx, onnxruntime and numpy.
"""
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime as ort

STEP = 0.0625


def run(path, level, feed):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(["y", "k"], feed)


def main(root: pathlib.Path) -> int:
    bad, n = 0, 0
    for path in sorted(p for p in root.glob("*.onnx") if not p.name.endswith(".float.onnx")):
        stem = str(path)[: -len(".onnx")]
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        q = model.graph.input[0].type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(q.elem_type)
        codes = np.fromfile(stem + ".codes", dtype).reshape(-1, q.shape.dim[1].dim_value)
        want = np.fromfile(stem + ".expected", np.float32).reshape(codes.shape).astype(np.float64)
        constants = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
        beta = np.abs(constants["beta"])
        size = np.maximum(np.abs(want - constants["beta"]) + beta, 1e-6)
        tie = np.abs(want / STEP - np.floor(want / STEP) - 0.5) < 1e-5 * np.maximum(np.abs(want / STEP), 1.0)
        for level in (ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
            y, k = run(str(path), level, {"q": codes})
            _, float_k = run(stem + ".float.onnx", level, {"q": codes})
            right = np.clip(np.rint(want / STEP) + 128, 0, 255)
            e = float((np.abs(y - want) / size).max())
            off = int(((k != right) & ~tie).sum())
            float_off = int(((float_k != right) & ~tie).sum())
            ok = e <= 3e-6 and off == 0
            bad, n = bad + (not ok), n + 1
            print(f"{'ok  ' if ok else 'FAIL'} {path.stem} {level.name}: {e:.1e}, {off} codes off (float form: {float_off})")
    print(f"{n} runs, {bad} failures")
    return 1 if bad or not n else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
