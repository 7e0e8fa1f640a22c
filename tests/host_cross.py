#!/usr/bin/env python3
"""Compares operators that the runtime has of its own, beside tract's, with onnxruntime.

    cargo build --release --example runtime_outputs
    python3 tests/host_cross.py            (needs onnx, onnxruntime, numpy)

Every case has several forms of one operator: modes, strides, groups, places outside of the image. Sums may be taken in
another order, so what is asked for is a distance of 2e-5 of the largest value.
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
rng = np.random.default_rng(7)
cases = []


def case(name, op, x, consts, opset=20, **attrs):
    """`x` is fed, the others are constants; None stands for one that is left out."""
    names = ["" if c is None else f"c{i}" for i, c in enumerate(consts)]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], **attrs)], "g",
        [helper.make_tensor_value_info("x", T.FLOAT, x.shape)], [helper.make_tensor_value_info("y", T.FLOAT, None)],
        [numpy_helper.from_array(c, n) for c, n in zip(consts, names) if n])
    cases.append((name, helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), x))


def normal(*dims):
    return rng.standard_normal(dims).astype(np.float32)


def roi_align():
    x = normal(2, 3, 9, 11)
    inside = np.array([[1, 1, 7, 6], [0, 0, 10, 8], [2.3, 1.7, 2.6, 5.1], [4, 4, 4, 4]], np.float32)
    outside = np.array([[-6, -5, 3, 4], [8, 6, 20, 30], [50, 50, 60, 60], [-0.4, -0.3, 0.2, 0.6]], np.float32)
    for mode in ("avg", "max"):
        for frame in ("half_pixel", "output_half_pixel"):
            for samples in (0, 2):
                for what, rois in (("inside", inside), ("outside", outside)):
                    case(f"RoiAlign {mode} {frame} {samples} {what}", "RoiAlign", x, [rois, np.array([0, 1, 1, 0])], mode=mode,
                         coordinate_transformation_mode=frame, sampling_ratio=samples, output_height=3, output_width=2,
                         spatial_scale=0.7)
    case("RoiAlign by default", "RoiAlign", x, [inside, np.array([0, 1, 0, 1])], output_height=2, output_width=2)
    case("RoiAlign of old", "RoiAlign", x, [inside, np.array([0, 1, 0, 1])], opset=10, output_height=2, output_width=2)


def deform_conv():
    for name, attrs, cin, cout in (
        ("plain", {}, 4, 6), ("padded", {"pads": [1, 2, 1, 0]}, 4, 6), ("strided", {"strides": [2, 1], "pads": [1, 1, 1, 1]}, 4, 6),
        ("dilated", {"dilations": [2, 2], "pads": [2, 2, 2, 2]}, 4, 6), ("groups", {"group": 2}, 4, 6),
        ("offset groups", {"offset_group": 2}, 4, 6), ("both", {"group": 2, "offset_group": 2}, 4, 6)):
        x = normal(2, cin, 8, 7)
        k, s, d = 3, attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1])
        p, og = attrs.get("pads", [0, 0, 0, 0]), attrs.get("offset_group", 1)
        h, w = [(n + p[i] + p[i + 2] - d[i] * (k - 1) - 1) // s[i] + 1 for i, n in enumerate((8, 7))]
        weight = normal(cout, cin // attrs.get("group", 1), k, k)
        offset = 1.5 * normal(2, og * k * k * 2, h, w)
        mask = rng.uniform(0, 1, (2, og * k * k, h, w)).astype(np.float32)
        case(f"DeformConv {name}", "DeformConv", x, [weight, offset], kernel_shape=[k, k], **attrs)
        case(f"DeformConv {name}, bias and mask", "DeformConv", x, [weight, offset, normal(cout), mask], kernel_shape=[k, k], **attrs)
        case(f"DeformConv {name}, mask", "DeformConv", x, [weight, offset, None, mask], kernel_shape=[k, k], **attrs)


def sums():
    """Few inputs and so many that tract's chain of additions is left to one operator; sizes that are one, and several ranks."""
    for op in ("Sum", "Mean"):
        for n in (16, 40):
            same = [normal(2, 3, 5) for _ in range(n - 1)]
            spread = [normal(*[(3, 5), (2, 1, 5), (1,), (4, 1, 1, 5)][i % 4]) for i in range(n - 1)]
            case(f"{op} of {n}", op, normal(2, 3, 5), same)
            case(f"{op} of {n}, spread", op, normal(2, 3, 5), spread)


def reverse_sequence():
    x = normal(4, 5, 3)
    case("ReverseSequence by default", "ReverseSequence", x, [np.array([4, 1, 0, 2, 3])])
    case("ReverseSequence batch first", "ReverseSequence", x, [np.array([5, 1, 0, 3])], batch_axis=0, time_axis=1)
    case("ReverseSequence flat", "ReverseSequence", normal(3, 6), [np.array([6, 2, 1])], batch_axis=0, time_axis=1)


def lp_pool():
    x = normal(2, 3, 8, 9)
    for p in (1, 2, 3):
        case(f"LpPool {p}", "LpPool", x, [], kernel_shape=[3, 2], p=p)
        case(f"LpPool {p} padded", "LpPool", x, [], kernel_shape=[3, 3], p=p, pads=[1, 0, 1, 2], strides=[2, 2])
    case("LpPool dilated", "LpPool", x, [], kernel_shape=[2, 3], dilations=[2, 2])


def main():
    for make in (roi_align, deform_conv, reverse_sequence, sums, lp_pool):
        make()
    bad = 0
    for name, model, x in cases:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        want = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        with tempfile.TemporaryDirectory() as tmp:
            tmp = pathlib.Path(tmp)
            onnx.save(model, str(tmp / "m.onnx"))
            np.savez(tmp / "in.npz", x=x)
            done = subprocess.run([RUN, tmp / "m.onnx", tmp / "in.npz", tmp / "out.npz"], capture_output=True, text=True)
            if done.returncode:
                bad += 1
                print(f"FAIL {name}: {done.stderr.strip()[:300]}")
                continue
            got = np.load(tmp / "out.npz")["y"]
        if got.shape != want.shape:
            bad += 1
            print(f"FAIL {name}: {got.shape}, not {want.shape}")
            continue
        far = float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))
        if not far < 2e-5:
            bad += 1
            print(f"FAIL {name}: {far:.2e} of the largest value away")
    print(f"{len(cases)} cases, {bad} failures")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
