"""Blocks of vision transformers of their own kind, after timm. Adds to the cases of forms.py."""

import pathlib
import tempfile

import numpy as np

from forms import D, H, Graph, block, case, gelu, layer_norm, linear, over_heads

S = 4  # Tokens along each side of the picture.
T = S * S
END = 9223372036854775807


def heads(g, x, n, d=D // H):
    return g.transpose(g.reshape(x, -1, n, H, d), 0, 2, 1, 3)


def merged(g, y, n, d=D // H):
    return g.reshape(g.transpose(y, 0, 2, 1, 3), -1, n, H * d)


def mlp(g, x):
    return g.op("Add", x, linear(g, gelu(g, linear(g, layer_norm(g, x), D, 2 * D)), 2 * D, D))


def depthwise(g, x, kernel=3, stride=1, channels=D):
    pads = [kernel // 2] * 4
    w, b = g.weight(channels, 1, kernel, kernel, scale=1 / kernel), g.const(0.1 * g.rng.standard_normal(channels))
    return g.op("Conv", x, w, b, kernel_shape=[kernel] * 2, pads=pads, strides=[stride] * 2, group=channels)


def picture(g, x, side=S, channels=D):
    return g.reshape(g.transpose(x, 0, 2, 1), -1, channels, side, side)


def tokens(g, x, n, channels=D):
    return g.transpose(g.reshape(x, -1, channels, n), 0, 2, 1)


def start(n=T, opset=17):
    g = Graph(opset)
    return g, block_of(g, g.input("x", [n, D]), n)


def block_of(g, x, n):
    return block(g, x, n=n, m=n) if n == 12 else mlp(g, attend(g, x, layer_norm(g, x), n))


def attend(g, x, y, n):
    q, k, v = (heads(g, linear(g, y, D, D), n) for _ in range(3))
    s = g.op("MatMul", g.op("Mul", q, g.const(8**-0.5)), g.transpose(k, 0, 1, 3, 2))
    y = merged(g, g.op("MatMul", g.op("Softmax", s, axis=-1), v), n)
    return g.op("Add", x, linear(g, y, D, D))


@case("vit-xcit")
def xcit():
    """Attention over channels: queries and keys of length one, a temperature a head, and convolutions between tokens."""
    g, x = start()
    q, k, v = (g.transpose(heads(g, linear(g, layer_norm(g, x), D, D), T), 0, 1, 3, 2) for _ in range(3))
    unit = lambda t: g.op("Div", t, g.op("Expand", g.op("Clip", g.op("ReduceL2", t, axes=[-1], keepdims=1), g.const(1e-12)), g.op("Shape", t)))
    s = g.op("MatMul", unit(q), g.transpose(unit(k), 0, 1, 3, 2))
    s = g.op("Mul", s, g.const(1 + g.rng.random((H, 1, 1))))
    y = g.op("MatMul", g.op("Softmax", s, axis=-1), v)
    y = linear(g, g.reshape(g.transpose(y, 0, 3, 1, 2), -1, T, D), D, D)
    x = g.op("Add", x, g.op("Mul", y, g.const(0.1 + g.rng.random(D))))
    y = depthwise(g, picture(g, layer_norm(g, x)))
    y = g.op("BatchNormalization", gelu(g, y), *(g.const(1 + 0.2 * g.rng.random(D)) for _ in range(4)))
    x = g.op("Add", x, tokens(g, depthwise(g, y), T))
    g.output(mlp(g, x), [T, D])
    # The two of length one count as norms.
    return g.case(2, 7, 3)


@case("vit-convit")
def convit():
    """Two attentions, one of them of positions alone, mixed by a gate a head and made to sum to one again."""
    g, x = start()
    y = layer_norm(g, x)
    q, k, v = (heads(g, linear(g, y, D, D), T) for _ in range(3))
    s = g.op("Mul", g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2)), g.const(8**-0.5))
    where = g.op("Expand", g.const(g.rng.standard_normal((1, T, T, 3))), g.op("Concat", g.op("Slice", g.op("Shape", x), g.ints(0), g.ints(1)), g.ints(T, T, 3), axis=0))
    where = g.transpose(linear(g, where, 3, H), 0, 3, 1, 2)
    gate = g.op("Sigmoid", g.reshape(g.const(g.rng.standard_normal(H)), 1, -1, 1, 1))
    w = g.op("Add", g.op("Mul", g.op("Sub", g.const(1.0), gate), g.op("Softmax", s, axis=-1)), g.op("Mul", gate, g.op("Softmax", where, axis=-1)))
    w = g.op("Div", w, g.op("ReduceSum", w, g.ints(-1), keepdims=1))
    x = g.op("Add", x, linear(g, merged(g, g.op("MatMul", w, v), T), D, D))
    g.output(mlp(g, x), [T, D])
    return g.case(2, 4, 2)


@case("vit-pit")
def pit():
    """Tokens are pooled by a convolution of as many groups as channels; the class token goes another way."""
    g, x = start(T + 1)
    c = g.op("Slice", x, g.ints(0), g.ints(1), g.ints(1))
    x = g.op("Slice", x, g.ints(1), g.ints(END), g.ints(1))
    x = tokens(g, depthwise(g, picture(g, x), stride=2), 4)
    x = g.op("Concat", linear(g, c, D, D), x, axis=1)
    g.output(block_of(g, x, 5), [5, D])
    return g.case(2, 4, 2)


@case("vit-twins")
def twins():
    """Keys and values of a picture that a strided convolution made small, and positions out of a convolution."""
    g, x = start()
    y = layer_norm(g, x)
    small = g.op("Conv", picture(g, y), g.weight(D, D, 2, 2, scale=0.1), g.const(np.zeros(D)), kernel_shape=[2, 2], strides=[2, 2])
    small = layer_norm(g, tokens(g, small, 4))
    both = g.transpose(g.reshape(linear(g, small, D, 2 * D), -1, 4, 2, H, 8), 2, 0, 3, 1, 4)
    k, v = (g.op("Gather", both, g.const(i, np.int64), axis=0) for i in range(2))
    s = g.op("Mul", g.op("MatMul", heads(g, linear(g, y, D, D), T), g.transpose(k, 0, 1, 3, 2)), g.const(8**-0.5))
    y = merged(g, g.op("MatMul", g.op("Softmax", s, axis=-1), v), T)
    x = mlp(g, g.op("Add", x, linear(g, y, D, D)))
    p = picture(g, x)
    g.output(block_of(g, tokens(g, g.op("Add", depthwise(g, p), p), T), T), [T, D])
    return g.case(3, 7, 3)


@case("vit-mvit")
def mvit():
    """Pooled queries, keys and values, each with its norm; positions along each side added to the scores; the pooled query
    is added to what comes out."""
    g, x = start()
    y = layer_norm(g, x)

    def pooled(t, stride, side):
        t = g.reshape(g.transpose(t, 0, 1, 3, 2), -1, 8, S, S)
        w = g.weight(8, 1, 3, 3, scale=0.3)
        t = g.op("Conv", t, w, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[stride] * 2, group=8)
        t = g.transpose(g.reshape(t, -1, H, 8, side * side), 0, 1, 3, 2)
        return layer_norm(g, t, size=8)
    q, k, v = (heads(g, linear(g, y, D, D), T) for _ in range(3))
    q, k, v = pooled(q, 1, S), pooled(k, 2, 2), pooled(v, 2, 2)
    s = g.op("MatMul", g.op("Mul", q, g.const(8**-0.5)), g.transpose(k, 0, 1, 3, 2))
    grid = g.reshape(q, -1, H, S, S, 8)
    high = g.op("MatMul", grid, g.weight(S, 8, 2, scale=0.3))
    wide = g.transpose(g.op("MatMul", g.transpose(grid, 0, 1, 3, 2, 4), g.weight(S, 8, 2, scale=0.3)), 0, 1, 3, 2, 4)
    s = g.op("Add", g.reshape(s, -1, H, S, S, 2, 2), g.unsqueeze(high, 5))
    s = g.reshape(g.op("Add", s, g.unsqueeze(wide, 4)), -1, H, T, 4)
    y = g.op("Add", g.op("MatMul", g.op("Softmax", s, axis=-1), v), q)
    x = g.op("Add", x, linear(g, merged(g, y, T), D, D))
    g.output(mlp(g, x), [T, D])
    return g.case(2, 7, 2)


@case("vit-hiera")
def hiera():
    """Attention within units of tokens; the largest of the queries of a unit asks."""
    g, x = start()
    y = layer_norm(g, x)
    parts = g.transpose(g.reshape(linear(g, y, D, 3 * D), -1, 4, 4, 3, H, 8), 3, 0, 4, 2, 1, 5)
    q, k, v = (g.op("Gather", parts, g.const(i, np.int64), axis=0) for i in range(3))
    q = g.op("ReduceMax", g.reshape(q, -1, H, 4, 2, 2, 8), axes=[3], keepdims=0)
    s = g.op("MatMul", g.op("Mul", q, g.const(8**-0.5)), g.transpose(k, 0, 1, 2, 4, 3))
    y = g.op("MatMul", g.op("Softmax", s, axis=-1), v)
    y = g.reshape(g.transpose(y, 0, 3, 2, 1, 4), -1, 8, D)
    short = g.op("ReduceMax", g.reshape(linear(g, layer_norm(g, x), D, D), -1, 2, 8, D), axes=[1], keepdims=0)
    x = g.op("Add", short, linear(g, y, D, D))
    g.output(mlp(g, x), [8, D])
    return g.case(2, 5, 2)


@case("vit-coat")
def coat():
    """The Softmax runs over tokens of the keys; a product of keys and values meets the queries."""
    g, x = start()
    y = layer_norm(g, x)
    q, k, v = (heads(g, linear(g, y, D, D), T) for _ in range(3))
    k = g.op("Softmax", k, axis=2)
    y = g.op("MatMul", q, g.op("MatMul", g.transpose(k, 0, 1, 3, 2), v))
    place = tokens(g, depthwise(g, picture(g, merged(g, v, T))), T)
    y = g.op("Add", g.op("Mul", y, g.const(8**-0.5)), g.op("Mul", q, heads(g, place, T)))
    x = g.op("Add", x, linear(g, merged(g, y, T), D, D))
    g.output(mlp(g, x), [T, D])
    return g.case(2, 4, 2)


@case("vit-beit")
def beit():
    """A bias of the projection put together of parts, one of them zero; positions gathered from a table."""
    g, x = start()
    y = layer_norm(g, x)
    bias = g.op("Concat", g.const(g.rng.standard_normal(D)), g.const(np.zeros(D)), g.const(g.rng.standard_normal(D)), axis=0)
    y = g.op("Add", g.op("MatMul", y, g.weight(D, 3 * D)), bias)
    parts = g.transpose(g.reshape(y, -1, T, 3, H, 8), 2, 0, 3, 1, 4)
    q, k, v = (g.op("Gather", parts, g.const(i, np.int64), axis=0) for i in range(3))
    table = g.op("Gather", g.const(g.rng.standard_normal((49, H))), g.const(g.rng.integers(0, 49, T * T), np.int64), axis=0)
    table = g.unsqueeze(g.transpose(g.reshape(table, T, T, H), 2, 0, 1), 0)
    s = g.op("Add", g.op("MatMul", g.op("Mul", q, g.const(8**-0.5)), g.transpose(k, 0, 1, 3, 2)), table)
    y = merged(g, g.op("MatMul", g.op("Softmax", s, axis=-1), v), T)
    x = g.op("Add", x, g.op("Mul", g.const(g.rng.random(D)), linear(g, y, D, D)))
    g.output(mlp(g, x), [T, D])
    return g.case(2, 4, 2)


def volo(fold, opset):
    """Weights of attention out of a linear layer on pooled tokens; values are windows around each token, summed back."""
    g, x = start(opset=opset)
    y = layer_norm(g, x)
    v = g.op("Pad", picture(g, linear(g, y, D, D, "no-bias")), g.ints(0, 0, 1, 1, 0, 0, 1, 1))
    near = (np.arange(S)[:, None] + np.arange(3)[None]).astype(np.int64)
    v = g.op("Gather", g.op("Gather", v, g.const(near, np.int64), axis=2), g.const(near, np.int64), axis=4)
    v = g.reshape(g.transpose(v, 0, 2, 4, 3, 5, 1), -1, T, 9, H, 8)
    v = g.transpose(v, 0, 3, 1, 2, 4)
    p = g.op("AveragePool", picture(g, y), kernel_shape=[1, 1], strides=[1, 1])
    w = g.reshape(linear(g, tokens(g, p, T), D, H * 81), -1, T, H, 9, 9)
    w = g.op("Softmax", g.op("Mul", g.transpose(w, 0, 2, 1, 3, 4), g.const(8**-0.5)), axis=-1)
    y = g.op("MatMul", w, v)
    if fold:
        y = g.reshape(g.transpose(y, 0, 1, 4, 3, 2), -1, D * 9, T)
        y = tokens(g, g.op("Col2Im", y, g.ints(S, S), g.ints(3, 3), pads=[1] * 4), T)
    else:
        y = merged(g, g.op("ReduceSum", y, g.ints(3), keepdims=0), T)
    x = g.op("Add", x, linear(g, y, D, D))
    g.output(mlp(g, x), [T, D])
    return g.case(2, 4, 2)


case("vit-volo")(lambda: volo(False, 17))
case("vit-volo-fold")(lambda: volo(True, 18))


@case("vit-det")
def det():
    """Queries times learned rows and columns, added to a view of the scores with the picture's axes apart (ViTDet, SAM)."""
    g, x = start()
    y = layer_norm(g, x)
    q, k, v = (g.reshape(heads(g, linear(g, y, D, D), T), -1, T, 8) for _ in range(3))
    s = g.op("MatMul", g.op("Mul", q, g.const(8**-0.5)), g.transpose(k, 0, 2, 1))
    seen = g.reshape(q, -1, S, S, 8)
    rows = g.op("Einsum", seen, g.weight(S, S, 8, scale=0.5), equation="bhwc,hkc->bhwk")
    columns = g.op("Einsum", seen, g.weight(S, S, 8, scale=0.5), equation="bhwc,wkc->bhwk")
    s = g.op("Add", g.reshape(s, -1, S, S, S, S), g.unsqueeze(rows, 4))
    s = g.reshape(g.op("Add", s, g.unsqueeze(columns, 3)), -1, T, T)
    y = g.reshape(g.op("MatMul", g.op("Softmax", s, axis=-1), v), -1, H, T, 8)
    x = g.op("Add", x, linear(g, merged(g, y, T), D, D))
    g.output(mlp(g, x), [T, D])
    return g.case(2, 4, 2)


@case("vit-channel-norm")
def channel_norm():
    """LayerNorms over the channels of a picture in front of convolutions (ConvNeXt's and Segment Anything's LayerNorm2d)."""
    g, x = start()
    y = picture(g, x)

    def norm(y):
        d = g.op("Sub", y, g.op("ReduceMean", y, axes=[1], keepdims=1))
        var = g.op("ReduceMean", g.op("Pow", d, g.const(2.0)), axes=[1], keepdims=1)
        n = g.op("Div", d, g.op("Sqrt", g.op("Add", var, g.const(1e-6))))
        w, b = (g.const(v.reshape(D, 1, 1)) for v in (0.5 + g.rng.random(D), 0.1 * g.rng.standard_normal(D)))
        return g.op("Add", g.op("Mul", w, n), b)
    for _ in range(2):
        y = g.op("Add", y, depthwise(g, norm(y)))
    g.output(tokens(g, norm(y), T), [T, D])
    return g.case(1, 5, 1)


@case("vit-eva")
def eva():
    """Positions turned into queries and keys beside a class token and registers, and a gated MLP with a norm inside."""
    g, x = start(T + 3)
    y = layer_norm(g, x)
    q, k, v = (heads(g, linear(g, y, D, D), T + 3) for _ in range(3))
    sin, cos = (g.const(f(np.outer(np.arange(T), np.repeat(1 / 10 ** np.arange(4), 2)))) for f in (np.sin, np.cos))

    def turned(t):
        still, t = (g.op("Slice", t, g.ints(a), g.ints(b), g.ints(2)) for a, b in ((0, 3), (3, END)))
        odd, even = (g.unsqueeze(g.op("Slice", t, g.ints(a), g.ints(END), g.ints(3), g.ints(2)), -1) for a in (1, 0))
        half = g.reshape(g.op("Concat", g.op("Neg", odd), even, axis=-1), -1, H, T, 8)
        return g.op("Concat", still, g.op("Add", g.op("Mul", t, cos), g.op("Mul", half, sin)), axis=2)
    s = g.op("MatMul", g.op("Mul", turned(q), g.const(8**-0.5)), g.transpose(turned(k), 0, 1, 3, 2))
    y = merged(g, g.op("MatMul", g.op("Softmax", s, axis=-1), v), T + 3)
    x = g.op("Add", x, linear(g, layer_norm(g, y), D, D))
    y = layer_norm(g, x)
    gate = linear(g, y, D, 2 * D)
    y = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), linear(g, y, D, 2 * D))
    x = g.op("Add", x, linear(g, layer_norm(g, y, size=2 * D), 2 * D, D))
    g.output(g.op("ReduceMean", g.op("Slice", x, g.ints(3), g.ints(END), g.ints(1)), axes=[1], keepdims=0), [D])
    return g.case(2, 6, 1)


