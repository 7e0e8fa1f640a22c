"""What models do to scores on the way to Softmax, and how weights lie when they meet the values. Adds to forms.py."""

import numpy as np
from onnx import TensorProto

from forms import D, H, N, Graph, case, layer_norm, linear
from forms_other import FLOAT, SCALE, W, merged, network, padding, plain, qkv, summed

HIDES = -3.4028234e38


def causal():
    return np.tril(np.ones((N, N), bool))[None, None]


def seen(g):
    """The run-time padding mask as a condition."""
    return g.op("Cast", g.unsqueeze("pad", 1, 2), to=TensorProto.BOOL)


def product(g, q, k):
    return g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2))


def attention(between, inputs=None, **more):
    """`between(g, product)` makes the scores that Softmax sees."""
    def attend(g, y):
        q, k, v = qkv(g, y)
        w = g.op("Softmax", between(g, product(g, q, k)), axis=-1)
        return linear(g, merged(g, g.op("MatMul", w, v)), D, D)
    return network(17, attend, inputs=inputs, **more)


# ---- The order of factors, sums and selections ---------------------------------------------------------------------------


@case("two-scales")
def scales():
    """A factor for all, and one for each head as a quotient."""
    tau = 0.5 + np.arange(H).reshape(1, H, 1, 1) / H
    return attention(lambda g, s: g.op("Div", g.op("Mul", s, g.const(SCALE)), g.const(tau)))


@case("hidden-before-scale")
def annotated():
    """As the annotated transformer has it."""
    between = lambda g, s: g.op("Mul", g.op("Where", seen(g), s, g.const(-1e9)), g.const(SCALE))
    return attention(between, padding)


@case("bias-before-scale")
def bias_then_scale():
    def between(g, s):
        s = g.op("Add", s, g.const(2 * g.rng.standard_normal((1, H, N, N))))
        s = g.op("Div", s, g.const(SCALE**-1))
        s = g.op("Sub", s, g.op("Mul", g.op("Sub", g.const(1.0), g.op("Cast", g.unsqueeze("pad", 1, 2), to=FLOAT)), g.const(8e3)))
        return g.op("Mul", s, g.const(0.9))
    return attention(between, padding)


@case("four-sums")
def sums():
    """More than the rules count: constants become one."""
    def between(g, s):
        s = g.op("Mul", s, g.const(SCALE))
        for dims in [(1, H, N, N), (N, N), (1, 1, 1, N), (H, 1, N)]:
            s = g.op("Add", s, g.const(g.rng.standard_normal(dims)))
        return g.op("Where", g.const(causal(), bool), s, g.const(HIDES))
    return attention(between)


@case("bounds-far-out")
def bounds():
    """Of the text and image encoder of GLIP: one number taken off, and bounds that no score reaches."""
    def between(g, s):
        s = g.op("Mul", s, g.const(SCALE))
        s = g.op("Sub", s, g.op("ReduceMax", s, keepdims=1))
        return g.op("Clip", g.op("Clip", s, g.const(-5e4)), "", g.const(5e4))
    return attention(between)


@case("bias-of-a-view")
def view():
    """As BLOOM: heads and batch are one axis except where entries are hidden; the bias is repeated for each sample."""
    slopes = (0.5 ** np.arange(1, H + 1)).reshape(H, 1, 1) * np.arange(N)
    def attend(g, y):
        q, k, v = (g.reshape(t, -1, N, W) for t in qkv(g, y))
        batch = g.op("Concat", g.op("Slice", g.op("Shape", y), g.ints(0), g.ints(1)), g.ints(1), g.ints(1), axis=0)
        s = g.op("Mul", g.op("MatMul", q, g.transpose(k, 0, 2, 1)), g.const(SCALE))
        s = g.reshape(g.op("Add", s, g.op("Tile", g.const(slopes), batch)), -1, H, N, N)
        w = g.op("Softmax", g.op("Where", g.const(causal(), bool), s, g.const(HIDES)), axis=-1)
        y = g.op("MatMul", g.reshape(w, -1, N, N), v)
        return linear(g, merged(g, g.reshape(y, -1, H, N, W)), D, D)
    return network(17, attend)


# ---- What hides, row by row ----------------------------------------------------------------------------------------------


