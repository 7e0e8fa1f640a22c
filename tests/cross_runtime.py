#!/usr/bin/env python3
"""Compares our runtime with onnxruntime, bit for bit, on operators that quantized models rest on.

    cargo build --release --example runtime_outputs
    python3 tests/cross_runtime.py            (needs onnx, onnxruntime, numpy)

Every case runs in onnxruntime without graph optimization and, where the graph allows it, fully optimized.
Exit status 1 and one line per difference if any bit differs.
"""
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUN = ROOT / "target" / "release" / "examples" / "runtime_outputs"
NP = {T.FLOAT: np.float32, T.UINT8: np.uint8, T.INT8: np.int8, T.UINT16: np.uint16, T.INT16: np.int16,
      T.INT32: np.int32, T.UINT32: np.uint32}
LIMITS = {t: (np.iinfo(d).min, np.iinfo(d).max) for t, d in NP.items() if t != T.FLOAT}
rng = np.random.default_rng(20)
cases = []


def case(name, nodes, inputs, consts, outputs, opset=21):
    """inputs, consts: name -> array; outputs: name -> ONNX element type."""
    code = {np.dtype(v): k for k, v in NP.items()}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, code[a.dtype], a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, t, None) for n, t in outputs.items()],
        [c if isinstance(c, onnx.TensorProto) else numpy_helper.from_array(np.asarray(c), n) for n, c in consts.items()])
    cases.append((name, helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), inputs))


def near_ties(shape, scale):
    """Values whose quotients lie on ties, beside ties by one unit in the last place, and anywhere; plus extremes."""
    k = rng.integers(-400, 400, shape).astype(np.float32)
    x = ((k + np.float32(0.5)) * scale).astype(np.float32)
    kind = rng.integers(0, 4, shape)
    x = np.where(kind == 1, np.nextafter(x, np.float32(np.inf)), x)
    x = np.where(kind == 2, np.nextafter(x, np.float32(-np.inf)), x)
    x = np.where(kind == 3, rng.normal(0, 60, shape).astype(np.float32) * scale, x).astype(np.float32)
    x.ravel()[:6] = [np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0]
    return x


def qdq_cases():
    node = helper.make_node
    for t in (T.UINT8, T.INT8, T.UINT16, T.INT16):
        lo, hi = LIMITS[t]
        for i in range(4):
            s = np.float32(rng.uniform(1e-3, 2))
            z = NP[t](rng.integers(lo, hi + 1))
            case(f"per tensor {T.DataType.Name(t)} {i}",
                 [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
                 {"x": near_ties((37, 41), s)}, {"s": s, "z": z}, {"q": t, "y": T.FLOAT})
        for axis in (0, 1, 2, -1):
            shape = (5, 6, 7)
            n = shape[axis]
            s = rng.uniform(1e-3, 2, n).astype(np.float32)
            z = rng.integers(lo, hi + 1, n).astype(NP[t])
            spread = s.reshape([-1 if a == axis % 3 else 1 for a in range(3)])
            case(f"axis {axis} {T.DataType.Name(t)}",
                 [node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis),
                  node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis)],
                 {"x": near_ties(shape, spread)}, {"s": s, "z": z}, {"q": t, "y": T.FLOAT})
    case("NaN", [node("QuantizeLinear", ["x", "s", "z"], ["q"])],
         {"x": np.full(64, np.nan, np.float32)}, {"s": np.float32(1), "z": np.uint8(10)}, {"q": T.UINT8})
    case("int32 bias", [node("DequantizeLinear", ["q", "s"], ["y"], axis=0)],
         {"q": rng.integers(-2**31, 2**31, 50).astype(np.int32)}, {"s": rng.uniform(1e-6, 1, 50).astype(np.float32)},
         {"y": T.FLOAT})
    for t, (lo, hi) in ((T.INT4, (-8, 7)), (T.UINT4, (0, 15))):
        w = rng.integers(lo, hi + 1, (8, 6))
        s = rng.uniform(0.01, 1, (2, 6)).astype(np.float32)
        z = rng.integers(lo, hi + 1, (2, 6))
        case(f"blocked {T.DataType.Name(t)}",
             [node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0, block_size=4), node("Add", ["x", "d"], ["y"])],
             {"x": np.zeros((8, 6), np.float32)},
             {"w": helper.make_tensor("w", t, (8, 6), w.ravel()), "s": s,
              "z": helper.make_tensor("z", t, (2, 6), z.ravel())}, {"y": T.FLOAT})


