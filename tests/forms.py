"""Small models in the many forms exporters give the same thing. Data for forms_cross.py.

CASES maps a name to a function that returns a Case: the model, inputs for it, and how many attentions, LayerNorms and
GELUs the architecture has. Weights are random; nothing is trained.
"""

import dataclasses
import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

N, D, H = 12, 32, 4
SAMPLES = 40
ELEM = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64, np.dtype(bool): TensorProto.BOOL}


@dataclasses.dataclass
class Case:
    model: onnx.ModelProto
    feed: dict
    attentions: int
    norms: int
    gelus: int
    # Flags for the compiler.
    flags: tuple = ()
    # What to compare with, where onnxruntime cannot run the model itself.
    reference: onnx.ModelProto = None


class Graph:
    """Builds a graph node by node."""

    def __init__(self, opset, seed=0, batch="batch", like_values=False):
        self.opset, self.batch = opset, batch
        # Whether nodes are called like what they make.
        self.like_values = like_values
        self.rng = np.random.default_rng(seed)
        self.nodes, self.inits, self.inputs, self.outputs, self.feed = [], [], [], [], {}

    def name(self, hint):
        return f"{hint}_{len(self.nodes) + len(self.inits)}"

    def const(self, value, dtype=np.float32):
        name = self.name("c")
        self.inits.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def ints(self, *v):
        return self.const(v, np.int64)

    def weight(self, *dims, scale=None):
        scale = 1 / math.sqrt(dims[0]) if scale is None else scale
        return self.const(self.rng.standard_normal(dims) * scale)

    def op(self, kind, *inputs, outs=1, domain="", **attrs):
        names = [self.name(kind.lower()) + (f"_{i}" if i else "") for i in range(outs)]
        name = names[0] if self.like_values else f"node_{names[0]}"
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attrs))
        return names[0] if outs == 1 else names

    def input(self, name, dims, make=None, dtype=np.float32):
        """`make(rng, shape)` gives samples."""
        dtype = np.dtype(dtype)
        data = (make or (lambda r, s: r.standard_normal(s)))(np.random.default_rng(5), [SAMPLES] + dims).astype(dtype)
        self.inputs.append(helper.make_tensor_value_info(name, ELEM[dtype], [self.batch] + dims))
        self.feed[name] = data
        return name

    def output(self, value, dims, dtype=np.float32):
        name = f"out{len(self.outputs)}"
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name if self.like_values else f"node_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, ELEM[np.dtype(dtype)], [self.batch] + dims))

    # Operators whose form depends on the opset.
    def unsqueeze(self, x, *axes):
        return self.op("Unsqueeze", x, self.ints(*axes)) if self.opset >= 13 else self.op("Unsqueeze", x, axes=axes)

    def squeeze(self, x, *axes):
        return self.op("Squeeze", x, self.ints(*axes)) if self.opset >= 13 else self.op("Squeeze", x, axes=axes)

    def mean(self, x, *axes, keep=1):
        if self.opset >= 18:
            return self.op("ReduceMean", x, self.ints(*axes), keepdims=keep)
        return self.op("ReduceMean", x, axes=list(axes), keepdims=keep)

    def reshape(self, x, *dims):
        return self.op("Reshape", x, self.ints(*dims))

    def transpose(self, x, *perm):
        return self.op("Transpose", x, perm=perm)

    def case(self, attentions, norms, gelus, flags=(), **more):
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.inits)
        ir = {10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8}.get(self.opset, 10)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir, **more)
        return Case(model, self.feed, attentions, norms, gelus, tuple(flags))


# ---- LayerNorm, GELU, linear layers ------------------------------------------------------------------------------------


def layer_norm(g, x, form="node", size=D):
    gamma, beta = g.const(1 + 0.2 * g.rng.standard_normal(size)), g.const(0.2 * g.rng.standard_normal(size))
    if "untrained" in form:
        gamma, beta = g.const(np.ones(size)), g.const(np.zeros(size))
    if form in ("node", "untrained-node"):
        return g.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=1e-5)
    mu = g.mean(x, -1)
    d = g.op("Sub", x, mu)
    square = g.op("Mul", d, d) if "square" in form else g.op("Pow", d, g.const(2.0))
    var = g.op("Add", g.mean(square, -1), g.const(1e-5))
    if "eps-first" in form:
        var = g.op("Add", g.const(1e-5), g.mean(square, -1))
    sd = g.op("Sqrt", var)
    if form.startswith("rms"):
        ms = g.op("Add", g.mean(g.op("Mul", x, x), -1), g.const(1e-5))
        return g.op("Mul", g.op("Mul", x, g.op("Reciprocal", g.op("Sqrt", ms))), gamma)
    if "twice" in form:
        d = g.op("Sub", x, mu)
    if "reciprocal" in form:
        n = g.op("Mul", d, g.op("Reciprocal", sd))
    elif "one-over" in form:
        n = g.op("Mul", d, g.op("Div", g.const(1.0), sd))
    elif "power" in form:
        n = g.op("Mul", d, g.op("Pow", var, g.const(-0.5)))
    elif "gamma-first" in form:
        # As TensorFlow writes it: x * r + (beta - mean * r), r = gamma / sd.
        r = g.op("Mul", g.op("Reciprocal", sd), gamma)
        return g.op("Add", g.op("Mul", x, r), g.op("Sub", beta, g.op("Mul", mu, r)))
    else:
        n = g.op("Div", d, sd)
    if "plain" in form:
        return n
    if "gamma-left" in form:
        return g.op("Add", beta, g.op("Mul", gamma, n))
    return g.op("Add", g.op("Mul", n, gamma), beta)


def gelu(g, x, form="erf-div"):
    c = g.const
    if form == "node":
        return g.op("Gelu", x)
    if form == "node-tanh":
        return g.op("Gelu", x, approximate="tanh")
    if form == "quick":
        return g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, c(1.702))))
    if form == "silu":
        return g.op("Mul", x, g.op("Sigmoid", x))
    if form.startswith("erf"):
        e = g.op("Erf", g.op("Mul", x, c(0.5**0.5)) if "mul" in form else g.op("Div", x, c(2**0.5)))
        a = g.op("Add", c(1.0), e) if "one-first" in form else g.op("Add", e, c(1.0))
    else:
        cube = g.op("Mul", g.op("Mul", x, x), x) if "cube" in form else g.op("Pow", x, c(3.0))
        inner = g.op("Add", x, g.op("Mul", c(0.044715), cube))
        if "factored" in form:
            xx = g.op("Mul", x, x)
            inner = g.op("Mul", x, g.op("Add", c(1.0), g.op("Mul", xx, c(0.044715))))
        a = g.op("Add", g.op("Tanh", g.op("Mul", inner, c(math.sqrt(2 / math.pi)))), c(1.0))
    if "half-last" in form:
        return g.op("Mul", g.op("Mul", x, a), c(0.5))
    if "half-middle" in form:
        return g.op("Mul", x, g.op("Mul", c(0.5), a))
    if "half-div" in form:
        return g.op("Div", g.op("Mul", x, a), c(2.0))
    return g.op("Mul", g.op("Mul", c(0.5), x), a)


def linear(g, x, ins, outs, form="matmul", rows=N):
    w, b = g.weight(ins, outs), g.const(0.1 * g.rng.standard_normal(outs))
    if form == "gemm":
        y = g.op("Gemm", g.reshape(x, -1, ins), g.op("Transpose", w, perm=[1, 0]), b, transB=1)
        return g.reshape(y, -1, rows, outs)
    y = g.op("MatMul", x, w)
    if form == "no-bias":
        return y
    return g.op("Add", b, y) if form == "bias-first" else g.op("Add", y, b)


# ---- attention -----------------------------------------------------------------------------------------------------------


