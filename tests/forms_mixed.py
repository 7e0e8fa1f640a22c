"""Attention whose scores are more than one product, or whose weights something changes before they meet the values. Adds to
forms.py."""

import numpy as np

from forms import D, H, N, Graph, case, layer_norm, linear, over_heads
from forms_other import FLOAT, SCALE, W, merged, network, padding, plain, qkv
from forms_scores import HIDES, attention, causal, product, seen


def weights(change, **more):
    """`change(g, weights, scores)` makes what the values are multiplied with."""
    return network(17, lambda g, y: plain(g, y, weights=change), **more)


@case("mixed-masked")
def masked():
    """Talking heads; what is hidden is hidden behind the first mix, and has the weight 0 for the second."""
    between = lambda g, s: g.op("Where", g.const(causal(), bool), over_heads(g, s), g.const(HIDES))

    def attend(g, y):
        q, k, v = qkv(g, y)
        w = over_heads(g, g.op("Softmax", between(g, product(g, q, k)), axis=-1))
        return linear(g, merged(g, g.op("MatMul", w, v)), D, D)
    return network(17, attend)


@case("mixed-normalised")
def reattention():
    """Re-attention of DeepViT: heads are mixed by a matrix and normalised."""
    def change(g, w, s):
        w = g.op("MatMul", g.transpose(w, 0, 2, 3, 1), g.weight(H, H))
        return g.transpose(layer_norm(g, w, size=H), 0, 3, 1, 2)
    # The norms over heads count too.
    return weights(change, count=(2, 7, 2))


@case("mixed-by-convolution")
def refined():
    """Of Refiner and EfficientFormer of version 2: heads are mixed by a convolution over the matrix of weights."""
    def change(g, w, s):
        return g.op("Conv", w, g.weight(H, H, 3, 3, scale=0.3), g.const(np.zeros(H)), pads=[1] * 4)
    return weights(change)


@case("mixed-gates")
def gates():
    """Weights times a gate for each head that the model computes."""
    def attend(g, y):
        gate = g.op("Sigmoid", g.mean(linear(g, y, D, H), 1, keep=1))
        gate = g.unsqueeze(g.transpose(gate, 0, 2, 1), 3)
        return plain(g, y, weights=lambda g, w, s: g.op("Mul", w, gate))
    return network(17, attend)


@case("mixed-sink")
def sink():
    """A learned score that takes weight from all keys, and is cut off behind the Softmax."""
    def attend(g, y):
        q, k, v = qkv(g, y)
        s = g.op("Mul", product(g, q, k), g.const(SCALE))
        shape = g.op("Concat", g.op("Slice", g.op("Shape", y), g.ints(0), g.ints(1)), g.ints(H, N, 1), axis=0)
        s = g.op("Concat", s, g.op("Expand", g.const(g.rng.standard_normal((1, H, 1, 1))), shape), axis=-1)
        w = g.op("Slice", g.op("Softmax", s, axis=-1), g.ints(0), g.ints(N), g.ints(3))
        return linear(g, merged(g, g.op("MatMul", w, v)), D, D)
    return network(17, attend)


@case("mixed-temperatures")
def temperatures():
    """Two Softmaxes of one product."""
    def change(g, w, s):
        sharp = g.op("Softmax", g.op("Mul", s, g.const(3.0)), axis=-1)
        return g.op("Add", g.op("Mul", w, g.const(0.6)), g.op("Mul", sharp, g.const(0.4)))
    return weights(change, count=(4, 5, 2))


@case("mixed-difference")
def difference():
    """Differential attention: the weights of one pair of queries and keys less those of another."""
    def attend(g, y):
        def soft():
            q, k, _ = qkv(g, y)
            return g.op("Softmax", g.op("Mul", product(g, q, k), g.const(SCALE)), axis=-1)
        w = g.op("Sub", soft(), g.op("Mul", soft(), g.const(0.4)))
        return linear(g, merged(g, g.op("MatMul", w, qkv(g, y)[2])), D, D)
    return network(17, attend, count=(4, 5, 2))


@case("mixed-distances")
def distances():
    """Scores are squared distances, near is large."""
    def attend(g, y):
        q, k, v = qkv(g, y)
        long = lambda t: g.op("ReduceSum", g.op("Mul", t, t), g.ints(-1), keepdims=1)
        d = g.op("Sub", g.op("Add", long(q), g.transpose(long(k), 0, 1, 3, 2)), g.op("Mul", product(g, q, k), g.const(2.0)))
        w = g.op("Softmax", g.op("Mul", d, g.const(-0.5 * SCALE)), axis=-1)
        return linear(g, merged(g, g.op("MatMul", w, v)), D, D)
    return network(17, attend)


@case("mixed-mask-first")
def mask_first():
    """The sum names the mask before the scores, and the scores are capped."""
    def between(g, s):
        s = g.op("Mul", g.op("Tanh", g.op("Mul", s, g.const(SCALE / 3))), g.const(3.0))
        mask = g.op("Mul", g.op("Cast", g.op("Not", seen(g)), to=FLOAT), g.const(-1e9))
        return g.op("Add", mask, s)
    return attention(between, padding)


@case("mixed-both-ways")
def both_ways():
    """As Grounding DINO: one product weighs tokens for tokens, and turned, the other way."""
    def attend(g, y):
        q, k, v = qkv(g, y)
        s = g.op("Mul", product(g, q, k), g.const(SCALE))
        one = g.op("MatMul", g.op("Softmax", s, axis=-1), v)
        other = g.op("MatMul", g.op("Softmax", g.transpose(s, 0, 1, 3, 2), axis=-1), q)
        return linear(g, merged(g, g.op("Add", one, other)), D, D)
    return network(17, attend, count=(4, 5, 2))


@case("mixed-separable")
def separable():
    """As MobileViT of version 2: one row of weights, times the keys, summed; the sum is a factor of the values."""
    g = Graph(17)
    x = g.input("x", [N, D])
    for _ in range(2):
        y = layer_norm(g, x)
        w = g.op("Softmax", g.transpose(linear(g, y, D, 1), 0, 2, 1), axis=-1)
        k, v = (g.transpose(linear(g, y, D, D), 0, 2, 1) for _ in range(2))
        context = g.op("ReduceSum", g.op("Mul", k, w), g.ints(-1), keepdims=1)
        y = g.op("Mul", g.op("Relu", v), g.op("Expand", context, g.op("Shape", v)))
        x = g.op("Add", x, linear(g, g.transpose(y, 0, 2, 1), D, D))
    g.output(layer_norm(g, x), [N, D])
    return g.case(2, 3, 0)


@case("no-attention")
def classes():
    """A Softmax of classes is none, however often it is multiplied with weights."""
    g = Graph(17)
    x = g.input("x", [N, D])
    y = g.op("Softmax", linear(g, layer_norm(g, x), D, 2 * D), axis=-1)
    g.output(linear(g, y, 2 * D, D), [N, D])
    return g.case(0, 1, 0)