def integer_cases():
    node = helper.make_node
    f = rng.uniform(-5, 60, (40, 33)).astype(np.float32)
    case("clip, cast, shift", [
        node("Clip", ["x", "lo", "hi"], ["c"]), node("Cast", ["c"], ["u"], to=T.UINT32),
        node("BitShift", ["one", "u"], ["w"], direction="RIGHT"), node("Cast", ["w"], ["low"], to=T.UINT8),
        node("BitShift", ["w", "eight"], ["h"], direction="RIGHT"), node("Cast", ["h"], ["high"], to=T.UINT8)],
        {"x": f}, {"lo": np.float32(0), "hi": np.float32(31), "one": np.uint32(16384), "eight": np.uint32(8)},
        {"u": T.UINT32, "w": T.UINT32, "low": T.UINT8, "high": T.UINT8})
    a = rng.integers(0, 256, (3, 17, 29)).astype(np.uint8)
    # uint8 by uint8 is exact on every processor, at the ends of the range too; uint8 by int8 is not (see products.rs).
    a[..., :9], top = 255, rng.integers(0, 256, (29, 8)).astype(np.uint8)
    top[:9] = 255
    for name, b in (("weight", top), ("batch", rng.integers(0, 256, (3, 29, 8)).astype(np.uint8))):
        case(f"MatMulInteger {name}", [node("MatMulInteger", ["a", "b", "za", "zb"], ["y"])], {"a": a, "b": b},
             {"za": np.uint8(131), "zb": np.uint8(128)}, {"y": T.INT32})
        case(f"MatMulInteger constant {name}", [node("MatMulInteger", ["a", "b", "za", "zb"], ["y"])], {"a": a},
             {"b": b, "za": np.uint8(131), "zb": np.uint8(128)}, {"y": T.INT32})
    image = rng.integers(0, 256, (2, 6, 9, 11)).astype(np.uint8)
    image[:, :, :3] = 255
    for name, shape, more in (
            ("patches", (5, 6, 3, 3), {"strides": [3, 3]}),
            ("padded", (5, 6, 3, 3), {"pads": [1, 1, 1, 1]}),
            ("padded on one side, strided", (5, 6, 3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
            ("padded by itself", (5, 6, 3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
            ("dilated", (4, 6, 2, 2), {"dilations": [2, 3], "pads": [1, 1, 1, 1]}),
            ("grouped", (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
            ("channel by channel", (12, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]})):
        w = rng.integers(0, 256, shape).astype(np.uint8)
        w[0] = 255
        case(f"ConvInteger {name}", [node("ConvInteger", ["x", "w", "zx", "zw"], ["y"], **more)], {"x": image},
             {"w": w, "zx": np.uint8(131), "zw": np.uint8(128)}, {"y": T.INT32})
    for t in (T.UINT8, T.INT32):
        case(f"row maximum {T.DataType.Name(t)}", [
            node("Cast", ["a"], ["c"], to=t), node("ReduceMax", ["c", "axes"], ["y"], keepdims=1)],
            {"a": a}, {"axes": np.array([-1], np.int64)}, {"y": t})
    m = np.float32(2**23)
    case("add and subtract", [node("Add", ["x", "m"], ["a"]), node("Sub", ["a", "m"], ["y"]),
                              node("Mul", ["r", "m"], ["k"]), node("Add", ["r", "k"], ["b"]), node("Sub", ["b", "k"], ["p"])],
         {"x": np.abs(f), "r": rng.integers(1, 2**20, (40, 33)).astype(np.float32)}, {"m": m},
         {"y": T.FLOAT, "p": T.FLOAT})
    case("reciprocal", [node("Reciprocal", ["x"], ["y"])], {"x": np.arange(1, 4097, dtype=np.float32)}, {}, {"y": T.FLOAT})


def main():
    qdq_cases()
    integer_cases()
    bad = 0
    with tempfile.TemporaryDirectory() as d:
        d = pathlib.Path(d)
        for name, model, inputs in cases:
            onnx.save(model, d / "m.onnx")
            np.savez(d / "in.npz", **inputs)
            ran = subprocess.run([RUN, d / "m.onnx", d / "in.npz", d / "out.npz"], capture_output=True, text=True)
            if ran.returncode:
                print(f"{name}: ours fails: {ran.stderr.strip()}")
                bad += 1
                continue
            ours = np.load(d / "out.npz")
            for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
                options = ort.SessionOptions()
                options.graph_optimization_level = level
                options.log_severity_level = 3
                session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
                for out, want in zip(session.get_outputs(), session.run(None, inputs)):
                    got = ours[out.name]
                    same = got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()
                    if not same:
                        wrong = int((got != want).sum()) if got.shape == want.shape else "shape"
                        at = np.argwhere(got != want)[0] if got.shape == want.shape and wrong else None
                        print(f"{name}, {out.name}, {level.name}: {wrong} of {want.size} differ"
                              + (f"; first at {tuple(at)}: {got[tuple(at)]} against {want[tuple(at)]}" if at is not None else ""))
                        bad += 1
    print(f"{len(cases)} cases, {bad} differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
