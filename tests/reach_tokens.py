"""A token far larger than the others. Kinds for reach_cross.py."""

import numpy as np

from forms import D, N, Graph, block, layer_norm, linear
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
