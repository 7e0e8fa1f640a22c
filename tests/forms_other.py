"""What exporters other than PyTorch's write, and what optimizers leave of it. Adds to the cases of forms.py."""

import numpy as np
from onnx import TensorProto, helper

from forms import D, H, N, Graph, block, case, encoder, gelu, layer_norm, linear

W = D // H  # The width of a head.
SCALE = W**-0.5
FLOAT = TensorProto.FLOAT


def norm_constants(g, *dims):
    return (g.const((1 + 0.2 * g.rng.standard_normal(D)).reshape(dims)), g.const((0.2 * g.rng.standard_normal(D)).reshape(dims)))


def network(opset, attend=None, norm=None, dense=linear, act=gelu, inputs=None, count=(2, 5, 2)):
    """Two blocks around the parts that are given, behind a norm of the kind: tokens in, tokens out."""
    g = Graph(opset)
    x = g.input("x", [N, D])
    if inputs:
        inputs(g)
    norm = norm or layer_norm
    for _ in range(2):
        y = norm(g, x)
        x = g.op("Add", x, attend(g, y) if attend else plain(g, y, dense))
        y = act(g, dense(g, norm(g, x), D, 2 * D))
        x = g.op("Add", x, dense(g, y, 2 * D, D))
    g.output(norm(g, x), [N, D])
    return g.case(*count)


def heads(g, y, *perm):
    return g.transpose(g.reshape(y, -1, N, H, W), *perm)


def merged(g, y):
    return g.reshape(g.transpose(y, 0, 2, 1, 3), -1, N, D)


def qkv(g, y, dense=linear):
    return [heads(g, dense(g, y, D, D), 0, 2, 1, 3) for _ in range(3)]


def plain(g, y, dense=linear, change=lambda g, s: s, weights=lambda g, w, s: w, scale=SCALE):
    """Attention whose scores or weights something changes."""
    q, k, v = qkv(g, y, dense)
    s = change(g, g.op("Mul", g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2)), g.const(scale)))
    w = weights(g, g.op("Softmax", s, axis=-1), s)
    return dense(g, merged(g, g.op("MatMul", w, v)), D, D)


def summed(g, kind, x, *axes, keep=1):
    if g.opset >= 13 and kind == "ReduceSum" or g.opset >= 18:
        return g.op(kind, x, g.ints(*axes), keepdims=keep)
    return g.op(kind, x, axes=list(axes), keepdims=keep)


# ---- TensorFlow and Keras, by tf2onnx ----------------------------------------------------------------------------------


@case("keras-attention")
def keras():
    """A row of scores for each key, and a mask on them."""
    def attend(g, y):
        q = heads(g, g.op("Mul", linear(g, y, D, D), g.const(SCALE)), 0, 2, 3, 1)
        k, v = (heads(g, linear(g, y, D, D), 0, 2, 1, 3) for _ in range(2))
        s = g.op("Add", g.op("MatMul", k, q), g.const(np.where(np.triu(np.ones((N, N))), 0, -1e9)[None, None]))
        w = g.transpose(g.op("Softmax", s, axis=2), 0, 1, 3, 2)
        return linear(g, merged(g, g.op("MatMul", w, v)), D, D)
    return network(17, attend)


@case("keras-product-turned")
def keras_hub():
    """The scores are turned right behind the product, and hidden in front of the Softmax and behind it."""
    def attend(g, y):
        q, k, v = qkv(g, y)
        s = g.op("MatMul", k, g.transpose(g.op("Mul", q, g.const(SCALE)), 0, 1, 3, 2))
        s = g.transpose(s, 0, 1, 3, 2)
        keep = g.unsqueeze("keep", 1)
        yes, no = g.op("Cast", keep, to=FLOAT), g.op("Cast", g.op("Not", keep), to=FLOAT)
        s = g.op("Add", g.op("Mul", yes, s), g.op("Mul", g.const(-1e9), no))
        w = g.op("Softmax", s, axis=-1)
        w = g.op("Add", g.op("Mul", yes, w), g.op("Mul", no, g.const(0.0)))
        return linear(g, merged(g, g.op("MatMul", w, v)), D, D)
    keep = lambda g: g.input("keep", [N, N], lambda r, s: r.random(s) + np.eye(N) > 0.4, bool)
    return network(17, attend, inputs=keep)


