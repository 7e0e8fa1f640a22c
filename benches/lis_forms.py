"""Times the Log-Int-Softmax models that `examples/lis_forms.rs` wrote in onnxruntime, one thread.

    cargo run --release --example lis_forms -- /tmp/forms
    python benches/lis_forms.py /tmp/forms
"""

import pathlib
import sys
import time

import numpy as np
import onnxruntime as ort


def best(path: pathlib.Path) -> float:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feed = {}
    for i in session.get_inputs():
        codes = rng.normal(128, 25, i.shape).clip(0, 255)
        feed[i.name] = codes.astype(np.uint8) if "uint8" in i.type else (codes * 0.1).astype(np.float32)
    runs = []
    for _ in range(60):
        start = time.perf_counter()
        session.run(None, feed)
        runs.append(time.perf_counter() - start)
    return min(runs) * 1e3


root = pathlib.Path(sys.argv[1])
for heads in (3, 12, 16):
    base = best(root / f"float-{heads}.onnx")
    print(f"{heads:3} heads  float            {base:6.3f} ms")
    for path in sorted(root.glob(f"*-{heads}.onnx")):
        name = path.stem.removesuffix(f"-{heads}")
        if name != "float":
            t = best(path)
            print(f"{heads:3} heads  {name:16} {t:6.3f} ms  {t / base:5.2f} x float")