@case("bias-by-key-steep")
def by_key():
    """As MPT: 0 for the last key and -8 for each before it. The first rows see nothing above -60, and are as good as others."""
    def between(g, s):
        s = g.op("Add", g.op("Mul", s, g.const(SCALE)), g.const((np.arange(N) - N + 1.0) * 8 * np.ones((1, H, 1, 1))))
        upper = g.op("Trilu", g.const(np.ones((N, N)), bool), g.const(1, np.int64), upper=1)
        return g.op("Where", upper, g.const(HIDES), s)
    return attention(between)


@case("mask-lifts")
def lifts():
    """What counts gains 10000."""
    def between(g, s):
        m = g.op("Mul", g.op("Cast", "pad", to=FLOAT), g.const(1e4))
        return g.op("Add", g.op("Mul", s, g.const(SCALE)), g.unsqueeze(m, 1, 2))
    return attention(between, padding)


@case("mask-lifts-constant")
def lifts_constant():
    return attention(lambda g, s: g.op("Add", g.op("Mul", s, g.const(SCALE)), g.const(np.where(causal(), 1e4, 0))))


@case("rows-off-level")
def levels():
    """A number for each row, far from 0."""
    offset = np.where(np.arange(N) % 2, 500.0, -1000.0)[:, None]
    return attention(lambda g, s: g.op("Add", g.op("Mul", s, g.const(SCALE)), g.const(offset)))


