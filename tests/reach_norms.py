"""Norms in the forms that exporters give them. Kinds for reach_cross.py."""

import math

import numpy as np

from forms import D, N, Graph, attention, gelu, linear
from reach import KINDS, of


# ---- RMSNorm by the length of a row ----------------------------------------------------------------------------------


def by_length(g, x, form):
    """One RMSNorm; `form` says how the row gets its length, what keeps it from 0, and where root and gain stand."""
    axes = {"axes": [-1]} if g.opset < 18 else {}
    reduce = lambda kind, v: g.op(kind, v, *([] if axes else [g.ints(-1)]), keepdims=1, **axes)
    gain, root = g.const(1 + 0.3 * g.rng.standard_normal(D)), g.const(math.sqrt(D))
    if "node" in form:
        u = g.op("LpNormalization", x, axis=-1, p=2)
    else:
        length = reduce("ReduceL2", x)
        if "square" in form:
            length = g.op("Sqrt", reduce("ReduceSumSquare", x))
        if "mean" in form:
            length = g.op("Div", length, root) if "div" in form else g.op("Mul", length, g.const(D**-0.5))
        if "max" in form:
            length = g.op("Max", length, g.const(1e-6))
        elif "add" in form:
            length = g.op("Add", length, g.const(1e-8))
        else:
            length = g.op("Clip", length, g.const(1e-12))
        if "reciprocal" in form:
            u = g.op("Mul", x, g.op("Reciprocal", length))
        else:
            shape = g.op("Shape", x)
            u = g.op("Div", x, g.op("Expand", length, shape) if "expand" in form else length)
    if "times" in form:
        u = g.op("Mul", u, root)
    if "plain" in form:
        return u
    if "times" not in form and "mean" not in form:
        gain = g.const(math.sqrt(D) * (1 + 0.3 * g.rng.standard_normal(D)))
    return g.op("Mul", u, gain)


def length_network(opset, form):
    g = Graph(opset)
    # One channel far from the others, as streams have it: squares hide everything else.
    x = g.input("x", [N, D], lambda r, s: r.standard_normal(s) * np.where(np.arange(D) == 3, 20, 1))
    for _ in range(2):
        x = g.op("Add", x, attention(g, by_length(g, x, form)))
        x = g.op("Add", x, linear(g, gelu(g, linear(g, by_length(g, x, form), D, 2 * D)), 2 * D, D))
    g.output(by_length(g, x, form), [N, D])
    return g.case(2, 5, 2)


for opset, form in [(17, "mean-mul-clip"), (20, "mean-div-add-reciprocal"), (23, "mean-mul-max-plain"), (17, "times-expand"),
                    (20, "times-max"), (17, "times-node"), (20, "gain-clip"), (17, "gain-node"), (18, "mean-square"),
                    (17, "times-plain-reciprocal")]:
    KINDS[f"rms-length-{form}-{opset}"] = lambda o=opset, f=form: of(length_network(o, f), least=19, attentions=2, norms=5)


# ---- GroupNorm and InstanceNorm --------------------------------------------------------------------------------------

CHANNELS, SIDE, GROUPS = 16, 8, 4


def group_norm(g, x, form):
    gain, shift = 1 + 0.3 * g.rng.standard_normal(CHANNELS), 0.3 * g.rng.standard_normal(CHANNELS)
    if form == "node":
        return g.op("GroupNormalization", x, g.const(gain), g.const(shift), num_groups=GROUPS, epsilon=1e-5)
    if form == "instance":
        return g.op("InstanceNormalization", x, g.const(gain), g.const(shift), epsilon=1e-5)
    rows, shape = g.reshape(x, 0, GROUPS, -1), g.op("Shape", x)
    if form == "by-hand":
        d = g.op("Sub", rows, g.mean(rows, -1))
        y = g.op("Div", d, g.op("Sqrt", g.op("Add", g.mean(g.op("Mul", d, d), -1), g.const(1e-5))))
    else:
        y = g.op("InstanceNormalization", rows, g.const(np.ones(GROUPS)), g.const(np.zeros(GROUPS)), epsilon=1e-5)
    y = g.op("Mul", g.op("Reshape", y, shape), g.const(gain.reshape(CHANNELS, 1, 1)))
    return g.op("Add", y, g.const(shift.reshape(CHANNELS, 1, 1)))


def conv(g, x, ins, spread=0.0):
    """A layer whose channels differ in range: a norm after it makes them equal."""
    w = g.rng.standard_normal((CHANNELS, ins, 3, 3)) / math.sqrt(9 * ins)
    w *= np.exp(spread * g.rng.standard_normal(CHANNELS)).reshape(-1, 1, 1, 1)
    return g.op("Conv", x, g.const(w), g.const(0.1 * g.rng.standard_normal(CHANNELS)), pads=[1] * 4, kernel_shape=[3, 3])


def residual_network(opset, form):
    g = Graph(opset, seed=3)
    x = conv(g, g.input("x", [3, SIDE, SIDE]), 3)
    for _ in range(3):
        y = g.op("Relu", group_norm(g, conv(g, x, CHANNELS, 1.5), form))
        x = g.op("Relu", g.op("Add", x, group_norm(g, conv(g, y, CHANNELS, 1.5), form)))
    g.output(group_norm(g, conv(g, x, CHANNELS), form), [CHANNELS, SIDE, SIDE])
    return g.case(0, 0, 0)


for form, opset, least in [("torch", 17, 23), ("instance", 17, 16), ("node", 21, 23), ("by-hand", 17, 25)]:
    for target in ("qdq", "integer"):
        KINDS[f"group-norm-{form}-{target}"] = lambda f=form, o=opset, l=least, t=target: of(
            residual_network(o, f), least=l, flags=("--target", t))