@case("vit-cait")
def cait():
    """Talking heads in two blocks with a factor a channel, then a class token that asks alone."""
    g = Graph(17)
    x = g.input("x", [T, D])
    scaled = lambda t: g.op("Mul", g.const(0.1 + g.rng.random(D)), t)
    for _ in range(2):
        parts = g.reshape(linear(g, layer_norm(g, x), D, 3 * D), -1, T, 3, H, 8)
        parts = g.transpose(parts, 2, 0, 3, 1, 4)
        q, k, v = (g.op("Gather", parts, g.const(i, np.int64), axis=0) for i in range(3))
        s = g.op("MatMul", g.op("Mul", q, g.const(2.0)), g.transpose(k, 0, 1, 3, 2))
        y = g.op("MatMul", over_heads(g, g.op("Softmax", over_heads(g, s), axis=-1)), v)
        x = g.op("Add", x, scaled(linear(g, merged(g, y, T), D, D)))
        y = gelu(g, linear(g, layer_norm(g, x), D, 2 * D))
        x = g.op("Add", x, scaled(linear(g, y, 2 * D, D)))
    cls = g.op("Expand", g.weight(1, 1, D), g.op("Concat", g.op("Slice", g.op("Shape", x), g.ints(0), g.ints(1)), g.ints(1, D), axis=0))
    y = layer_norm(g, g.op("Concat", cls, x, axis=1))
    q = g.transpose(g.reshape(linear(g, g.op("Gather", y, g.const(0, np.int64), axis=1), D, D), -1, 1, H, 8), 0, 2, 1, 3)
    k, v = (heads(g, linear(g, y, D, D), T + 1) for _ in range(2))
    s = g.op("MatMul", g.op("Mul", q, g.const(8**-0.5)), g.transpose(k, 0, 1, 3, 2))
    y = merged(g, g.op("MatMul", g.op("Softmax", s, axis=-1), v), 1)
    c = mlp(g, g.op("Add", cls, scaled(linear(g, y, D, D))))
    y = layer_norm(g, g.op("Concat", c, x, axis=1))
    g.output(g.op("Gather", y, g.const(0, np.int64), axis=1), [D])
    return g.case(3, 7, 3)


