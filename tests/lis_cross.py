"""Runs the models that `examples/lis_models.rs` wrote in onnxruntime and compares every bit with the reference.

    cargo run --release --no-default-features --example lis_models -- /tmp/lis
    python tests/lis_cross.py /tmp/lis
"""

import pathlib
import sys

import numpy as np
import onnx
import onnxruntime as ort

LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def main(root: pathlib.Path) -> int:
    folders = sorted(p.parent for p in root.glob("*/model.onnx"))
    bad = 0
    for folder in folders:
        model = (folder / "model.onnx").read_bytes()
        onnx.checker.check_model(onnx.load_model_from_string(model), full_check=True)
        feed = {p.stem: np.load(p) for p in folder.glob("*.npy")}
        want = feed.pop("expected")
        for name, level in LEVELS.items():
            options = ort.SessionOptions()
            options.graph_optimization_level = level
            options.log_severity_level = 3
            try:
                session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
                got = session.run(["y"], feed)[0]
            except Exception as e:  # a refusal is a failure of the case, not of the run
                bad += 1
                print(f"{folder.name} [{name}]: {e}")
                continue
            if got.shape != want.shape or not np.array_equal(got.view(np.uint32), want.view(np.uint32)):
                bad += 1
                differ = np.argwhere(got.view(np.uint32) != want.view(np.uint32)) if got.shape == want.shape else []
                first = tuple(differ[0]) if len(differ) else ()
                print(
                    f"{folder.name} [{name}]: {len(differ)} of {want.size} differ, first at {first}: "
                    f"{got[first] if len(differ) else got.shape} for {want[first] if len(differ) else want.shape}"
                )
    print(f"{len(folders)} models, {len(LEVELS)} optimization levels, {bad} failures")
    return 1 if bad or not folders else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
