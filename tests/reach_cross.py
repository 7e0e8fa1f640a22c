#!/usr/bin/env python3
"""Detectors, odd exports, odd data: compiles small models of each kind and judges the files in onnxruntime.

    cargo build --release
    python tests/reach_cross.py target/release/fqvit-opt [NAME-PART ...]

Every model must compile with the exit status of its kind, say what its kind must say, load in onnxruntime at every level of
optimization, be as near to the float model as its kind asks, and be the same at all levels.
"""

import json
import math
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import reach_norms  # noqa: F401: adds its kinds
import reach_tokens  # noqa: F401: adds its kinds
import reach_values  # noqa: F401: adds its kinds
from forms import D, H, N, Graph, attention, block, encoder, gelu, layer_norm, linear
from reach import KINDS, Kind, W, kind, of

LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
HELD = 8


# ---- norms -----------------------------------------------------------------------------------------------------------


def rms(g, x, form):
    gain = g.const(1 + 0.3 * g.rng.standard_normal(D))
    if form == "node":
        return g.op("RMSNormalization", x, gain, axis=-1, epsilon=1e-6)
    square = g.op("Pow", x, g.const(2.0)) if "pow" in form else g.op("Mul", x, x)
    e = g.op("Add", g.mean(square, -1), g.const(1e-6))
    if "power" in form:
        n = g.op("Mul", x, g.op("Pow", e, g.const(-0.5)))
    elif "div" in form:
        n = g.op("Div", x, g.op("Sqrt", e))
    else:
        n = g.op("Mul", x, g.op("Reciprocal", g.op("Sqrt", e)))
    return n if "plain" in form else g.op("Mul", gain, n) if "left" in form else g.op("Mul", n, gain)


def rms_network(opset, form, outlier=0.0):
    g = Graph(opset)
    x = g.input("x", [N, D], lambda r, s: r.standard_normal(s) * np.where(np.arange(D) == 3, 1 + outlier, 1))
    for _ in range(2):
        x = g.op("Add", x, attention(g, rms(g, x, form)))
        x = g.op("Add", x, linear(g, gelu(g, linear(g, rms(g, x, form), D, 2 * D)), 2 * D, D))
    g.output(rms(g, x, form), [N, D])
    return g.case(2, 5, 2)


for opset in (17, 20, 23):
    for form in ("pow-reciprocal", "mul-power", "pow-div", "pow-plain-div", "mul-left"):
        KINDS[f"rms-{form}-{opset}"] = lambda o=opset, f=form: of(rms_network(o, f), least=22, attentions=2, norms=5)
KINDS["rms-node"] = lambda: of(rms_network(23, "node"), least=22, attentions=2, norms=5)
KINDS["rms-outlier"] = lambda: of(rms_network(20, "pow-div", 40.0), least=18, attentions=2, norms=5)


# ---- Softmax that is no attention ------------------------------------------------------------------------------------


@kind("softmax-factorised")
def factorised():
    """CoaT: the Softmax over the tokens of the keys, keys times values first."""
    g = Graph(17)
    x = g.input("x", [N, D])
    for _ in range(2):
        y = layer_norm(g, x)
        q, k, v = [g.transpose(g.reshape(linear(g, y, D, D), -1, N, H, W), 0, 2, 1, 3) for _ in range(3)]
        k = g.op("Softmax", k, axis=2)
        z = g.op("MatMul", q, g.op("MatMul", g.transpose(k, 0, 1, 3, 2), v))
        x = g.op("Add", x, linear(g, g.reshape(g.transpose(z, 0, 2, 1, 3), -1, N, D), D, D))
        x = g.op("Add", x, linear(g, gelu(g, linear(g, layer_norm(g, x), D, 2 * D)), 2 * D, D))
    g.output(x, [N, D])
    return of(g.case(0, 4, 2), least=20)