@case("keras-einsum")
def lowered():
    """Einsum as tf2onnx writes it where the batch is open: axes of size 1, one matrix a head, shapes computed as it runs."""
    def part(g, y, axis, *perm):
        z = g.transpose(g.unsqueeze(g.reshape(linear(g, y, D, D), -1, N, H, W), axis), *perm)
        shape = g.op("Shape", z)
        front = g.op("ReduceProd", g.op("Gather", shape, g.ints(0, 1)), keepdims=1)
        target = g.op("Concat", front, g.ints(-1), g.op("Gather", shape, g.ints(4)), axis=0)
        return g.op("Reshape", z, target), shape
    def attend(g, y):
        k, ks = part(g, y, 2, 0, 3, 1, 2, 4)
        q, qs = part(g, y, 1, 0, 3, 1, 2, 4)
        v, _ = part(g, y, 2, 0, 3, 2, 4, 1)
        s = g.op("MatMul", k, g.transpose(q, 0, 2, 1))
        both = g.op("Max", *(g.op("Gather", t, g.ints(0, 1)) for t in (ks, qs)))
        target = g.op("Concat", both, g.ints(N), g.ints(N), g.ints(1), axis=0)
        s = g.squeeze(g.op("Reshape", s, target), 4)
        w = g.op("Softmax", g.op("Mul", s, g.const(SCALE)), axis=2)
        w = g.reshape(g.transpose(g.unsqueeze(w, 2), 0, 1, 4, 2, 3), -1, N, N)
        z = g.op("MatMul", w, g.transpose(v, 0, 2, 1))
        z = g.squeeze(g.reshape(z, -1, H, N, W, 1), 4)
        return linear(g, merged(g, z), D, D)
    return network(17, attend)


def gain_first(g, x, mean, offset, gamma, beta):
    mu = mean(g, x)
    d = g.op("Sub", x, mu)
    sd = g.op("Sqrt", g.op("Add", mean(g, g.op("Mul", d, d)), g.const(1e-6)))
    r = g.op("Mul", g.op("Reciprocal", sd), gamma)
    return g.op("Add", g.op("Mul", x, r), offset(g, mu, r, beta))


@case("tf-norm")
def pooled():
    """The mean of a sequence's last axis as a pooling."""
    pool = lambda g, x: g.op("GlobalAveragePool", x)
    offset = lambda g, mu, r, beta: g.op("Sub", beta, g.op("Mul", mu, r))
    return network(17, norm=lambda g, x: gain_first(g, x, pool, offset, *norm_constants(g, D)))


@case("keras-norm")
def negative_mean():
    mean = lambda g, x: g.mean(x, -1)
    offset = lambda g, mu, r, beta: g.op("Add", g.op("Mul", g.op("Neg", mu), r), beta)
    return network(18, norm=lambda g, x: gain_first(g, x, mean, offset, *norm_constants(g, 1, 1, D)))


@case("keras-batch-norm")
def fused():
    """A LayerNorm of Keras 2 with its default epsilon. tract runs no BatchNormalization by computed statistics."""
    def norm(g, x):
        gamma, beta = norm_constants(g, D)
        r = g.reshape(x, 1, -1, D, 1)
        mu = g.mean(r, 0, 2, 3)
        ss = summed(g, "ReduceSumSquare", g.op("Sub", r, mu), 0, 2, 3, keep=0)
        size = g.op("Shape", ss)
        ones, zeros = (g.op("Expand", g.const(c), size) for c in (1.0, 0.0))
        n = g.op("BatchNormalization", r, ones, zeros, g.squeeze(mu, 0, 2, 3), g.op("Div", ss, g.const(float(D))), epsilon=1e-3)
        return g.op("Add", g.op("Mul", g.reshape(n, -1, N, D), gamma), beta)
    return network(13, norm=norm)


@case("tf-dense")
def tensordot():
    """Layers on one matrix of rows, their bias behind a shape that is computed as it runs."""
    def dense(g, x, ins, outs):
        shape = g.op("Concat", g.op("Gather", g.op("Shape", x), g.ints(0, 1)), g.ints(outs), axis=0)
        y = g.op("MatMul", g.reshape(x, -1, ins), g.weight(ins, outs))
        return g.op("Add", g.op("Reshape", y, shape), g.const(0.1 * g.rng.standard_normal((1, 1, outs))))
    return network(17, dense=dense)


