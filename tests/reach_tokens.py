"""A token far larger than the others. Kinds for reach_cross.py."""

import numpy as np

from forms import D, N, Graph, attention, block, gelu, layer_norm, linear
from reach import KINDS, of

# How many times larger than the others one channel of the first token is.
MASSIVE = 60


def massive(norm, through):
    """It comes in through the input, which is the residual stream, or out of a layer that reads the input."""
    g = Graph(17)
    large = np.zeros((N, D))
    large[0, 5] = MASSIVE
    x = g.input("x", [N, D], lambda r, s: r.standard_normal(s) + (large if through == "input" else 0))
    if through == "layer":
        x = g.op("Add", linear(g, x, D, D), g.const(large[None]))
    for _ in range(2):
        x = block(g, x, norm=norm)
    g.output(layer_norm(g, x), [N, D])
    return g.case(2, 5, 2)


for norm in ("node", "rms"):
    for through in ("input", "layer"):
        for target in ("qdq", "integer"):
            KINDS[f"massive-token-{norm}-{through}-{target}"] = lambda n=norm, t=through, to=target: of(
                massive(n, t), attentions=2, least=24, flags=("--target", to))
for recipe, least in [("fq-vit-r16", 25), ("w4a8", 19), ("linear-w8a8", 30)]:
    KINDS[f"massive-token-{recipe}"] = lambda r=recipe, db=least: of(
        massive("rms", "input"), attentions=2, least=db, flags=("--recipe", r, "--min-sqnr=-100"))


def faint_class(times):
    """A class token so faint beside the patches that 16 bits do not hold both: what class attention reads of a model whose
    patches grew and whose class token did not."""
    g = Graph(17)
    x = g.input("x", [N - 1, D], lambda r, s: times * r.standard_normal(s))
    sizes = g.op("Concat", g.op("Slice", g.op("Shape", x), g.ints(0), g.ints(1)), g.ints(1, D), axis=0)
    one = g.op("Expand", g.const(0.5 * np.random.default_rng(4).standard_normal((1, 1, D))), sizes)
    for _ in range(2):
        both = layer_norm(g, g.op("Concat", one, x, axis=1), "node")
        token = g.op("Slice", both, g.ints(0), g.ints(1), g.ints(1))
        one = g.op("Add", one, attention(g, token, context=both, n=1))
        hidden = gelu(g, linear(g, layer_norm(g, one, "node"), D, 4 * D, rows=1))
        one = g.op("Add", one, linear(g, hidden, 4 * D, D, rows=1))
    g.output(layer_norm(g, one, "node"), [1, D])
    return g.case(2, 5, 2)


for times in (3000, 100):
    for target in ("qdq", "integer"):
        KINDS[f"faint-class-{times}-{target}"] = lambda t=times, to=target: of(
            faint_class(t), attentions=2, least=23, flags=("--target", to))