@kind("softmax-experts")
def experts():
    """Soft gates over experts; the scores are a value that others read, too."""
    g = Graph(17)
    x = block(g, g.input("x", [N, D]))
    y = layer_norm(g, x)
    scores = linear(g, y, D, 4)
    gates = g.op("Softmax", scores, axis=-1)
    parts = [linear(g, gelu(g, linear(g, y, D, D)), D, D) for _ in range(4)]
    z = None
    for i, p in enumerate(parts):
        one = g.op("Mul", p, g.op("Gather", gates, g.ints(i), axis=-1))
        z = one if z is None else g.op("Add", z, one)
    g.output(g.op("Add", x, z), [N, D])
    g.output(g.op("Relu", scores), [N, 4])
    return of(g.case(1, 3, 5), least=18)


@kind("softmax-output")
def probabilities():
    g = Graph(17)
    x = g.mean(block(g, g.input("x", [N, D])), 1, keep=0)
    g.output(g.op("Softmax", linear(g, x, D, 10), axis=-1), [10])
    return of(g.case(1, 2, 1), least=20)


# ---- BatchNormalization, stacks, ConvTranspose, tables ---------------------------------------------------------------


def batch_norm(g, x, n):
    r = g.rng
    return g.op("BatchNormalization", x, g.const(r.uniform(0.5, 1.5, n)), g.const(0.2 * r.standard_normal(n)),
                g.const(0.3 * r.standard_normal(n)), g.const(r.uniform(0.3, 2, n)))


@kind("batch-norm-linear")
def levit():
    g = Graph(17, batch=1)
    def dense(x, a, b):
        y = g.op("MatMul", x, g.weight(a, b))
        y = batch_norm(g, g.op("Flatten", y, axis=2), b)
        return g.reshape(y, 1, N, b)
    x = g.input("x", [N, D])
    for _ in range(2):
        q, k, v = [g.transpose(g.reshape(dense(x, D, D), 1, N, H, W), 0, 2, 1, 3) for _ in range(3)]
        s = g.op("Mul", g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2)), g.const(W**-0.5))
        z = g.op("MatMul", g.op("Softmax", s, axis=-1), v)
        x = g.op("Add", x, dense(g.reshape(g.transpose(z, 0, 2, 1, 3), 1, N, D), D, D))
        x = g.op("Add", x, dense(g.op("HardSwish", dense(x, D, 2 * D)), 2 * D, D))
    g.output(x, [N, D])
    return of(g.case(2, 0, 0), least=18, silent=("BatchNormalization",), attentions=2)


@kind("stack-sum")
def stacked():
    g = Graph(17)
    x = g.input("x", [N, D])
    for _ in range(2):
        parts = [g.unsqueeze(linear(g, gelu(g, linear(g, layer_norm(g, x), D, D)), D, D), 0) for _ in range(3)]
        x = g.op("Add", x, g.op("ReduceSum", g.op("Concat", *parts, axis=0), g.ints(0), keepdims=0))
    g.output(x, [N, D])
    return of(g.case(0, 6, 6), least=22, silent=("ReduceSum",))


@kind("conv-transpose")
def upsampled():
    g = Graph(17)
    x = block(g, g.input("x", [N, D]))
    y = g.reshape(g.transpose(x, 0, 2, 1), -1, D, 3, 4)
    y = g.op("ConvTranspose", y, g.weight(D, 16, 4, 4, scale=0.1), g.const(0.1 * g.rng.standard_normal(16)), strides=[4, 4])
    g.output(g.op("Conv", g.op("Relu", y), g.weight(1, 16, 1, 1, scale=0.2), g.const([0.1])), [1, 12, 16])
    return of(g.case(1, 2, 1), least=18, says=("ConvTranspose",))


@kind("embedding")
def embedded():
    """A table of 400 words: codes, one scale a channel, and ids below its size without data."""
    g = Graph(17)
    ids = g.input("ids", [N], lambda r, s: r.integers(0, 400, s), np.int64)
    x = g.op("Add", g.op("Gather", g.weight(400, D, scale=1.0), ids), g.weight(N, D, scale=0.3))
    g.output(block(g, x), [N, D])
    return of(g.case(1, 2, 1), least=20)