@case("tf-gemm")
def gemm():
    """A Gemm without a bias says that it does not add it."""
    def dense(g, x, ins, outs):
        y = g.op("Gemm", g.reshape(x, -1, ins), g.weight(outs, ins, scale=ins**-0.5), alpha=1.0, beta=0.0, transB=1)
        return g.op("Add", g.reshape(y, -1, N, outs), g.const(0.1 * g.rng.standard_normal(outs)))
    return network(17, dense=dense)


@case("tf-gpt2-mask")
def constants():
    keep = np.tril(np.ones((1, 1, N, N)))
    change = lambda g, s: g.op("Sub", g.op("Mul", s, g.const(SCALE * keep)), g.const(1e4 * (1 - keep)))
    return network(17, lambda g, y: plain(g, y, change=change, scale=1.0))


@case("keras-channel-norm")
def channels():
    """ConvNeXt by tf2onnx: the channels are axis 1, the gain comes first."""
    g = Graph(17)
    x = g.reshape(g.transpose(g.input("x", [16, D]), 0, 2, 1), -1, D, 4, 4)
    for _ in range(2):
        w, b = g.weight(D, 1, 3, 3, scale=1 / 3), g.const(0.1 * g.rng.standard_normal(D))
        y = g.op("Conv", x, w, b, kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=D)
        mean = lambda g, x: g.mean(x, 1)
        offset = lambda g, mu, r, beta: g.op("Sub", beta, g.op("Mul", mu, r))
        y = gain_first(g, y, mean, offset, *norm_constants(g, D, 1, 1))
        for ins, outs in ((D, 2 * D), (2 * D, D)):
            w, b = g.weight(outs, ins, 1, 1, scale=ins**-0.5), g.const(0.1 * g.rng.standard_normal(outs))
            y = g.op("Conv", y, w, b, kernel_shape=[1, 1])
            y = gelu(g, y) if outs > D else y
        x = g.op("Add", x, y)
    g.output(x, [D, 4, 4])
    return g.case(0, 2, 2)


# ---- JAX ---------------------------------------------------------------------------------------------------------------


@case("jax-norm")
def moments():
    def norm(g, x):
        gamma, beta = norm_constants(g, D)
        mu = g.mean(x, 2)
        v = g.op("Sub", g.mean(g.op("Mul", x, x), 2), g.op("Mul", mu, mu))
        sd = g.op("Sqrt", g.op("Add", g.op("Max", v, g.const(0.0)), g.const(1e-6)))
        return g.op("Add", g.op("Mul", g.op("Div", g.op("Sub", x, mu), sd), gamma), beta)
    return network(18, norm=norm)


@case("equinox-norm")
def guarded():
    def norm(g, x):
        gamma, beta = norm_constants(g, D)
        mu = g.mean(x, 2)
        ends = [summed(g, kind, x, 2) for kind in ("ReduceMin", "ReduceMax")]
        finite = g.op("Equal", g.op("Sub", mu, mu), g.const(0.0))
        d = g.op("Where", g.op("And", g.op("Equal", *ends), finite), g.const(0.0), g.op("Sub", x, mu))
        v = g.op("Cast", g.mean(g.op("Cast", g.op("Mul", d, d), to=TensorProto.DOUBLE), 2), to=FLOAT)
        n = g.op("Div", d, g.op("Sqrt", g.op("Add", v, g.const(1e-5))))
        return g.op("Add", g.op("Mul", n, gamma), beta)
    return network(18, norm=norm)


@case("keras-jax-norm")
def sums():
    """Means as sums over the size, their axis put back and spread."""
    def mean(g, x, kind):
        m = g.op("Expand", g.reshape(summed(g, kind, x, 2, keep=0), -1, N, 1), g.ints(1, N, 1))
        return g.op("Div", m, g.const(float(D)))
    def norm(g, x):
        gamma, beta = norm_constants(g, 1, 1, D)
        negative = g.op("Neg", g.mean(x, -1))
        v = mean(g, g.op("Sub", x, mean(g, x, "ReduceSum")), "ReduceSumSquare")
        r = g.op("Mul", g.op("Div", g.const(1.0), g.op("Sqrt", g.op("Add", v, g.const(1e-5)))), gamma)
        return g.op("Add", g.op("Mul", x, r), g.op("Add", g.op("Mul", negative, r), beta))
    return network(18, norm=norm)