def projected(g, x):
    """Queries, keys and values, head by head."""
    return [g.transpose(g.reshape(linear(g, x, D, D), -1, N, H, D // H), 0, 2, 1, 3) for _ in range(3)]


def joined(g, y):
    """What the heads make, side by side."""
    return g.reshape(g.transpose(y, 0, 2, 1, 3), -1, N, D)


def runtime_root(g, q, axis=-1):
    """sqrt(head size), computed from the shape when the model runs."""
    size = g.op("Slice", g.op("Shape", q), g.ints(-1), g.ints(9223372036854775807))
    return g.op("Sqrt", g.op("Cast", size, to=TensorProto.FLOAT))


def causal(g, n):
    return np.tril(np.ones((n, n), bool))


def mask(g, s, kind, n=N, m=N):
    if kind == "bias":
        return g.op("Add", s, g.const(g.rng.standard_normal((1, H, n, m))))
    if kind == "bias-first":
        return g.op("Add", g.const(g.rng.standard_normal((H, n, m))), s)
    if kind == "additive":
        return g.op("Add", s, g.const(np.where(causal(g, n), 0, -1e9)[None, None]))
    if kind == "additive-inf":
        return g.op("Add", s, g.const(np.where(causal(g, n), 0, -np.inf)[None, None]))
    if kind == "additive-100":
        return g.op("Add", s, g.const(np.where(causal(g, n), 0, -100)[None, None]))
    if kind == "bias-and-mask":
        both = np.where(causal(g, n), g.rng.standard_normal((H, n, m)), -1e4)
        return g.op("Add", s, g.const(both[None]))
    if kind == "causal-where":
        return g.op("Where", g.const(causal(g, n)[None, None], bool), s, g.const(-3.4e38))
    if kind == "hidden-where":
        return g.op("Where", g.const(~causal(g, n)[None, None], bool), g.const(-np.inf), s)
    if kind == "padding":
        # As BERT: (1 - mask) * lowest, from an input of ones and zeros.
        if "pad" not in g.feed:
            def make(r, shape):
                return np.arange(shape[1])[None] < r.integers(shape[1] // 2, shape[1] + 1, (shape[0], 1))
            g.input("pad", [m], make, np.int64)
        p = g.op("Cast", g.unsqueeze("pad", 1, 2), to=TensorProto.FLOAT)
        return g.op("Add", s, g.op("Mul", g.op("Sub", g.const(1.0), p), g.const(-3.4028234e38)))
    if kind == "padding-where":
        if "keep" not in g.feed:
            g.input("keep", [m], lambda r, sh: np.arange(sh[1])[None] < r.integers(4, sh[1] + 1, (sh[0], 1)), bool)
        return g.op("Where", g.unsqueeze("keep", 1, 2), s, g.const(-np.inf))
    if kind == "padding-square":
        # As DeBERTa: queries of padding see nothing, so that each key has the same weight for them.
        if "ids" not in g.feed:
            g.input("ids", [m], lambda r, sh: np.arange(sh[1])[None] < r.integers(4, sh[1] + 1, (sh[0], 1)), np.int64)
        both = g.op("Mul", g.unsqueeze("ids", 1, 3), g.unsqueeze("ids", 1, 2))
        return g.op("Where", g.op("Not", g.op("Cast", both, to=TensorProto.BOOL)), g.const(-3.4028234e38), s)
    if kind == "input-bias":
        # A bias that only the caller knows: no mask at all.
        if "bias" not in g.feed:
            g.input("bias", [1, n, m], lambda r, sh: 2 * r.standard_normal(sh))
        return g.op("Add", s, "bias")
    if kind == "input-mask":
        # PyTorch's additive mask, fed: minus infinity where a key is hidden.
        if "mask" not in g.feed:
            g.input("mask", [n, m], lambda r, sh: np.where(r.random(sh) + np.eye(n) < 0.3, -np.inf, 0))
        return g.op("Add", s, g.unsqueeze("mask", 1))
    if kind == "softcap":
        return g.op("Mul", g.op("Tanh", g.op("Div", s, g.const(5.0))), g.const(5.0))
    if kind == "flat-masked":
        # CLIP of old: heads and batch are one axis, the mask is added where they are two.
        s = g.op("Add", g.reshape(s, -1, H, n, m), g.const(np.where(causal(g, n), 0, -3e38)[None, None]))
        return g.reshape(s, -1, n, m)
    raise ValueError(kind)


def attention(g, x, qkv="three", kt="transpose", scale="after-mul", masks=(), kv_heads=H, lin="matmul", context=None,
              flat=False, apart=False, guard=False, n=N, m=N, softmax_axis=-1):
    d = D // H
    context = context or x
    heads = lambda y, k, rows: g.transpose(g.reshape(y, -1, rows, k, d), 0, 2, 1, 3)
    if qkv == "packed-split":
        y = g.reshape(linear(g, x, D, 3 * D, lin), -1, n, 3, H, d)
        y = g.transpose(y, 2, 0, 3, 1, 4)
        if g.opset < 13:
            parts = g.op("Split", y, outs=3, axis=0)
        else:
            parts = g.op("Split", y, g.ints(1, 1, 1), outs=3, axis=0)
        q, k, v = (g.squeeze(p, 0) for p in parts)
    elif qkv == "packed-gather":
        y = g.transpose(g.reshape(linear(g, x, D, 3 * D, lin), -1, n, 3, H, d), 2, 0, 3, 1, 4)
        q, k, v = (g.op("Gather", y, g.const(i, np.int64), axis=0) for i in range(3))
    elif qkv == "packed-last":
        # Split on the last axis before the heads are taken apart.
        y = linear(g, x, D, 3 * D, lin)
        if g.opset >= 13:
            parts = g.op("Split", y, g.ints(D, D, D), outs=3, axis=-1)
        else:
            parts = g.op("Split", y, outs=3, axis=-1)
        q, k, v = (heads(p, H, n) for p in parts)
    else:
        q = heads(linear(g, x, D, D, lin, n), H, n)
        kf, vf = (linear(g, context, D, kv_heads * d, lin, m) for _ in range(2))
        v = heads(vf, kv_heads, m)
        k = None if kt == "fused" else heads(kf, kv_heads, m)
        if kt == "fused":
            k = g.transpose(g.reshape(kf, -1, m, kv_heads, d), 0, 2, 3, 1)
        if kv_heads != H:
            r = H // kv_heads
            def repeat(y, rows):
                y = g.op("Expand", g.unsqueeze(y, 2), g.ints(1, 1, r, 1, 1))
                return g.reshape(y, -1, H, rows, d)
            k, v = repeat(k, m), repeat(v, m)
    if flat:
        q, k, v = g.reshape(q, -1, n, d), g.reshape(k, -1, m, d), g.reshape(v, -1, m, d)
    f = 1 / math.sqrt(d)
    root = None
    if scale.startswith("runtime"):
        root = runtime_root(g, q)
    if scale == "q-mul":
        q = g.op("Mul", q, g.const(f))
    elif scale == "q-div":
        q = g.op("Div", q, g.const(math.sqrt(d)))
    elif scale == "runtime-q":
        q = g.op("Div", q, root)
    elif scale in ("both", "runtime-both"):
        c = g.const(math.sqrt(f)) if scale == "both" else g.op("Sqrt", g.op("Div", g.const(1.0), root))
        q = g.op("Mul", q, c)
        if kt == "transpose":
            k = g.op("Mul", k, c)
    if not (qkv == "three" and kt == "fused"):
        if flat:
            k = g.transpose(k, 0, 2, 1)
        elif kt == "rtr":
            k = g.reshape(g.transpose(g.reshape(k, -1, m, d), 0, 2, 1), -1, H, d, m)
        else:
            k = g.transpose(k, 0, 1, 3, 2)
    if scale in ("both", "runtime-both") and kt != "transpose":
        k = g.op("Mul", k, c)
    s = g.op("MatMul", q, k)
    if scale == "after-mul":
        s = g.op("Mul", s, g.const(f))
    elif scale == "after-div":
        s = g.op("Div", s, g.const(math.sqrt(d)))
    elif scale == "runtime-after":
        s = g.op("Div", s, root)
    if apart:
        # DeBERTa of version 3: heads and batch are two axes only from the mask to the Softmax.
        s = g.reshape(g.op("Add", s, g.const(g.rng.standard_normal((1, n, m)))), -1, H, n, m)
    for kind in masks:
        s = mask(g, s, kind, n, m)
    w = g.op("Softmax", s, axis=softmax_axis)
    if apart:
        w = g.reshape(w, -1, n, m)
    if guard:
        w = g.op("Where", g.op("IsNaN", w), g.const(0.0), w)
    y = g.op("MatMul", w, v)
    if flat:
        y = g.reshape(y, -1, H, n, d)
    y = g.reshape(g.transpose(y, 0, 2, 1, 3), -1, n, D)
    return linear(g, y, D, D, lin, n)


def block(g, x, norm="node", act="erf-div", post=False, lin="matmul", **how):
    def mlp(y):
        return linear(g, gelu(g, linear(g, y, D, 4 * D, lin), act), 4 * D, D, lin)
    if post:
        x = layer_norm(g, g.op("Add", attention(g, x, lin=lin, **how), x), norm)
        return layer_norm(g, g.op("Add", mlp(x), x), norm)
    x = g.op("Add", x, attention(g, layer_norm(g, x, norm), lin=lin, **how))
    return g.op("Add", x, mlp(layer_norm(g, x, norm)))


def encoder(opset=17, batch="batch", blocks=2, gelus=None, attentions=None, flags=(), norms=None, like_values=False, **how):
    """Tokens in, one vector of ten logits out."""
    g = Graph(opset, batch=batch, like_values=like_values)
    x = g.input("x", [N, D])
    for _ in range(blocks):
        x = block(g, x, **how)
    x = layer_norm(g, x, how.get("norm", "node"))
    x = g.mean(x, 1, keep=0)
    g.output(g.op("Add", g.op("MatMul", x, g.weight(D, 10)), g.const(np.zeros(10))), [10])
    return g.case(blocks if attentions is None else attentions, 2 * blocks + 1 if norms is None else norms,
                  blocks if gelus is None else gelus, flags)


CASES = {}
for s in ["q-mul", "q-div", "both", "after-mul", "after-div", "runtime-q", "runtime-both", "runtime-after", "none"]:
    CASES[f"scale-{s}"] = lambda s=s: encoder(scale=s)
for k in ["transpose", "fused", "rtr"]:
    CASES[f"keys-{k}"] = lambda k=k: encoder(kt=k, scale="both", batch=1)
for q in ["packed-split", "packed-gather", "packed-last"]:
    for o in [11, 13, 18]:
        CASES[f"qkv-{q}-opset{o}"] = lambda q=q, o=o: encoder(opset=o, qkv=q, norm="pow" if o < 17 else "node",
                                                             scale="q-mul", softmax_axis=3 if o < 13 else -1)
for m in ["bias", "bias-first", "additive", "additive-inf", "additive-100", "bias-and-mask", "causal-where", "hidden-where",
          "padding", "padding-where", "padding-square", "input-bias", "input-mask"]:
    CASES[f"mask-{m}"] = lambda m=m: encoder(masks=[m])
for ms in [["bias", "additive"], ["additive", "bias"], ["causal-where", "padding"], ["padding", "causal-where"],
           ["bias", "padding"], ["causal-where", "bias"], ["bias", "causal-where", "padding"]]:
    CASES["masks-" + "+".join(ms)] = lambda ms=ms: encoder(masks=ms)
CASES["mask-flat"] = lambda: encoder(flat=True, masks=["flat-masked"], scale="q-mul")
CASES["mask-apart"] = lambda: encoder(flat=True, apart=True, masks=["padding-square"], scale="both")
CASES["mask-flat-plain"] = lambda: encoder(flat=True, scale="q-mul")
CASES["mask-softcap"] = lambda: encoder(masks=["softcap"])
CASES["guard"] = lambda: encoder(guard=True, masks=["padding-where"])
for k in [2, 1]:
    CASES[f"kv-heads-{k}"] = lambda k=k: encoder(kv_heads=k)
for l in ["gemm", "bias-first", "no-bias"]:
    CASES[f"linear-{l}"] = lambda l=l: encoder(lin=l)
for f in ["erf-div", "erf-mul", "erf-div-one-first", "erf-div-half-last", "erf-mul-half-middle", "erf-div-half-div",
          "tanh-pow", "tanh-cube", "tanh-factored", "tanh-pow-half-last", "tanh-cube-half-middle"]:
    CASES[f"gelu-{f}"] = lambda f=f: encoder(act=f)
CASES["gelu-node"] = lambda: encoder(opset=20, act="node")
CASES["gelu-node-tanh"] = lambda: encoder(opset=20, act="node-tanh")
CASES["gelu-quick"] = lambda: encoder(act="quick", gelus=0)
CASES["gelu-silu"] = lambda: encoder(act="silu", gelus=0)
for f in ["pow", "square", "pow-reciprocal", "square-one-over", "pow-twice", "pow-eps-first", "pow-gamma-left", "pow-power",
          "square-gamma-first"]:
    for o in [13, 18]:
        CASES[f"norm-{f}-opset{o}"] = lambda f=f, o=o: encoder(opset=o, norm=f)
CASES["nodes-named-like-values"] = lambda: encoder(like_values=True)
CASES["post-norm"] = lambda: encoder(post=True)
CASES["keep-opset-13"] = lambda: encoder(opset=13, norm="pow", flags=["--keep-opset"], norms=0, gelus=0)


def case(name):
    def put(make):
        CASES[name] = make
        return make
    return put


@case("cross-attention")
def cross():
    g = Graph(17)
    x, c = g.input("x", [N, D]), g.input("context", [7, D])
    y = g.op("Add", x, attention(g, layer_norm(g, x), context=layer_norm(g, c), m=7))
    y = g.op("Add", y, attention(g, layer_norm(g, y)))
    g.output(layer_norm(g, y), [N, D])
    return g.case(2, 4, 0)


@case("bert")
def bert():
    g = Graph(14)
    ids = g.input("ids", [N], lambda r, s: r.integers(0, 50, s), np.int64)
    kinds = g.input("kinds", [N], lambda r, s: r.integers(0, 2, s), np.int64)
    x = g.op("Add", g.op("Gather", g.weight(50, D, scale=1), ids), g.op("Gather", g.weight(2, D, scale=1), kinds))
    x = layer_norm(g, g.op("Add", x, g.weight(1, N, D, scale=0.3)), "pow")
    for _ in range(2):
        x = block(g, x, norm="pow", post=True, scale="after-div", masks=["padding"], lin="bias-first")
    g.output(x, [N, D])
    first = g.op("Gather", x, g.const(0, np.int64), axis=1)
    g.output(g.op("Tanh", g.op("Gemm", first, g.weight(D, D), g.const(np.zeros(D)))), [D])
    return g.case(2, 5, 2)


@case("roberta")
def roberta():
    """Positions counted from the padding, once behind a comparison with true."""
    g = Graph(14)
    ids = g.input("ids", [N], lambda r, s: r.integers(0, 9, s), np.int64)
    seen = g.op("Not", g.op("Equal", ids, g.const(1, np.int64)))
    seen = g.op("Equal", seen, g.const(True, bool))
    ones = g.op("Cast", g.op("Cast", seen, to=TensorProto.INT32), to=TensorProto.INT64)
    places = g.op("Mul", g.op("CumSum", ones, g.const(1, np.int64)), ones)
    places = g.op("Add", places, g.const(1, np.int64))
    x = g.op("Add", g.op("Gather", g.weight(9, D, scale=1), ids), g.op("Gather", g.weight(N + 2, D, scale=0.5), places))
    x = layer_norm(g, x, "pow")
    g.output(block(g, x, norm="pow", post=True, scale="after-div", lin="bias-first"), [N, D])
    return g.case(1, 3, 1)


@case("clip")
def clip():
    """A text tower and an image tower, normalised and compared."""
    g = Graph(14)
    def normalise(x):
        return g.op("Div", x, g.op("ReduceL2", x, axes=[-1], keepdims=1))
    ids = g.input("ids", [N], lambda r, s: r.integers(0, 50, s), np.int64)
    t = g.op("Add", g.op("Gather", g.weight(50, D, scale=1), ids), g.weight(N, D, scale=0.3))
    for _ in range(2):
        t = block(g, t, norm="pow", act="quick", flat=True, masks=["flat-masked"], scale="q-mul")
    t = layer_norm(g, t, "pow")
    last = g.op("ArgMax", ids, axis=-1, keepdims=0)
    one = g.op("OneHot", last, g.const(N, np.int64), g.const([0.0, 1.0]), axis=-1)
    t = g.squeeze(g.op("MatMul", g.unsqueeze(one, 1), t), 1)
    image = g.input("image", [3, 8, 12])
    p = g.op("Conv", image, g.const(g.rng.standard_normal((D, 3, 4, 2)) / 5), kernel_shape=[4, 2], strides=[4, 2])
    p = g.transpose(g.reshape(p, -1, D, N), 0, 2, 1)
    p = layer_norm(g, p, "pow")
    for _ in range(2):
        p = block(g, p, norm="pow", act="quick", scale="q-mul")
    p = g.op("Gather", layer_norm(g, p, "pow"), g.const(0, np.int64), axis=1)
    t, p = (normalise(g.op("MatMul", y, g.weight(D, 16))) for y in (t, p))
    g.output(p, [16])
    g.output(t, [16])
    return g.case(4, 11, 0)


def conv(g, x, ins, outs, k=1, stride=1, group=1, bias=True):
    w = g.const(g.rng.standard_normal((outs, ins // group, k, k)) / math.sqrt(k * k * ins / group))
    more = [g.const(0.1 * g.rng.standard_normal(outs))] if bias else []
    return g.op("Conv", x, w, *more, kernel_shape=[k, k], strides=[stride] * 2, pads=[k // 2] * 4, group=group)


def batch_norm(g, x, c):
    r = g.rng
    return g.op("BatchNormalization", x, g.const(1 + 0.1 * r.standard_normal(c)), g.const(0.1 * r.standard_normal(c)),
                g.const(0.1 * r.standard_normal(c)), g.const(1 + 0.2 * r.random(c)))


def hard_swish(g, x):
    return g.op("Mul", x, g.op("Div", g.op("Clip", g.op("Add", x, g.const(3.0)), g.const(0.0), g.const(6.0)), g.const(6.0)))


def head(g, x, c):
    x = g.op("Flatten", g.op("GlobalAveragePool", x), axis=1)
    g.output(g.op("Gemm", x, g.weight(c, 10), g.const(np.zeros(10))), [10])


@case("convnext")
def convnext():
    """LayerNorm and linear layers with channels last, depthwise Conv with channels first. No attention at all."""
    g = Graph(17)
    x = conv(g, g.input("image", [3, 16, 16]), 3, D, 4, 4)
    for _ in range(2):
        y = g.transpose(conv(g, x, D, D, 7, group=D), 0, 2, 3, 1)
        y = linear(g, gelu(g, linear(g, layer_norm(g, y), D, 4 * D)), 4 * D, D)
        y = g.transpose(g.op("Mul", y, g.const(np.full(D, 0.5))), 0, 3, 1, 2)
        x = g.op("Add", x, y)
    head(g, x, D)
    return g.case(0, 2, 2)


@case("pooled-norm")
def pooled_norm():
    """A LayerNorm behind a global pool, channels in front and last: the head of ConvNeXt in torchvision."""
    g = Graph(17)
    x = gelu(g, conv(g, g.input("image", [3, 16, 16]), 3, D, 4, 4))
    x = g.op("Mul", g.op("Add", x, conv(g, x, D, D, 1)), g.const(g.rng.uniform(0.2, 4, (D, 1, 1))))
    x = g.op("GlobalAveragePool", x)
    x = layer_norm(g, g.transpose(x, 0, 2, 3, 1))
    x = g.op("Flatten", g.transpose(x, 0, 3, 1, 2))
    g.output(g.op("Add", g.op("MatMul", x, g.weight(D, 10)), g.const(np.zeros(10))), [10])
    return g.case(0, 1, 1)


@case("shape-of-norm")
def shape_of_norm():
    """The batch size is read from what layers read: a probe is repeated as often, as attention pooling does."""
    g = Graph(17)
    x = g.input("x", [N, D])
    y = layer_norm(g, g.op("Mul", x, g.const(np.geomspace(0.1, 8, D))))
    batch = g.op("Gather", g.op("Shape", y), g.ints(0), axis=0)
    probe = g.op("Expand", g.weight(1, 1, D), g.op("Concat", batch, g.ints(1), g.ints(D), axis=0))
    z = g.op("Concat", linear(g, y, D, D), probe, axis=1)
    z = g.mean(layer_norm(g, z), 1, keep=0)
    g.output(g.op("Add", g.op("MatMul", z, g.weight(D, 10)), g.const(np.zeros(10))), [10])
    return g.case(0, 2, 0)


@case("levit")
def levit():
    """Attention with BatchNorm and HardSwish, biases from a table, fewer queries than keys in the second block."""
    g = Graph(17)
    x = g.input("image", [3, 16, 16])
    x = hard_swish(g, batch_norm(g, conv(g, x, 3, 16, 3, 2, bias=False), 16))
    x = batch_norm(g, conv(g, x, 16, D, 3, 2, bias=False), D)
    x = g.transpose(g.reshape(x, -1, D, 16), 0, 2, 1)
    d = D // H
    for stride in [1, 2]:
        n = 16 // stride**2
        xq = x
        if stride == 2:
            xq = g.op("Slice", g.reshape(x, -1, 4, 4, D), g.ints(0, 0), g.ints(4, 4), g.ints(1, 2), g.ints(2, 2))
            xq = g.reshape(xq, -1, n, D)
        def project(y, rows):
            y = g.op("MatMul", y, g.weight(D, D))
            y = g.reshape(batch_norm(g, g.reshape(y, -1, D), D), -1, rows, H, d)
            return y
        q = g.transpose(project(xq, n), 0, 2, 1, 3)
        k = g.transpose(project(x, 16), 0, 2, 3, 1)
        v = g.transpose(project(x, 16), 0, 2, 1, 3)
        s = g.op("Mul", g.op("MatMul", q, k), g.const(1 / math.sqrt(d)))
        table = g.const(g.rng.standard_normal((H, 16)))
        index = g.const(g.rng.integers(0, 16, (n, 16)), np.int64)
        s = g.op("Add", s, g.op("Gather", table, index, axis=1))
        y = g.reshape(g.transpose(g.op("MatMul", g.op("Softmax", s, axis=-1), v), 0, 2, 1, 3), -1, n, D)
        y = g.op("MatMul", g.op("HardSwish", y) if g.opset >= 14 else y, g.weight(D, D))
        x = g.op("Add", x, y) if stride == 1 else y
    x = g.mean(x, 1, keep=0)
    g.output(g.op("Gemm", x, g.weight(D, 10), g.const(np.zeros(10))), [10])
    return g.case(2, 0, 0)


@case("mobilevit")
def mobilevit():
    """Convolutions with SiLU around a transformer on unfolded patches."""
    g = Graph(17)
    silu = lambda y: gelu(g, y, "silu")
    x = silu(batch_norm(g, conv(g, g.input("image", [3, 16, 16]), 3, D, 3, 2, bias=False), D))
    y = conv(g, silu(conv(g, x, D, D, 3, group=D)), D, D)
    y = g.reshape(y, -1, D, 4, 2, 4, 2)
    y = g.reshape(g.transpose(y, 0, 3, 5, 2, 4, 1), -1, 16, D)
    for _ in range(2):
        z = attention(g, layer_norm(g, y), qkv="packed-split", scale="q-mul", n=16, m=16)
        y = g.op("Add", y, z)
        y = g.op("Add", y, linear(g, silu(linear(g, layer_norm(g, y), D, 2 * D)), 2 * D, D))
    y = layer_norm(g, y)
    y = g.transpose(g.reshape(y, -1, 2, 2, 4, 4, D), 0, 5, 3, 1, 4, 2)
    y = silu(conv(g, g.reshape(y, -1, D, 8, 8), D, D))
    x = silu(conv(g, g.op("Concat", x, y, axis=1), 2 * D, D, 3))
    head(g, x, D)
    return g.case(2, 5, 0)


@case("segformer")
def segformer():
    """Keys and values from a reduced image, a depthwise Conv in the MLP, an upsampled map of classes as the output."""
    g = Graph(17)
    x = conv(g, g.input("image", [3, 16, 16]), 3, D, 5, 2)
    n = 64
    x = layer_norm(g, g.transpose(g.reshape(x, -1, D, n), 0, 2, 1))
    for _ in range(2):
        y = layer_norm(g, x)
        r = conv(g, g.reshape(g.transpose(y, 0, 2, 1), -1, D, 8, 8), D, D, 2, 2)
        r = layer_norm(g, g.transpose(g.reshape(r, -1, D, 25), 0, 2, 1))
        x = g.op("Add", x, attention(g, y, context=r, n=n, m=25, scale="after-div"))
        y = linear(g, layer_norm(g, x), D, 2 * D)
        y = conv(g, g.reshape(g.transpose(y, 0, 2, 1), -1, 2 * D, 8, 8), 2 * D, 2 * D, 3, group=2 * D)
        y = gelu(g, g.transpose(g.reshape(y, -1, 2 * D, n), 0, 2, 1))
        x = g.op("Add", x, linear(g, y, 2 * D, D))
    x = g.reshape(g.transpose(layer_norm(g, x), 0, 2, 1), -1, D, 8, 8)
    x = conv(g, x, D, 5)
    x = g.op("Resize", x, "", g.const([1, 1, 2, 2]), mode="linear", coordinate_transformation_mode="half_pixel")
    g.output(x, [5, 16, 16])
    return g.case(2, 8, 2)


# ---- what a file can hold --------------------------------------------------------------------------------------------------


CASES["norm-plain"] = lambda: encoder(norm="pow-plain")
CASES["norm-untrained"] = lambda: encoder(opset=14, norm="pow-untrained")
CASES["norm-untrained-gamma-first"] = lambda: encoder(opset=14, norm="gamma-first-untrained")
CASES["norm-rms"] = lambda: encoder(norm="rms")
CASES["keep-opset-17"] = lambda: encoder(flags=["--keep-opset"], gelus=0)


def normal(g, x):
    return g.op("Div", x, g.op("Max", g.op("ReduceL2", x, axes=[-1], keepdims=1), g.const(1e-6)))


@case("cosine-attention")
def cosine():
    """Swin of version 2: queries and keys of length one, a scale a head, LayerNorm behind each branch."""
    g = Graph(17)
    x = g.input("x", [N, D])
    for _ in range(2):
        q, k, v = projected(g, x)
        s = g.op("MatMul", normal(g, q), g.transpose(normal(g, k), 0, 1, 3, 2))
        s = g.op("Mul", s, g.const(5 + 5 * g.rng.random((H, 1, 1))))
        w = g.op("Softmax", mask(g, s, "bias"), axis=-1)
        y = joined(g, g.op("MatMul", w, v))
        x = g.op("Add", x, layer_norm(g, linear(g, y, D, D)))
        x = g.op("Add", x, layer_norm(g, linear(g, gelu(g, linear(g, x, D, 2 * D)), 2 * D, D)))
    g.output(x, [N, D])
    return g.case(2, 4, 2)


@case("swin-v2")
def swin_v2(times=1):
    """Windows whose bias a small network makes of their places, cosine attention with a learned temperature; the mask of
    the windows is added so many times."""
    g = Graph(17)
    x = g.input("x", [4 * N, D])
    for shift in [0, 1]:
        y = g.reshape(x, -1, N, D)
        q, k, v = projected(g, y)
        s = g.op("MatMul", normal(g, q), g.transpose(normal(g, k), 0, 1, 3, 2))
        t = g.op("Clip", g.const(1.6 + g.rng.random((H, 1, 1))), "", g.const(4.6052))
        s = g.op("Mul", s, g.op("Exp", t))
        far = np.sign(np.arange(2 * N - 1) - N + 1) * np.log2(1 + np.abs(np.arange(2 * N - 1) - N + 1))
        table = g.op("MatMul", g.const(far[:, None]), g.weight(1, 64))
        table = g.op("MatMul", g.op("Relu", g.op("Add", table, g.weight(64, scale=0.5))), g.weight(64, H))
        place = np.arange(N)[:, None] - np.arange(N)[None] + N - 1
        bias = g.op("Gather", table, g.const(place.reshape(-1), np.int64), axis=0)
        bias = g.transpose(g.reshape(bias, N, N, H), 2, 0, 1)
        s = g.op("Add", s, g.unsqueeze(g.op("Mul", g.op("Sigmoid", bias), g.const(16.0)), 0))
        if shift:
            m = np.where(g.rng.random((4, N, N)) + np.eye(N) < 0.5, -100, 0)
            s, m = g.reshape(s, -1, 4, H, N, N), g.const(m[None, :, None])
            for _ in range(times):
                s = g.op("Add", s, m)
            s = g.reshape(s, -1, H, N, N)
        y = g.op("MatMul", g.op("Softmax", s, axis=-1), v)
        y = g.reshape(g.transpose(y, 0, 2, 1, 3), -1, 4 * N, D)
        x = g.op("Add", x, layer_norm(g, linear(g, y, D, D)))
        x = g.op("Add", x, layer_norm(g, linear(g, gelu(g, linear(g, x, D, 2 * D)), 2 * D, D)))
    g.output(x, [4 * N, D])
    return g.case(2, 4, 2)


# As transformers has it.
CASES["swin-v2-mask-twice"] = lambda: swin_v2(times=2)


def bucket(g, far, like):
    """The bucket of a distance: itself up to 4, then by its logarithm, as T5 has it. Of 0 that is minus infinity."""
    f = g.op("Log", g.op("Div", g.op("Cast", far, to=TensorProto.FLOAT), g.const(4.0)))
    f = g.op("Mul", g.op("Div", f, g.const(math.log(32.0))), g.const(4.0))
    b = g.op("Add", g.op("Cast", f, to=like), g.const(4, np.int64))
    return g.op("Where", g.op("Less", far, g.const(4, np.int64)), far, g.op("Min", b, g.const(7, np.int64)))


@case("buckets")
def buckets():
    """Relative positions: of tokens, known beforehand; of boxes, fed; and the row's largest score taken off (CogView)."""
    g = Graph(17)
    x = g.input("x", [N, D])
    boxes = g.input("boxes", [N], lambda r, sh: r.integers(0, 100, sh), np.int64)
    steps = g.op("Range", g.const(0, np.int64), g.const(N, np.int64), g.const(1, np.int64))
    away = lambda p: g.op("Abs", g.op("Sub", g.unsqueeze(p, -1), g.unsqueeze(p, -2)))
    bias = g.op("Gather", g.weight(8, H, scale=1), bucket(g, away(steps), TensorProto.INT64), axis=0)
    bias = g.unsqueeze(g.transpose(bias, 2, 0, 1), 0)
    other = g.op("Gather", g.weight(8, H, scale=1), bucket(g, away(boxes), TensorProto.INT64), axis=0)
    bias = g.op("Add", bias, g.transpose(other, 0, 3, 1, 2))
    for _ in range(2):
        y = layer_norm(g, x)
        q, k, v = projected(g, y)
        s = g.op("Add", g.op("MatMul", g.op("Mul", q, g.const(0.35)), g.transpose(k, 0, 1, 3, 2)), bias)
        alpha = g.const(32.0)
        s = g.op("Div", s, alpha)
        s = g.op("Sub", s, g.unsqueeze(g.op("ReduceMax", s, axes=[-1], keepdims=0), -1))
        w = g.op("Softmax", g.op("Mul", s, alpha), axis=-1)
        y = joined(g, g.op("MatMul", w, v))
        x = g.op("Add", x, linear(g, y, D, D))
        x = g.op("Add", x, linear(g, gelu(g, linear(g, layer_norm(g, x), D, 2 * D)), 2 * D, D))
    g.output(layer_norm(g, x), [N, D])
    return g.case(2, 5, 2)


@case("temperature")
def temperature():
    """Single numbers computed when the model runs: a scale by Pow from a size, and the exponential of a weight."""
    g = Graph(17)
    x = g.input("x", [N, D])
    y = layer_norm(g, x)
    q, k, v = projected(g, y)
    size = g.op("Cast", g.op("Gather", g.op("Shape", q), g.const(3, np.int64), axis=0), to=TensorProto.FLOAT)
    q = g.op("Mul", q, g.op("Pow", size, g.const(-0.5)))
    w = g.op("Softmax", g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2)), axis=-1)
    y = joined(g, g.op("MatMul", w, v))
    x = block(g, g.op("Add", x, linear(g, y, D, D)))
    # Of the batch, so that no constant comes of it.
    n = g.op("Cast", g.op("Gather", g.op("Shape", x), g.const(0, np.int64), axis=0), to=TensorProto.FLOAT)
    x = g.op("Mul", x, g.op("Sqrt", g.op("Div", n, n)))
    g.output(g.op("Mul", x, g.op("Exp", g.const(1.5))), [N, D])
    return g.case(2, 3, 1)


@case("learned-queries")
def learned_queries():
    """Queries that are weights, the same for each sample: their projection is a constant."""
    g = Graph(17, batch=2)
    x = block(g, g.input("x", [N, D]))
    ask = g.op("Expand", g.weight(1, 5, D, scale=1), g.ints(2, 1, 1))
    y = attention(g, layer_norm(g, ask), context=layer_norm(g, x), n=5, m=N)
    g.output(layer_norm(g, block(g, g.op("Add", ask, y), n=5, m=5)), [5, D])
    return g.case(3, 6, 2)


@case("einsum")
def einsum():
    """Projections to heads and both products of attention as Einsum."""
    g = Graph(17)
    x = g.input("x", [N, D])
    d = D // H
    sum_ = lambda text, *x: g.op("Einsum", *x, equation=text)
    for form in range(2):
        y = layer_norm(g, x)
        q, k, v = (sum_("bnd,dhe->bnhe", y, g.weight(D, H, d)) for _ in range(3))
        q, k, v = (g.op("Add", t, g.const(g.rng.standard_normal((H, d)))) for t in (q, k, v))
        s = sum_("bihd,bjhd->bhij", q, k) if form else sum_("bjhd,bihd->bhij", k, q)
        w = g.op("Softmax", g.op("Mul", s, g.const(d ** -0.5)), axis=-1)
        y = sum_("bhij,bjhd->bihd", w, v)
        x = g.op("Add", x, sum_("bihd,hdo->bio", y, g.weight(H, d, D, scale=D ** -0.5)))
        x = g.op("Add", x, linear(g, gelu(g, linear(g, layer_norm(g, x), D, 2 * D)), 2 * D, D))
    g.output(layer_norm(g, x), [N, D])
    return g.case(2, 5, 2)


def over_heads(g, t):
    """A layer over the heads of scores or weights."""
    return g.transpose(linear(g, g.transpose(t, 0, 2, 3, 1), H, H), 0, 3, 1, 2)


@case("talking-heads")
def talking():
    """A product over the heads before and behind the Softmax (CaiT)."""
    g = Graph(17)
    x = g.input("x", [N, D])
    y = layer_norm(g, x)
    q, k, v = projected(g, y)
    s = g.op("MatMul", g.op("Mul", q, g.const(0.35)), g.transpose(k, 0, 1, 3, 2))
    w = over_heads(g, g.op("Softmax", over_heads(g, s), axis=-1))
    y = joined(g, g.op("MatMul", w, v))
    g.output(block(g, g.op("Add", x, linear(g, y, D, D))), [N, D])
    return g.case(2, 3, 1)


@case("class-attention")
def class_attention():
    """Only the class token asks."""
    g = Graph(17)
    x = block(g, g.input("x", [N, D]))
    y = layer_norm(g, x)
    first = g.op("Slice", y, g.ints(0), g.ints(1), g.ints(1))
    y = attention(g, first, context=y, n=1, m=N, scale="q-mul")
    c = g.op("Add", g.op("Slice", x, g.ints(0), g.ints(1), g.ints(1)), y)
    x = g.op("Concat", c, g.op("Slice", x, g.ints(1), g.ints(9223372036854775807), g.ints(1)), axis=1)
    g.output(layer_norm(g, x), [N, D])
    return g.case(2, 4, 1)


@case("swiglu")
def swiglu():
    g = Graph(17)
    x = g.input("x", [N, D])
    for _ in range(2):
        x = g.op("Add", x, attention(g, layer_norm(g, x)))
        a, b = g.op("Split", linear(g, layer_norm(g, x), D, 4 * D), g.ints(2 * D, 2 * D), outs=2, axis=-1)
        x = g.op("Add", x, linear(g, g.op("Mul", gelu(g, a, "silu"), b), 2 * D, D))
    g.output(x, [N, D])
    return g.case(2, 4, 0)


@case("qk-norm")
def qk_norm():
    """LayerNorm over queries and keys, a factor a channel on each branch."""
    g = Graph(17)
    x = g.input("x", [N, D])
    for _ in range(2):
        y = layer_norm(g, x)
        q, k, v = projected(g, y)
        q, k = layer_norm(g, q, size=D // H), layer_norm(g, k, size=D // H)
        s = g.op("MatMul", g.op("Mul", q, g.const(0.35)), g.transpose(k, 0, 1, 3, 2))
        y = g.op("MatMul", g.op("Softmax", s, axis=-1), v)
        y = linear(g, joined(g, y), D, D)
        x = g.op("Add", x, g.op("Mul", y, g.const(g.rng.random(D))))
    g.output(x, [N, D])
    return g.case(2, 6, 0)


@case("rotary")
def rotary():
    """Positions turn queries and keys."""
    g = Graph(17)
    x = g.input("x", [N, D])
    d = D // H
    angle = np.arange(N)[:, None] / 10 ** (np.arange(d // 2) / 2)
    cos, sin = (g.const(np.concatenate([f(angle)] * 2, -1)[None, None]) for f in (np.cos, np.sin))
    def turn(y):
        a, b = g.op("Split", y, g.ints(d // 2, d // 2), outs=2, axis=-1)
        return g.op("Add", g.op("Mul", y, cos), g.op("Mul", g.op("Concat", g.op("Neg", b), a, axis=-1), sin))
    for _ in range(2):
        y = layer_norm(g, x)
        q, k, v = (g.transpose(g.reshape(linear(g, y, D, D), -1, N, H, d), 0, 2, 1, 3) for _ in range(3))
        s = g.op("Div", g.op("MatMul", turn(q), g.transpose(turn(k), 0, 1, 3, 2)), g.const(math.sqrt(d)))
        y = g.op("MatMul", g.op("Softmax", s, axis=-1), v)
        x = g.op("Add", x, linear(g, joined(g, y), D, D))
    g.output(x, [N, D])
    return g.case(2, 2, 0)


@case("dynamic-length")
def dynamic_length():
    """Neither batch nor number of tokens is known; causal, and padding that the caller gives."""
    g = Graph(17)
    x = g.input("x", [N, D])
    keep = g.input("keep", [N], lambda r, s: np.arange(s[1])[None] < r.integers(4, s[1] + 1, (s[0], 1)), bool)
    for v in g.inputs:
        v.type.tensor_type.shape.dim[1].dim_param = "tokens"
    for _ in range(2):
        y = layer_norm(g, x)
        q, k, v = (g.transpose(g.reshape(linear(g, y, D, D), 0, 0, H, D // H), 0, 2, 1, 3) for _ in range(3))
        s = g.op("MatMul", g.op("Mul", q, g.const(0.35)), g.transpose(k, 0, 1, 3, 2))
        n = g.op("Gather", g.op("Shape", x), g.const(1, np.int64))
        r = g.op("Range", g.const(0, np.int64), n, g.const(1, np.int64))
        tril = g.op("LessOrEqual", g.unsqueeze(r, 0), g.unsqueeze(r, 1))
        s = g.op("Where", g.op("And", tril, g.unsqueeze(keep, 1, 2)), s, g.const(-3.4e38))
        y = g.op("MatMul", g.op("Softmax", s, axis=-1), v)
        x = g.op("Add", x, linear(g, g.reshape(g.transpose(y, 0, 2, 1, 3), 0, 0, D), D, D))
        x = g.op("Add", x, linear(g, gelu(g, linear(g, layer_norm(g, x), D, 2 * D)), 2 * D, D))
    g.output(x, [N, D])
    g.outputs[0].type.tensor_type.shape.dim[1].dim_param = "tokens"
    return g.case(2, 4, 2)


@case("windows")
def windows():
    """Shifted windows that do not fit: LayerNorm, Pad, roll, windows; the batch is free, the mask lies between them."""
    g = Graph(17)
    x = g.input("x", [30, D])
    n, w, d = 9, 3, D // H
    for shift in [0, 1]:
        y = g.reshape(layer_norm(g, x), -1, 5, 6, D)
        y = g.op("Pad", y, g.ints(0, 0, 0, 0, 0, 1, 0, 0))
        if shift:
            for axis in (1, 2):
                a = g.op("Slice", y, g.ints(1), g.ints(9223372036854775807), g.ints(axis))
                y = g.op("Concat", a, g.op("Slice", y, g.ints(0), g.ints(1), g.ints(axis)), axis=axis)
        y = g.transpose(g.reshape(y, -1, 2, w, 2, w, D), 0, 1, 3, 2, 4, 5)
        y = g.reshape(y, -1, n, D)
        qkv = g.transpose(g.reshape(linear(g, y, D, 3 * D), -1, n, 3, H, d), 2, 0, 3, 1, 4)
        q, k, v = (g.op("Gather", qkv, g.const(i, np.int64), axis=0) for i in range(3))
        s = g.op("MatMul", g.op("Mul", q, g.const(0.35)), g.transpose(k, 0, 1, 3, 2))
        s = mask(g, s, "bias", n, n)
        if shift:
            m = np.where(g.rng.random((4, n, n)) + np.eye(n) < 0.5, -100, 0)
            s = g.op("Add", g.reshape(s, -1, 4, H, n, n), g.const(m[None, :, None]))
            s = g.reshape(s, -1, H, n, n)
        y = g.op("MatMul", g.op("Softmax", s, axis=-1), v)
        y = linear(g, g.reshape(g.transpose(y, 0, 2, 1, 3), -1, n, D), D, D)
        y = g.reshape(g.transpose(g.reshape(y, -1, 2, 2, w, w, D), 0, 1, 3, 2, 4, 5), -1, 6, 6, D)
        if shift:
            for axis in (1, 2):
                a = g.op("Slice", y, g.ints(5), g.ints(9223372036854775807), g.ints(axis))
                y = g.op("Concat", a, g.op("Slice", y, g.ints(0), g.ints(5), g.ints(axis)), axis=axis)
        y = g.op("Slice", y, g.ints(0), g.ints(5), g.ints(1))
        x = g.op("Add", x, g.reshape(y, -1, 30, D))
        x = g.op("Add", x, linear(g, gelu(g, linear(g, layer_norm(g, x), D, 2 * D)), 2 * D, D))
    g.output(layer_norm(g, x), [30, D])
    return g.case(2, 5, 2)


@case("moves")
def moves():
    """The residual stream through everything that moves elements."""
    g = Graph(17)
    x = block(g, g.op("Mul", g.input("x", [N, D]), g.const(np.exp(g.rng.standard_normal(D)))))
    a, b = g.op("Split", x, g.ints(5, 7), outs=2, axis=1)
    x = g.op("Concat", b, a, axis=1)
    x = g.op("Gather", x, g.ints(*np.random.default_rng(3).permutation(N)), axis=1)
    x = g.squeeze(g.op("Expand", g.unsqueeze(x, 1), g.ints(1, 1, 1, 1)), 1)
    x = g.transpose(g.op("Pad", g.transpose(x, 0, 2, 1), g.ints(0, 0, 1, 0, 0, 2)), 0, 2, 1)
    x = g.op("Slice", x, g.ints(1), g.ints(N + 1), g.ints(1))
    x = g.op("Tile", x, g.ints(1, 2, 1))
    x = g.op("Slice", x, g.ints(0), g.ints(2 * N), g.ints(1), g.ints(2))
    g.output(block(g, x), [N, D])
    return g.case(2, 4, 2)


@case("foreign-operator")
def foreign():
    g = Graph(17)
    x = g.op("BiasSplitGelu", g.input("x", [N, D]), g.weight(D), domain="com.microsoft")
    g.output(block(g, x), [N, D])
    c = g.case(1, 2, 1)
    c.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return c


@case("already-quantized")
def quantized():
    g = Graph(17)
    x = g.input("x", [N, D])
    s, z = g.const(0.02), g.const(128, np.uint8)
    g.output(block(g, g.op("DequantizeLinear", g.op("QuantizeLinear", x, s, z), s, z)), [N, D])
    return g.case(1, 2, 1)


CASES["opset-10"] = lambda: encoder(opset=10, norm="pow", softmax_axis=3)
CASES["opset-24"] = lambda: encoder(opset=24, act="node")


@case("attention-node-3d")
def attention_node():
    """The Attention operator on three axes with grouped heads, causal, and with an additive mask."""
    g = Graph(23)
    x = g.input("x", [N, D])
    for i in range(2):
        y = layer_norm(g, x)
        q, k, v = (linear(g, y, D, w) for w in (D, D // 2, D // 2))
        more = [g.const(g.rng.standard_normal((N, N)))] if i else []
        y = g.op("Attention", q, k, v, *more, q_num_heads=4, kv_num_heads=2, is_causal=1)
        x = g.op("Add", x, linear(g, y, D, D))
    g.output(x, [N, D])
    return g.case(2, 2, 0)


@case("attention-node-4d-multi-query")
def attention_multi():
    g = Graph(23)
    x = g.input("x", [N, D])
    keep = g.input("keep", [1, N, N], lambda r, s: r.random(s) < 0.7, bool)
    y = layer_norm(g, x)
    q = g.transpose(g.reshape(linear(g, y, D, D), -1, N, H, 8), 0, 2, 1, 3)
    k, v = (g.transpose(g.reshape(linear(g, y, D, 8), -1, N, 1, 8), 0, 2, 1, 3) for _ in range(2))
    y = g.op("Attention", q, k, v, keep, scale=0.3)
    y = joined(g, y)
    g.output(g.op("Add", x, linear(g, y, D, D)), [N, D])
    return g.case(1, 1, 0)


@case("attention-node-softcap")
def attention_softcap():
    g = Graph(23)
    x = g.input("x", [N, D])
    q, k, v = (linear(g, layer_norm(g, x), D, D) for _ in range(3))
    y = g.op("Attention", q, k, v, q_num_heads=4, kv_num_heads=4, softcap=10.0)
    y = g.op("Add", x, linear(g, y, D, D))
    g.output(block(g, y), [N, D])
    return g.case(2, 5, 1)


@case("initializers-as-inputs")
def with_inputs():
    c = encoder()
    for t in c.model.graph.initializer:
        c.model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    c.model.ir_version = 3
    return c


@case("functions")
def functions():
    """GELU and LayerNorm as functions of the model's own."""
    g = Graph(18)
    x = g.input("x", [N, D])
    for _ in range(2):
        x = g.op("Add", x, attention(g, layer_norm(g, x)))
        y = g.op("MyGelu", linear(g, layer_norm(g, x), D, 4 * D), domain="local")
        x = g.op("Add", x, linear(g, y, 4 * D, D))
    g.output(layer_norm(g, x), [N, D])
    body = [helper.make_node("Constant", [], ["root"], value_float=math.sqrt(2)),
            helper.make_node("Constant", [], ["one"], value_float=1.0),
            helper.make_node("Constant", [], ["half"], value_float=0.5),
            helper.make_node("Div", ["v", "root"], ["d"]),
            helper.make_node("Erf", ["d"], ["e"]), helper.make_node("Add", ["e", "one"], ["a"]),
            helper.make_node("Mul", ["v", "a"], ["m"]), helper.make_node("Mul", ["m", "half"], ["w"])]
    f = helper.make_function("local", "MyGelu", ["v"], ["w"], body, [helper.make_opsetid("", 18)])
    c = g.case(2, 5, 2)
    c.model.functions.append(f)
    c.model.opset_import.append(helper.make_opsetid("local", 1))
    return c


@case("if")
def if_body():
    """A branch whose bodies read the graph around them."""
    g = Graph(18)
    x = g.input("x", [N, D])
    x = block(g, x)
    s = g.op("ReduceSum", x, keepdims=0)
    cond = g.op("Greater", s, g.const(0.0))
    out = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, None)
    then = helper.make_graph([helper.make_node("Neg", [x], ["t"])], "then", [], [out("t")])
    other = helper.make_graph([helper.make_node("Add", [x, x], ["e"])], "else", [], [out("e")])
    y = g.op("If", cond, then_branch=then, else_branch=other)
    g.output(block(g, y), [N, D])
    # The operator set is raised to 20 for the GELUs, and the branches with it.
    return g.case(2, 4, 2)


@case("if-converted")
def if_converted():
    """Branches whose operators are written in another way in a newer operator set."""
    g = Graph(11)
    x = block(g, g.input("x", [N, D]), norm="div")
    total = g.op("ReduceSum", x, keepdims=0)
    out = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, None)
    sum_axis = lambda y: helper.make_node("ReduceSum", [x], [y], axes=[1], keepdims=1)
    then = helper.make_graph([sum_axis("t"), helper.make_node("Add", [x, "t"], ["t2"])], "then", [], [out("t2")])
    # Softmax over tokens and features together, until opset 12.
    soft = helper.make_node("Softmax", [x], ["s"], axis=1)
    other = helper.make_graph([soft, sum_axis("e"), helper.make_node("Add", ["s", "e"], ["e2"])], "else", [], [out("e2")])
    y = g.op("If", g.op("Greater", total, g.const(0.0)), then_branch=then, else_branch=other)
    g.output(block(g, y, norm="div"), [N, D])
    return g.case(2, 4, 2)


@case("if-not-converted")
def if_not_converted():
    """A branch that no newer operator set can say: the model keeps its own."""
    g = Graph(17)
    x = block(g, g.input("x", [N, D]))
    out = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, None)
    pool = helper.make_node("AveragePool", [x], ["t"], kernel_shape=[3], pads=[1, 1], ceil_mode=1)
    then = helper.make_graph([pool], "then", [], [out("t")])
    other = helper.make_graph([helper.make_node("Neg", [x], ["e"])], "else", [], [out("e")])
    total = g.op("ReduceSum", x, keepdims=0)
    y = g.op("If", g.op("Greater", total, g.const(0.0)), then_branch=then, else_branch=other)
    g.output(block(g, y), [N, D])
    return g.case(2, 4, 0)


@case("if-constant")
def if_constant():
    """As TorchScript writes a squeeze: a branch that the shape decides, with a whole block in it."""
    g = Graph(18)
    x = g.unsqueeze(g.input("x", [N, D]), 1)
    size = g.op("Gather", g.op("Shape", x), g.ints(1), axis=0)
    cond = g.op("Squeeze", g.op("Equal", size, g.ints(1)))
    inner = Graph(18, seed=7)
    inner.inits = [numpy_helper.from_array(np.asarray([1], np.int64), "axis")]
    y = block(inner, inner.op("Squeeze", x, "axis"))
    out = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, None)
    then = helper.make_graph(inner.nodes, "then", [], [out(y)], inner.inits)
    other = helper.make_graph([helper.make_node("Identity", [x], ["same"])], "else", [], [out("same")])
    for n in inner.nodes:
        n.name = "inner_" + n.name
    prefix(then, {x})
    g.output(block(g, g.op("If", cond, then_branch=then, else_branch=other)), [N, D])
    return g.case(2, 4, 2)


@case("if-constant-read-inside")
def if_captured():
    """As tf2onnx writes the shifts of Swin: a branch that is decided reads what another one makes, in an If of its own."""
    g = Graph(18)
    x = g.input("x", [N, D])
    out = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, None)
    def decided(inner, y):
        """The branch that ends in `y`, of an If that the number of tokens decides."""
        then = helper.make_graph(inner.nodes, "then", [], [out(y)], inner.inits)
        other = helper.make_graph([helper.make_node("Identity", [x], [y + "_same"])], "else", [], [out(y + "_same")])
        size = g.op("Gather", g.op("Shape", x), g.ints(1), axis=0)
        cond = g.op("Squeeze", g.op("Equal", size, g.ints(N)))
        for n in inner.nodes:
            n.name = y + n.name
        prefix(then, outer)
        return g.op("If", cond, then_branch=then, else_branch=other)
    outer = {x}
    inner = Graph(18, seed=7)
    y = decided(inner, block(inner, x))
    outer.add(y)
    deep = Graph(18, seed=8)
    cond = deep.op("Greater", deep.op("ReduceSum", y, keepdims=0), deep.const(0.0))
    then = helper.make_graph([helper.make_node("Add", [y, x], ["sum"])], "then", [], [out("sum")])
    other = helper.make_graph([helper.make_node("Sub", [y, x], ["rest"])], "else", [], [out("rest")])
    z = decided(deep, deep.op("If", cond, then_branch=then, else_branch=other))
    g.output(block(g, z), [N, D])
    return g.case(2, 4, 2)


def prefix(graph, outer):
    """Gives a body names of its own."""
    own = lambda n: n if n in outer or not n else "inner_" + n
    for n in graph.node:
        n.input[:], n.output[:] = map(own, n.input), map(own, n.output)
        for a in n.attribute:
            if a.HasField("g"):
                prefix(a.g, outer)
    for v in [*graph.initializer, *graph.output]:
        v.name = own(v.name)


@case("several-outputs")
def several():
    g = Graph(17)
    a, b = g.input("a", [N, D]), g.input("b", [N, D])
    x = block(g, g.op("Add", a, b))
    g.output(x, [N, D])
    y = block(g, x)
    g.output(y, [N, D])
    g.output(g.op("Concat", x, y, axis=1), [2 * N, D])
    return g.case(2, 4, 2)


def narrow(c, kind):
    """The weights, and the arithmetic, in a narrow float type; inputs and outputs stay float32."""
    from onnx import numpy_helper as nh
    import ml_dtypes
    np_type = np.float16 if kind == TensorProto.FLOAT16 else ml_dtypes.bfloat16
    g = c.model.graph
    for i, t in enumerate(g.initializer):
        a = nh.to_array(t)
        if a.dtype == np.float32:
            g.initializer[i].CopyFrom(nh.from_array(a.astype(np_type), t.name))
    nodes = list(g.node)
    del g.node[:]
    rename = {}
    for v in g.input:
        if v.type.tensor_type.elem_type == TensorProto.FLOAT:
            g.node.append(helper.make_node("Cast", [v.name], [v.name + "_n"], to=kind))
            rename[v.name] = v.name + "_n"
    for n in nodes:
        for i, x in enumerate(n.input):
            n.input[i] = rename.get(x, x)
        if n.op_type == "Identity" and n.output[0].startswith("out"):
            n.CopyFrom(helper.make_node("Cast", list(n.input), list(n.output), to=TensorProto.FLOAT))
        g.node.append(n)
    return c


CASES["float16"] = lambda: narrow(encoder(), TensorProto.FLOAT16)


@case("float16-declared")
def declared_narrow():
    """As dynamo writes it: the types of weights are declared once more, with remarks."""
    c = narrow(encoder(lin="gemm"), TensorProto.FLOAT16)
    for t in c.model.graph.initializer:
        v = c.model.graph.value_info.add()
        v.CopyFrom(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
        v.doc_string = "a weight"
    return c


@case("bfloat16")
def bfloat16():
    import ml_dtypes
    c, r = narrow(encoder(), TensorProto.BFLOAT16), encoder().model
    for t in r.graph.initializer:
        a = numpy_helper.to_array(t)
        if a.dtype == np.float32:
            t.CopyFrom(numpy_helper.from_array(a.astype(ml_dtypes.bfloat16).astype(np.float32), t.name))
    c.reference = r
    return c


@case("float16-weights")
def stored_narrow():
    """Weights stored in half precision, arithmetic in float32."""
    c = encoder()
    g = c.model.graph
    for t in list(g.initializer):
        a = numpy_helper.to_array(t)
        if a.dtype == np.float32 and a.ndim == 2:
            t.CopyFrom(numpy_helper.from_array(a.astype(np.float16), t.name + "_half"))
            g.node.insert(0, helper.make_node("Cast", [t.name], [t.name[:-5]], to=TensorProto.FLOAT))
    return c


def sparse(make=lambda i: i, dims=lambda d: d):
    """Weights as lists of elements that are not zero: one by place, the next by row and column."""
    c = encoder()
    g = c.model.graph
    for by_axis, t in enumerate([t for t in g.initializer if len(t.dims) == 2][:2]):
        a = numpy_helper.to_array(t).copy()
        a[np.abs(a) < 0.1] = 0
        where = np.argwhere(a) if by_axis else np.flatnonzero(a)
        values = numpy_helper.from_array(a[a != 0], t.name)
        where = numpy_helper.from_array(make(where.astype(np.int64)), t.name + "_where")
        g.initializer.remove(t)
        g.sparse_initializer.append(helper.make_sparse_tensor(values, where, dims(a.shape)))
    return c


CASES["sparse-initializers"] = sparse
# Refused: an element named twice, sizes that ask for any amount of memory.
CASES["sparse-twice"] = lambda: sparse(lambda i: np.where(i == i[1], i[0], i))
CASES["sparse-hostile"] = lambda: sparse(dims=lambda d: [1 << 40, *d])