@kind("embedding-made-up")
def embedded_without_data():
    g = Graph(17)
    ids = g.input("ids", [N], lambda r, s: r.integers(0, 12, s), np.int64)
    kinds = g.input("kinds", [N], lambda r, s: r.integers(0, 2, s), np.int64)
    x = g.op("Add", g.op("Gather", g.weight(12, D, scale=1.0), ids), g.op("Gather", g.weight(2, D, scale=1.0), kinds))
    g.output(block(g, x), [N, D])
    return of(g.case(1, 2, 1), least=12, made_up=True)


# ---- positions and angles --------------------------------------------------------------------------------------------


@kind("fourier-points")
def fourier():
    """Segment Anything's prompt: points times frequencies, sine and cosine."""
    g = Graph(17)
    p = g.input("points", [N, 2], lambda r, s: r.uniform(0, 64, s))
    p = g.op("Sub", g.op("Mul", g.op("Div", p, g.const(64.0)), g.const(2.0)), g.const(1.0))
    a = g.op("Mul", g.op("MatMul", p, g.weight(2, D // 2, scale=2.0)), g.const(2 * math.pi))
    x = g.op("Concat", g.op("Sin", a), g.op("Cos", a), axis=-1)
    g.output(block(g, x), [N, D])
    return of(g.case(1, 2, 1), least=20)


@kind("grid-of-sizes")
def interpolated():
    """Weights of an interpolation computed from sizes that are fed: they stay as they are."""
    g = Graph(17)
    x = g.input("x", [N, D])
    s = g.input("sizes", [2], lambda r, sh: r.integers(2, 6, sh), np.int64)
    real = g.op("Cast", s, to=T.FLOAT)
    scale = g.op("Div", g.op("Slice", real, g.ints(0), g.ints(1), g.ints(1)), g.op("Slice", real, g.ints(1), g.ints(2), g.ints(1)))
    at = g.op("Sub", g.op("Mul", g.op("Add", g.const(np.arange(N)[None]), g.const(0.5)), scale), g.const(0.5))
    far = g.op("Abs", g.op("Sub", g.unsqueeze(at, 2), g.const(np.arange(6)[None, None])))
    w = g.op("Clip", g.op("Sub", g.const(1.0), far), g.const(0.0))
    w = g.op("Div", w, g.op("Add", g.op("ReduceSum", w, g.ints(-1), keepdims=1), g.const(1e-3)))
    x = g.op("Add", x, g.op("MatMul", w, g.weight(6, D, scale=1.0)))
    g.output(block(g, x), [N, D])
    return of(g.case(1, 2, 1), least=20)


# ---- data ------------------------------------------------------------------------------------------------------------


@kind("nan-rows")
def padded():
    """Queries that see no key have no weights, and nothing reads what follows from them."""
    g = Graph(17)
    x = g.input("x", [N, D])
    keep = g.input("keep", [N], lambda r, s: np.arange(s[1])[None] < r.integers(4, s[1] - 1, (s[0], 1)), bool)
    q, k, v = [g.transpose(g.reshape(linear(g, layer_norm(g, x), D, D), -1, N, H, W), 0, 2, 1, 3) for _ in range(3)]
    both = g.op("And", g.unsqueeze(keep, 1, 2), g.unsqueeze(keep, 1, 3))
    s = g.op("Where", both, g.op("Mul", g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2)), g.const(W**-0.5)), g.const(-np.inf))
    z = g.op("MatMul", g.op("Softmax", s, axis=-1), v)
    x = g.op("Add", x, linear(g, g.reshape(g.transpose(z, 0, 2, 1, 3), -1, N, D), D, D))
    x = g.op("Add", x, linear(g, gelu(g, linear(g, layer_norm(g, x), D, 2 * D)), 2 * D, D))
    x = g.op("Where", g.unsqueeze(keep, 2), x, g.const(0.0))
    g.output(g.mean(x, 1, keep=0), [D])
    return of(g.case(1, 2, 1), least=18, says=("no output depends on",))


@kind("leading-sizes")
def zero_shot():
    """One picture, five texts."""
    g = Graph(17, batch=1)
    x = g.mean(block(g, g.input("x", [N, D])), 1, keep=0)
    g.batch = 5
    ids = g.input("ids", [N], lambda r, s: r.integers(0, 40, (5 * 4, s[1])), np.int64)
    g.batch = 1
    t = g.mean(block(g, g.op("Gather", g.weight(40, D, scale=1.0), ids)), 1, keep=0)
    g.output(g.op("MatMul", x, g.transpose(t, 1, 0)), [5])
    c = g.case(2, 4, 2)
    c.feed = {"x": c.feed["x"][:4], "ids": c.feed["ids"]}
    return of(c, least=10, rows=False)


@kind("scalar-output")
def scalar():
    g = Graph(17, batch=1)
    x = block(g, g.input("x", [N, D]))
    g.output(x, [N, D])
    y = g.op("ReduceMean", x, axes=[0, 1, 2], keepdims=0)
    g.nodes.append(helper.make_node("Identity", [y], ["mean"], name="mean"))
    g.outputs.append(helper.make_tensor_value_info("mean", T.FLOAT, []))
    return of(g.case(1, 2, 1), least=-20)


@kind("bfloat16")
def narrow():
    g = Graph(17)
    x = g.input("x", [N, D])
    y = block(g, g.op("Cast", x, to=T.FLOAT))
    g.output(y, [N, D])
    c = g.case(1, 2, 1)
    c.model.graph.input[0].type.tensor_type.elem_type = T.BFLOAT16
    # onnxruntime's Python has no arrays of bfloat16: the file is only compiled and loaded.
    return of(c, least=None)


@kind("open-sizes")
def open_sizes():
    """-1 and ? are sizes that are not known, as onnxruntime takes them."""
    g = Graph(17)
    x = g.input("x", [3, 8, 8])
    y = g.op("Conv", x, g.weight(D, 3, 4, 4, scale=0.2), g.const(np.zeros(D)), kernel_shape=[4, 4], strides=[4, 4])
    y = g.transpose(g.reshape(y, 0, D, 4), 0, 2, 1)
    y = g.op("Add", y, linear(g, gelu(g, linear(g, layer_norm(g, y), D, 2 * D)), 2 * D, D))
    g.output(y, [4, D])
    c = g.case(0, 1, 1)
    d = c.model.graph.input[0].type.tensor_type.shape.dim
    d[0].dim_value, d[2].dim_param, d[3].dim_param = -1, "?", "?"
    return of(c, least=20, flags=("--shape", "x=1,3,8,8"))


@kind("cache-made-up")
def cached():
    """A step of a decoder: its cache is an input, and one name is one size in several inputs."""
    g = Graph(17)
    x = g.input("x", [1, D])
    past = [g.input(f"past_key_values.0.{n}", [H, 7, W]) for n in ("key", "value")]
    y = layer_norm(g, x)
    q, k, v = [g.transpose(g.reshape(linear(g, y, D, D), -1, 1, H, W), 0, 2, 1, 3) for _ in range(3)]
    k, v = (g.op("Concat", p, n, axis=2) for p, n in zip(past, (k, v)))
    s = g.op("Mul", g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2)), g.const(W**-0.5))
    mask = g.input("attention_mask", [8], lambda r, sh: np.arange(sh[1])[None] < r.integers(4, 9, (sh[0], 1)), np.int64)
    m = g.op("Mul", g.op("Sub", g.const(1.0), g.op("Cast", g.unsqueeze(mask, 1, 2), to=T.FLOAT)), g.const(-1e9))
    z = g.op("MatMul", g.op("Softmax", g.op("Add", s, m), axis=-1), v)
    g.output(g.op("Add", x, linear(g, g.reshape(g.transpose(z, 0, 2, 1, 3), -1, 1, D), D, D)), [1, D])
    c = g.case(1, 1, 0)
    for i in c.model.graph.input:
        dims = i.type.tensor_type.shape.dim
        if i.name.startswith("past"):
            dims[2].dim_param = "past"
        if i.name == "attention_mask":
            dims[1].dim_param = "past + 1"
    return of(c, least=12, made_up=True)