@case("jax-mask-behind")
def hidden_behind():
    """The mask comes behind the Softmax, and what is left is divided by its sum."""
    def weights(g, w, s):
        m = g.op("Mul", w, g.op("Cast", g.unsqueeze("keep", 1), to=FLOAT))
        t = summed(g, "ReduceSum", m, 3)
        some = g.op("Greater", t, g.const(0.0))
        n = g.op("Div", m, g.op("Where", some, t, g.const(1.0)))
        return g.op("Where", some, n, g.const(0.0))
    keep = lambda g: g.input("keep", [N, N], lambda r, s: r.random(s) > 0.5, bool)
    return network(18, lambda g, y: plain(g, y, weights=weights), inputs=keep)


# ---- Optimizers --------------------------------------------------------------------------------------------------------


@case("declared-twice")
def twice():
    """onnxslim declares each value two times."""
    c = encoder(lin="gemm")
    info = [helper.make_tensor_value_info(n.output[0], FLOAT, None) for n in c.model.graph.node if n.op_type == "MatMul"]
    c.model.graph.value_info.extend(info + info)
    return c


@case("declared-open")
def unknown():
    """Shape inference has written names for sizes that are numbers."""
    c = encoder(masks=["flat-masked"], flat=True)
    g = c.model.graph
    for n in g.node:
        after = {m.op_type for m in g.node if n.output[0] in m.input}
        if n.op_type == "Reshape" and after & {"Add", "Softmax"}:
            sizes = [f"unk_{len(g.value_info)}_{i}" for i in range(4 if "Add" in after else 3)]
            g.value_info.append(helper.make_tensor_value_info(n.output[0], FLOAT, sizes))
    return c


@case("gelu-without-half")
def doubled():
    """onnxsim has given the 1/2 of a GELU to the next layer."""
    def act(g, x):
        e = g.op("Erf", g.op("Div", x, g.const(2**0.5)))
        return g.op("Mul", x, g.op("Add", e, g.const(1.0)))
    return network(17, act=act)


@case("fused-by-onnxruntime")
def contrib():
    own = "com.microsoft"
    g = Graph(17)
    x = g.input("x", [N, D])
    last = layer_norm(g, x)
    for _ in range(2):
        q, k, v = qkv(g, last)
        s = g.op("FusedMatMul", q, k, domain=own, transB=1, alpha=SCALE)
        y = merged(g, g.op("MatMul", g.op("Softmax", s, axis=-1), v))
        y = g.op("MatMul", y, g.weight(D, D))
        last, _, _, x = g.op("SkipLayerNormalization", y, x, *norm_constants(g, D), g.const(np.zeros(D)), outs=4, domain=own,
                             epsilon=1e-5)
        y = g.op("BiasGelu", g.op("MatMul", last, g.weight(D, 2 * D)), g.const(0.1 * g.rng.standard_normal(2 * D)), domain=own)
        last, _, _, x = g.op("SkipLayerNormalization", linear(g, y, 2 * D, D), x, *norm_constants(g, D), outs=4, domain=own)
    for n in g.nodes:
        if n.op_type == "SkipLayerNormalization":
            n.output[1] = n.output[2] = ""
    g.output(g.op("FastGelu", last, domain=own), [N, D])
    c = g.case(2, 5, 3)
    c.model.opset_import.append(helper.make_opsetid(own, 1))
    return c


def optimized(g, attend, x="x"):
    """Two blocks with the rest fused as well: the output of `attend` comes before its bias."""
    own = "com.microsoft"
    last = layer_norm(g, x, "node" if g.opset >= 17 else "pow")
    for _ in range(2):
        norm = [*norm_constants(g, D), g.const(0.1 * g.rng.standard_normal(D))]
        last, x = skip_norm(g, g.op("MatMul", attend(g, last), g.weight(D, D)), x, *norm)
        y = g.op("BiasGelu", g.op("MatMul", last, g.weight(D, 2 * D)), g.const(0.1 * g.rng.standard_normal(2 * D)), domain=own)
        norm = [*norm_constants(g, D), g.const(0.1 * g.rng.standard_normal(D))]
        last, x = skip_norm(g, g.op("MatMul", y, g.weight(2 * D, D)), x, *norm)
    g.output(last, [N, D])
    c = g.case(2, 5, 2)
    c.model.opset_import.append(helper.make_opsetid(own, 1))
    return c