@case("rows-hidden-by-two")
def by_two():
    """Causal, and padding on the left: the first queries see nothing, and are left with what either mask hides by 10000."""
    def between(g, s):
        s = g.op("Where", g.const(causal(), bool), g.op("Mul", s, g.const(SCALE)), g.const(-1e4))
        m = g.op("Mul", g.op("Sub", g.const(1.0), g.op("Cast", g.unsqueeze("pad", 1, 2), to=FLOAT)), g.const(-1e4))
        return g.op("Add", s, m)
    left = lambda g: g.input("pad", [N], lambda r, s: np.arange(s[1])[None] >= r.integers(0, s[1] // 2 + 1, (s[0], 1)), np.int64)
    return attention(between, left)


# ---- Scores and weights that others read ----------------------------------------------------------------------------------


@case("weights-as-outputs")
def shown():
    """`output_attentions`: the weights of each layer are outputs of the model, and the scores of the last."""
    g = Graph(17)
    x = g.input("x", [N, D])
    weights = []
    for _ in range(2):
        q, k, v = qkv(g, layer_norm(g, x))
        s = g.op("Mul", product(g, q, k), g.const(SCALE))
        weights.append(g.op("Softmax", s, axis=-1))
        x = g.op("Add", x, linear(g, merged(g, g.op("MatMul", weights[-1], v)), D, D))
    g.output(layer_norm(g, x), [N, D])
    for w in weights:
        g.output(w, [H, N, N])
    g.output(s, [H, N, N])
    return g.case(2, 3, 0)


@case("weights-read-twice")
def twice():
    """The weights meet a second constant, as relative positions of values."""
    def attend(g, y):
        q, k, v = qkv(g, y)
        w = g.op("Softmax", g.op("Mul", product(g, q, k), g.const(SCALE)), axis=-1)
        y = g.op("Add", g.op("MatMul", w, v), g.op("MatMul", w, g.weight(N, W)))
        return linear(g, merged(g, y), D, D)
    return network(17, attend)


# ---- How weights lie ------------------------------------------------------------------------------------------------------


def channels_first(by_key):
    def attend(g, y):
        q, k, v = qkv(g, y)
        s = g.op("Mul", product(g, *(k, q) if by_key else (q, k)), g.const(SCALE))
        w = g.op("Softmax", s, axis=2 if by_key else -1)
        y = g.op("MatMul", g.transpose(v, 0, 1, 3, 2), w if by_key else g.transpose(w, 0, 1, 3, 2))
        return linear(g, merged(g, g.transpose(y, 0, 1, 3, 2)), D, D)
    return network(17, attend)


@case("weights-on-the-right")
def right():
    """(V^T W^T)^T, as blocks that keep channels first."""
    return channels_first(by_key=False)


@case("weights-by-key-on-the-right")
def right_by_key():
    """V^T times a Softmax over the queries' axis of K Q^T."""
    return channels_first(by_key=True)


def by_einsum(first, second, axis=-1, keys=H):
    def attend(g, y):
        q = g.reshape(linear(g, y, D, D), -1, N, H, W)
        k, v = (linear(g, y, D, keys * W) for _ in range(2))
        if keys > 1:
            k, v = (g.reshape(t, -1, N, keys, W) for t in (k, v))
        s = g.op("Mul", g.op("Einsum", q, k, equation=first), g.const(SCALE))
        y = g.op("Einsum", g.op("Softmax", s, axis=axis), v, equation=second)
        return linear(g, g.reshape(y, -1, N, D), D, D)
    return network(17, attend)


@case("einsum-heads-before-batch")
def heads_first():
    return by_einsum("bqhd,bkhd->hbqk", "hbqk,bkhd->bqhd")


@case("einsum-heads-last")
def heads_last():
    return by_einsum("bqhd,bkhd->bqkh", "bqkh,bkhd->bqhd", axis=2)


@case("einsum-ellipsis")
def ellipsis():
    return by_einsum("...qhd,...khd->...hqk", "...hqk,...khd->...qhd")


@case("einsum-one-key-head")
def one_key_head():
    return by_einsum("bnhd,bmd->bhnm", "bhnm,bmd->bnhd", keys=1)


# ---- Behind Softmax -------------------------------------------------------------------------------------------------------


@case("weights-divided-by-their-sum")
def renormalised():
    def weights(g, w, s):
        return g.op("Div", w, g.op("Add", summed(g, "ReduceSum", w, -1), g.const(1e-9)))
    return network(17, lambda g, y: plain(g, y, weights=weights))


@case("weights-hidden-again")
def hidden_again():
    """Hidden in front of the Softmax and behind it, with the condition for what is hidden."""
    gone = lambda g: g.op("Not", seen(g))
    def attend(g, y):
        q, k, v = qkv(g, y)
        hide = gone(g)
        s = g.op("Where", hide, g.const(HIDES), g.op("Mul", product(g, q, k), g.const(SCALE)))
        w = g.op("Where", hide, g.const(0.0), g.op("Softmax", s, axis=-1))
        return linear(g, merged(g, g.op("MatMul", w, v)), D, D)
    return network(17, attend, inputs=padding)


@case("heads-apart-for-the-mask-alone")
def heads_apart():
    """As CLIP's text tower: batch and heads are one axis for the products, two where the mask is added. The number of tokens is
    open, and the mask's is of its own."""
    g = Graph(17)
    x = g.input("x", [N, D])
    g.inputs[0].type.tensor_type.shape.dim[1].dim_param = "tokens"
    none = g.ints(0)
    for _ in range(2):
        y = layer_norm(g, x)
        shape = g.op("Shape", y)
        size = lambda i: g.op("Slice", shape, g.ints(i), g.ints(i + 1))
        batch, tokens = size(0), size(1)
        rows = g.op("Concat", g.op("Mul", batch, g.ints(H)), g.ints(-1), g.ints(W), axis=0)
        split = lambda t: g.transpose(g.reshape(t, 0, -1, H, W), 0, 2, 1, 3)
        q, k, v = (g.op("Reshape", split(linear(g, y, D, D)), rows) for _ in range(3))
        s = g.op("MatMul", g.op("Mul", q, g.const(SCALE)), g.transpose(k, 0, 2, 1))
        s = g.op("Reshape", s, g.op("Concat", batch, g.ints(H), tokens, tokens, axis=0))
        low = np.full((40, 40), HIDES, np.float32)
        mask = g.op("Slice", g.const(np.triu(low, 1)), g.op("Concat", none, none, axis=0), g.op("Concat", tokens, tokens, axis=0))
        s = g.op("Add", s, g.unsqueeze(mask, 0, 1))
        s = g.op("Reshape", s, g.op("Concat", g.op("Mul", batch, g.ints(H)), tokens, tokens, axis=0))
        y = g.op("MatMul", g.op("Softmax", s, axis=-1), v)
        y = g.op("Reshape", y, g.op("Concat", batch, g.ints(H), tokens, g.ints(W), axis=0))
        x = g.op("Add", x, linear(g, g.reshape(g.transpose(y, 0, 2, 1, 3), 0, -1, D), D, D))
    g.output(layer_norm(g, x), [N, D])
    g.outputs[0].type.tensor_type.shape.dim[1].dim_param = "tokens"
    return g.case(2, 3, 0)