# ---- the report ------------------------------------------------------------------------------------------------------


@kind("lstm")
def recurrent():
    g = Graph(17, batch=1)
    x = block(g, g.input("x", [N, D]))
    t = g.transpose(x, 1, 0, 2)
    y = g.op("LSTM", t, g.weight(1, 4 * D, D, scale=0.2), g.weight(1, 4 * D, D, scale=0.2), hidden_size=D)
    g.output(linear(g, g.transpose(g.squeeze(y, 1), 1, 0, 2), D, 5), [N, 5])
    return of(g.case(1, 2, 1), least=18, says=("LSTM",))


@kind("unnamed")
def without_names():
    """What stays in float is called by what it makes."""
    g = Graph(17)
    x = block(g, g.input("x", [N, D]))
    y = g.op("Softmax", linear(g, x, D, 6), axis=-1)
    g.output(g.op("Sin", y), [N, 6])
    c = g.case(1, 2, 1)
    made = [n.output[0] for n in c.model.graph.node if n.op_type == "Sin"][0]
    for n in c.model.graph.node:
        n.name = ""
    return of(c, least=12, says=(made,))


@kind("all-in-an-if")
def branches():
    g = Graph(17)
    c = encoder()
    inner = helper.make_graph([n for n in c.model.graph.node], "then", [], list(c.model.graph.output), list(c.model.graph.initializer))
    other = onnx.GraphProto()
    other.CopyFrom(inner)
    other.name = "else"
    for n in other.node:
        n.name += "_e"
    flag = helper.make_tensor_value_info("flag", T.BOOL, [1])
    body = helper.make_graph([helper.make_node("If", ["flag"], ["out0"], "choice", then_branch=inner, else_branch=other)],
                             "g", [c.model.graph.input[0], flag], list(c.model.graph.output))
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Kind(model, {"x": c.feed["x"], "flag": np.ones(len(c.feed["x"]), bool)}, status=1, says=("bodies of If", "choice"))