def skip_norm(g, *inputs):
    """The norm of a sum, and the sum."""
    outs = g.op("SkipLayerNormalization", *inputs, outs=4, domain="com.microsoft", epsilon=1e-5)
    g.nodes[-1].output[1] = g.nodes[-1].output[2] = ""
    return outs[0], outs[3]


def packed(g):
    """Weight and bias of one projection for queries, keys and values."""
    return g.weight(D, 3 * D), g.const(0.1 * g.rng.standard_normal(3 * D))


@case("fused-attention")
def fused_attention():
    """`optimize_model` of onnxruntime's transformers tools; a mask of ones and zeros."""
    g = Graph(14)
    g.input("x", [N, D])
    padding(g)
    keep = g.op("Cast", "pad", to=TensorProto.INT32)
    def attend(g, y):
        return g.op("Attention", y, *packed(g), keep, domain="com.microsoft", num_heads=H, mask_filter_value=-3.4028234e38)
    return optimized(g, attend)


@case("fused-attention-causal")
def fused_causal():
    """As the text model of CLIP."""
    g = Graph(17)
    g.input("x", [N, D])
    return optimized(g, lambda g, y: g.op("Attention", y, *packed(g), domain="com.microsoft", num_heads=H, unidirectional=1))


@case("fused-attention-lengths")
def fused_bert():
    """As BERT: the sum of embeddings counts the tokens of each sample, and its attentions read that."""
    g = Graph(17)
    own = "com.microsoft"
    ids = g.op("Cast", g.input("ids", [N], lambda r, s: r.integers(0, 50, s), np.int64), to=TensorProto.INT32)
    padding(g)
    keep = g.op("Cast", "pad", to=TensorProto.INT32)
    tables = [g.const(g.rng.standard_normal((n, D))) for n in (50, 32, 2)]
    kind = g.op("Mul", ids, g.const(0, np.int32))
    x, count = g.op("EmbedLayerNormalization", ids, kind, *tables, *norm_constants(g, D), keep, outs=2, domain=own, epsilon=1e-5)
    for _ in range(2):
        y = g.op("Attention", x, *packed(g), count, domain=own, num_heads=H)
        x, _ = skip_norm(g, g.op("MatMul", y, g.weight(D, D)), x, *norm_constants(g, D), g.const(np.zeros(D)))
        y = g.op("BiasGelu", g.op("MatMul", x, g.weight(D, 2 * D)), g.const(np.zeros(2 * D)), domain=own)
        x, _ = skip_norm(g, g.op("MatMul", y, g.weight(2 * D, D)), x, *norm_constants(g, D), g.const(np.zeros(D)))
    g.output(x, [N, D])
    c = g.case(2, 5, 2)
    c.model.opset_import.append(helper.make_opsetid(own, 1))
    return c


@case("fused-multi-head-attention")
def fused_heads():
    """Projected before, the bias behind; a bias for each head and pair of tokens on the scores."""
    g = Graph(17)
    g.input("x", [N, D])
    def attend(g, y):
        q, k, v = (g.op("MatMul", y, g.weight(D, D)) for _ in range(3))
        bias, places = g.const(0.1 * g.rng.standard_normal(3 * D)), g.const(g.rng.standard_normal((1, H, N, N)))
        return g.op("MultiHeadAttention", q, k, v, bias, "", places, domain="com.microsoft", num_heads=H)
    return optimized(g, attend)


# ---- Masks, and forms of their own -------------------------------------------------------------------------------------