@case("vit-hybrid-stem")
def hybrid():
    """Standardised weights out of a BatchNormalization that trains, and a pool with padding of minus infinity in front."""
    g = Graph(17)
    x = g.input("x", [3, 4 * S, 4 * S])
    one, zero = g.const(np.ones(D)), g.const(np.zeros(D))
    w = g.op("BatchNormalization", g.weight(1, D, 3 * 9), one, zero, zero, one, outs=3, epsilon=1e-8, momentum=1.0, training_mode=1)[0]
    w = g.op("Mul", g.reshape(w, D, 3, 3, 3), g.const(0.2))
    x = g.op("Pad", x, g.ints(0, 0, 0, 0, 0, 0, 1, 1), g.const(0.0))
    x = g.op("Relu", g.op("Conv", x, w, g.const(0.1 * g.rng.standard_normal(D)), kernel_shape=[3, 3], strides=[2, 2]))
    x = g.op("Pad", x, g.ints(0, 0, 0, 0, 0, 0, 1, 1), g.const(-np.inf))
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    g.output(block_of(g, tokens(g, x, T), T), [T, D])
    return g.case(1, 2, 1)


@case("vit-untrained")
def untrained(flags=()):
    """As transformers initialises it: a class token of zeros beside patches, and weights of deviation 0.02, so that the token
    that is read stays a thousand times as faint as the others. The residual stream needs more than a byte."""
    g = Graph(17)
    x = g.input("x", [T, D])
    small = lambda x, ins, outs: g.op("Add", g.op("MatMul", x, g.weight(ins, outs, scale=0.02)), g.const(np.zeros(outs)))
    batch = g.op("Slice", g.op("Shape", x), g.ints(0), g.ints(1))
    cls = g.op("Expand", g.const(np.zeros((1, 1, D))), g.op("Concat", batch, g.ints(1, D), axis=0))
    x = g.op("Concat", cls, g.op("Mul", x, g.const(5.0)), axis=1)
    for _ in range(2):
        y = layer_norm(g, x, "untrained-node")
        q, k, v = (heads(g, small(y, D, D), T + 1) for _ in range(3))
        s = g.op("Mul", g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2)), g.const(8**-0.5))
        x = g.op("Add", x, small(merged(g, g.op("MatMul", g.op("Softmax", s, axis=-1), v), T + 1), D, D))
        y = gelu(g, small(layer_norm(g, x, "untrained-node"), D, 2 * D))
        x = g.op("Add", x, small(y, 2 * D, D))
    y = layer_norm(g, x, "untrained-node")
    g.output(g.op("Gather", y, g.const(0, np.int64), axis=1), [D])
    return g.case(2, 5, 2, flags)