@kind("one-processor")
def saved_at_all():
    g = Graph(17)
    x = g.input("x", [8, 4, 4])
    g.output(g.op("Conv", g.op("ReorderInput", x, domain="com.microsoft.nchwc"), g.weight(8, 8, 1, 1), domain="com.microsoft.nchwc"), [8, 4, 4])
    c = g.case(0, 0, 0)
    c.model.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    return of(c, status=1, says=("ORT_ENABLE_EXTENDED",))


@kind("few-samples")
def undecided():
    """Ten classes that are all but equal, on three samples: nothing can be told from a flip."""
    g = Graph(17)
    x = g.mean(block(g, g.input("x", [N, D])), 1, keep=0)
    g.output(linear(g, x, D, 10), [10])
    c = g.case(1, 2, 1)
    c.feed = {k: v[: HELD + 3] for k, v in c.feed.items()}
    return of(c, least=12)


@kind("depth-map")
def dense():
    """One channel has no classes: no row of it is held to name the same one."""
    g = Graph(17)
    x = block(g, g.input("x", [N, D]))
    y = g.reshape(g.transpose(x, 0, 2, 1), -1, D, 3, 4)
    g.output(g.op("Conv", y, g.weight(1, D, 1, 1, scale=0.2), g.const([0.0])), [1, 3, 4])
    return of(g.case(1, 2, 1), least=15, silent=('"name": "top1_agreement"',))


@kind("labels")
def arg_max():
    g = Graph(17)
    x = block(g, g.input("x", [N, D]))
    g.output(g.op("ArgMax", linear(g, x, D, 6), axis=-1, keepdims=0), [N], np.int64)
    return of(g.case(1, 2, 1), least=None, says=("equal",))


