"""Attention over a table of values, which no input decides. Kinds for reach_cross.py."""

from forms import D, H, N, Graph, gelu, layer_norm, linear, mask
from reach import KINDS, W, of


def table(g, x, form):
    """Values: a constant as it is, repeated for each sample, or what a layer makes of it."""
    sizes = lambda *d: g.op("Concat", g.op("Slice", g.op("Shape", x), g.ints(0), g.ints(1)), g.ints(*d), axis=0)
    heads = lambda v: g.transpose(g.reshape(v, -1, N, H, W), 0, 2, 1, 3)
    whole, rows = g.const(g.rng.standard_normal((1, H, N, W))), g.const(g.rng.standard_normal((1, N, D)))
    if form == "flat":
        return g.const(g.rng.standard_normal((N, W)))
    if form == "expand":
        return g.op("Expand", whole, sizes(H, N, W))
    if form == "tile":
        return g.op("Tile", whole, sizes(1, 1, 1))
    if form == "moved":
        return heads(g.op("Expand", rows, sizes(N, D)))
    if form == "layer":
        return heads(linear(g, g.op("Expand", rows, sizes(N, D)), D, D))
    if form == "computed":
        return g.op("Tanh", g.op("Expand", whole, sizes(H, N, W)))
    return whole


def network(form):
    g = Graph(17)
    x = g.input("x", [N, D])
    for _ in range(2):
        y = layer_norm(g, x)
        q, k = (g.transpose(g.reshape(linear(g, y, D, D), -1, N, H, W), 0, 2, 1, 3) for _ in range(2))
        v = table(g, x, form)
        if form == "keys":
            k, v = (g.op("Expand", g.const(g.rng.standard_normal((1, H, N, W))),
                         g.op("Concat", g.op("Slice", g.op("Shape", x), g.ints(0), g.ints(1)), g.ints(H, N, W), axis=0))
                    for _ in range(2))
        s = g.op("Mul", g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2)), g.const(W**-0.5))
        if form == "masked":
            s = mask(g, s, "causal-where")
        z = g.op("MatMul", g.op("Softmax", s, axis=-1), v)
        x = g.op("Add", x, linear(g, g.reshape(g.transpose(z, 0, 2, 1, 3), -1, N, D), D, D))
        x = g.op("Add", x, linear(g, gelu(g, linear(g, layer_norm(g, x), D, 2 * D)), 2 * D, D))
    g.output(x, [N, D])
    return g.case(2, 4, 2)


def tables(form, **how):
    # No float table is left beside codes of it, or in front of operators that make some.
    return of(network(form), attentions=2, tables=True, **how)


for form in ("whole", "flat", "expand", "tile", "moved", "keys", "masked"):
    for target in ("qdq", "integer"):
        KINDS[f"table-of-values-{form}-{target}"] = lambda f=form, t=target: tables(f, least=22, flags=("--target", t))
for form in ("layer", "computed"):
    KINDS[f"table-of-values-{form}"] = lambda f=form: of(network(f), attentions=2, least=22)
for recipe, least in [("fq-vit-paper", 18), ("fq-vit-r16", 23), ("w4a8", 18), ("minmax-w8a8", 26), ("cpu", 29),
                      ("linear-w8a8", 29)]:
    for target in ("qdq", "integer"):
        KINDS[f"table-of-values-{recipe}-{target}"] = lambda r=recipe, l=least, t=target: of(
            network("expand"), attentions=2, least=l, flags=("--recipe", r, "--target", t, "--min-sqnr=-100"))