def qdq():
    """Flags for the form with QuantizeLinear, which has no codes of 16 bits at the opset of the model. Seven bits of weights:
    onnxruntime's product of uint8 and int8 saturates without VNNI."""
    recipe = pathlib.Path(__file__).parents[1] / "passes/recipes/fq-vit.yaml"
    text = recipe.read_text().replace("code: i8", "code: i7")
    changed = pathlib.Path(tempfile.mkdtemp()) / "qdq.yaml"
    changed.write_text(text)
    return ["--recipe", str(changed)]


case("vit-untrained-qdq")(lambda: untrained(qdq()))


@case("vit-class-block")
def class_block(flags=()):
    """Class attention of XCiT: what the class token got is joined to the normed patches, and a gain a channel brings both back.
    The token is a hundred times as faint as the patches beside it, and is what is read."""
    g = Graph(17)
    x = g.input("x", [T, D])
    batch = g.op("Slice", g.op("Shape", x), g.ints(0), g.ints(1))
    cls = g.op("Expand", g.const(0.02 * g.rng.standard_normal((1, 1, D))), g.op("Concat", batch, g.ints(1, D), axis=0))
    x = g.op("Concat", cls, x, axis=1)
    y = layer_norm(g, x)
    first = g.op("Slice", y, g.ints(0), g.ints(1), g.ints(1))
    small = lambda t: g.op("MatMul", t, g.weight(D, D, scale=0.02))
    q = g.transpose(g.reshape(small(first), -1, 1, H, 8), 0, 2, 1, 3)
    k, v = (heads(g, small(y), T + 1) for _ in range(2))
    s = g.op("MatMul", g.op("Mul", q, g.const(8**-0.5)), g.transpose(k, 0, 1, 3, 2))
    got = small(merged(g, g.op("MatMul", g.op("Softmax", s, axis=-1), v), 1))
    y = g.op("Concat", got, g.op("Slice", y, g.ints(1), g.ints(END), g.ints(1)), axis=1)
    x = g.op("Add", x, g.op("Mul", g.const(0.5 + g.rng.random(D)), y))
    y = layer_norm(g, x)
    g.output(g.op("Gather", y, g.const(0, np.int64), axis=1), [D])
    return g.case(1, 2, 0, flags)


case("vit-class-block-qdq")(lambda: class_block(qdq()))