# ---- operators that the executor lacks -------------------------------------------------------------------------------


@kind("roi-align")
def regions():
    g = Graph(17, batch=1)
    x = block(g, g.input("x", [N, D]))
    y = g.reshape(g.transpose(x, 0, 2, 1), 1, D, 3, 4)
    rois = g.const([[0, 0, 3, 2], [0.5, 0.4, 2.7, 1.9], [1, 0, 1.5, 2.5]])
    r = g.op("RoiAlign", y, rois, g.ints(0, 0, 0), output_height=2, output_width=2, sampling_ratio=2, spatial_scale=1.0)
    y = g.op("Gemm", g.op("Flatten", r, axis=1), g.weight(4 * D, 6), g.const(np.zeros(6)))
    g.nodes.append(helper.make_node("Identity", [y], ["out0"], name="out0"))
    g.outputs.append(helper.make_tensor_value_info("out0", T.FLOAT, [3, 6]))
    return of(g.case(1, 2, 1), least=18, silent=("cannot be run",))


@kind("sequence")
def listed():
    g = Graph(17)
    x = block(g, g.input("x", [N, D]))
    s = g.op("SplitToSequence", x, g.const(4, np.int64), axis=1)
    parts = [g.op("SequenceAt", s, g.const(i, np.int64)) for i in (0, -1)]
    y = g.op("ConcatFromSequence", g.op("SequenceConstruct", *parts), axis=1)
    g.output(linear(g, y, D, D), [8, D])
    return of(g.case(1, 2, 1), least=18, silent=("cannot be run",))


@kind("cut")
def cut():
    """What follows an operator that nobody here has stays as it is, and is put back."""
    g = Graph(20)
    x = g.mean(block(g, g.input("x", [N, D])), 1, keep=0)
    theta = g.reshape(linear(g, x, D, 6), -1, 2, 3)
    grid = g.op("AffineGrid", theta, g.ints(1, 1, 4, 4))
    g.output(g.op("Mul", grid, g.const(0.5)), [4, 4, 2])
    c = g.case(1, 2, 1)
    c.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    c.model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    return of(c, least=15, says=("AffineGrid", "up to"))


# ---- judging ---------------------------------------------------------------------------------------------------------