def padding(g):
    g.input("pad", [N], lambda r, s: np.arange(s[1])[None] < r.integers(s[1] // 2, s[1] + 1, (s[0], 1)), np.int64)


@case("mask-in-steps")
def steps():
    """(1 - m) * -10000 as Paddle writes it; an error of `-m` would become 10000 times as large."""
    def change(g, s):
        m = g.op("Add", g.op("Mul", g.op("Cast", "pad", to=FLOAT), g.const(-1.0)), g.const(1.0))
        m = g.op("Add", g.op("Mul", m, g.const(-1e4)), g.const(0.0))
        return g.op("Add", s, g.unsqueeze(m, 1, 2))
    return network(17, lambda g, y: plain(g, y, change=change), inputs=padding)


@case("mask-taken-off")
def difference():
    def change(g, s):
        m = g.op("Mul", g.op("Sub", g.const(1.0), g.op("Cast", "pad", to=FLOAT)), g.const(1e4))
        return g.op("Sub", s, g.unsqueeze(m, 1, 2))
    return network(17, lambda g, y: plain(g, y, change=change), inputs=padding)


@case("mask-full-like")
def full_like():
    def change(g, s):
        low = g.op("Expand", g.const(-1e9), g.op("Shape", s))
        keep = g.op("Expand", g.op("Cast", g.unsqueeze("pad", 1, 2), to=TensorProto.BOOL), g.op("Shape", s))
        return g.op("Where", keep, s, low)
    return network(17, lambda g, y: plain(g, y, change=change), inputs=padding)


@case("rows-hidden-by-little")
def alike():
    """Where all keys of a query lose 10000, its weights are what they were."""
    def change(g, s):
        m = g.op("Cast", "pad", to=FLOAT)
        both = g.op("Mul", g.unsqueeze(m, 1, 3), g.unsqueeze(m, 1, 2))
        return g.op("Add", s, g.op("Mul", g.op("Sub", g.const(1.0), both), g.const(-1e4)))
    few = lambda g: g.input("pad", [N], lambda r, s: np.arange(s[1])[None] < r.integers(1, 5, (s[0], 1)), np.int64)
    return network(17, lambda g, y: plain(g, y, change=change), inputs=few)


@case("samples-hidden-whole")
def empty():
    """Samples without a key, as an empty prompt is: each key has the same weight."""
    some = lambda g: g.input("keep", [N], lambda r, s: np.arange(s[1])[None] < r.integers(0, 3, (s[0], 1)) * 6, bool)
    change = lambda g, s: g.op("Where", g.unsqueeze("keep", 1, 2), s, g.const(-1e9))
    return network(17, lambda g, y: plain(g, y, change=change), inputs=some)


@case("one-head")
def alone():
    """One head without a Reshape, and values without a bias."""
    def attend(g, y):
        q, k = (linear(g, y, D, D) for _ in range(2))
        s = g.op("Mul", g.op("MatMul", q, g.transpose(k, 0, 2, 1)), g.const(D**-0.5))
        y = g.op("MatMul", g.op("Softmax", s, axis=-1), linear(g, y, D, D, "no-bias"))
        return linear(g, y, D, D)
    return network(17, attend)


@case("scale-negative")
def negative():
    """The factor is no scale of codes, so that the codes are made behind it."""
    return network(17, lambda g, y: plain(g, y, scale=-SCALE))


@case("norm-over-two-axes")
def plane():
    """A gain for each element: no channel to fold a factor into. It counts as a norm, not as one over channels."""
    def norm(g, x):
        gamma = g.const(1 + 0.2 * g.rng.standard_normal((N, D)))
        return g.op("LayerNormalization", x, gamma, g.const(0.2 * g.rng.standard_normal((N, D))), axis=-2)
    return network(17, norm=norm)


@case("norm-by-var")
def var():
    """`torch.var` by the dynamo exporter; the gain comes before the division."""
    def norm(g, x):
        gamma, beta = norm_constants(g, D)
        d = g.op("Sub", x, g.mean(x, -1))
        e = g.op("Sub", x, g.mean(x, 2))
        v = g.op("Expand", g.reshape(g.mean(g.op("Mul", e, e), 2, keep=0), -1, N, 1), g.ints(1, N, 1))
        sd = g.op("Sqrt", g.op("Add", v, g.const(1e-5)))
        return g.op("Add", g.op("Div", g.op("Mul", gamma, d), sd), beta)
    return network(18, norm=norm)


@case("softmax-by-hand")
def by_hand():
    def attend(g, y):
        q, k, v = qkv(g, y)
        s = g.op("Mul", g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2)), g.const(SCALE))
        e = g.op("Exp", g.op("Sub", s, g.op("ReduceMax", s, axes=[-1], keepdims=1)))
        w = g.op("Div", e, summed(g, "ReduceSum", e, -1))
        return linear(g, merged(g, g.op("MatMul", w, v)), D, D)
    return network(17, attend)