def outputs(path, feed, level, rows):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    s = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    dims = {i.name: i.shape for i in s.get_inputs()}
    lead = lambda n: dims[n][0] if dims[n] and isinstance(dims[n][0], int) and dims[n][0] > 0 else 1
    count = min(len(v) // lead(n) for n, v in feed.items())
    made = [s.run(None, {n: v[i * lead(n):(i + 1) * lead(n)] for n, v in feed.items()}) for i in range(count)]
    return [np.stack(o) for o in zip(*made)]


def db(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    if a.shape != b.shape or not np.isfinite(b).all():
        return -math.inf
    noise = float(((a - b) ** 2).sum())
    return 10 * math.log10(float((a**2).sum()) / noise) if noise else math.inf


def judge(program, k, folder):
    model, quantized, report = folder / "float.onnx", folder / "q.onnx", folder / "report.json"
    onnx.save(k.model, str(model))
    lead = {i.name: i.type.tensor_type.shape.dim[0].dim_value for i in k.model.graph.input}
    rows = lambda n: max(lead[n], 1) if not k.rows else 1
    held = {n: v[: HELD * rows(n)] if k.rows else v for n, v in k.feed.items()}
    rest = {n: v[HELD * rows(n):] if k.rows else v for n, v in k.feed.items()}
    np.savez(folder / "calib.npz", **rest)
    np.savez(folder / "held.npz", **held)
    data = () if k.made_up else ("--calibrate", folder / "calib.npz")
    args = [program, model, "-o", quantized, "--quiet", "--json", report, *data, *k.flags]
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    said = " ".join((done.stderr + done.stdout).split())
    wrong = []
    if done.returncode != k.status:
        wrong.append(f"exit status {done.returncode}, not {k.status}: {said[:300]}")
    told = said + (report.read_text() if report.exists() else "")
    wrong += [f"does not say `{t}`" for t in k.says if t not in told]
    wrong += [f"says `{t}`" for t in k.silent if t in told]
    if k.status == 1:
        if quantized.exists():
            wrong.append("wrote a file")
        return not wrong, "; ".join(["refused", *wrong])
    if not quantized.exists():
        return False, "; ".join(wrong)
    onnx.checker.check_model(str(quantized))
    if k.least is None:
        for level in LEVELS:
            options = ort.SessionOptions()
            options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
            options.log_severity_level = 4
            ort.InferenceSession(str(quantized), options, providers=["CPUExecutionProvider"])
        return not wrong, "; ".join(["loads", *wrong])
    reference = outputs(model, held, "ORT_DISABLE_ALL", k.rows)
    made = {level: outputs(quantized, held, level, k.rows) for level in LEVELS}
    worst = {level: min(db(a, b) for a, b in zip(reference, o)) for level, o in made.items()}
    wrong += [f"{level}: {x:.1f} dB, not {k.least}" for level, x in worst.items() if x < k.least]
    for level in LEVELS[1:]:
        apart = min(db(a, b) for a, b in zip(made[LEVELS[0]], made[level]))
        if apart < k.between:
            wrong.append(f"{level} differs from {LEVELS[0]}: {apart:.1f} dB")
    graph = onnx.load(str(quantized)).graph
    held_in_float = [t.name for t in graph.initializer if t.data_type == T.FLOAT and math.prod(t.dims) >= N * W]
    if k.tables and held_in_float:
        wrong.append(f"in float: {', '.join(held_in_float)}")
    if k.tables:
        # What tract makes of it.
        done = subprocess.run([program, "verify", quantized, quantized, "--data", folder / "held.npz", "--quiet", "--outputs",
                               folder / "tract.npz"], capture_output=True, text=True)
        ours = np.load(folder / "tract.npz") if done.returncode == 0 else {}
        for i, name in enumerate(o.name for o in graph.output):
            apart = db(made[LEVELS[0]][i].reshape(ours[name].shape), ours[name]) if name in ours else -math.inf
            if apart < k.between:
                wrong.append(f"tract differs: {apart:.1f} dB {done.stderr[:200]}")
    softmax = graph.node
    makers = {o: n for n in softmax for o in n.output}
    readers = {}
    for n in softmax:
        for i in n.input:
            readers.setdefault(i, []).append(n.op_type)
    for n in softmax:
        if n.op_type == "Softmax" and n.input[0] in makers and makers[n.input[0]].op_type == "DequantizeLinear":
            if "QuantizeLinear" in readers.get(n.output[0], []):
                wrong.append(f"Softmax {n.name} lies between codes")
    if k.attentions is not None or k.norms is not None:
        done = subprocess.run([program, "inspect", str(model)], capture_output=True, text=True).stdout
        for what, want in (("attentions", k.attentions), ("LayerNorms", k.norms)):
            if want is not None and f"{want} {what}" not in done:
                wrong.append(f"not {want} {what}")
    return not wrong, "; ".join([", ".join(f"{x:.1f}" for x in worst.values()), *wrong])


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())
    names = [n for n in KINDS if not sys.argv[2:] or any(p in n for p in sys.argv[2:])]
    bad = 0
    for name in names:
        with tempfile.TemporaryDirectory() as tmp:
            try:
                fine, text = judge(program, KINDS[name](), pathlib.Path(tmp))
            except Exception as e:  # One model's failure must not hide the others'.
                fine, text = False, f"{type(e).__name__}: {str(e)[:300]}"
        bad += not fine
        print(f"{'ok  ' if fine else 'FAIL'} {name}: {text}", flush=True)
    print(f"{len(names)} models, {bad} failures")
    return 1 if bad or not names else 0


if __name__ == "__main__":
    sys.exit(main())
