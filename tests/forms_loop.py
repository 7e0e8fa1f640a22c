"""Models that hold a Loop. Adds to the cases of forms.py."""

import numpy as np
from onnx import TensorProto, helper

from forms import D, H, N, Graph, attention, block, case, gelu, layer_norm, linear

info = helper.make_tensor_value_info


class Body(Graph):
    """The body of a Loop. Its weights are the outer graph's: it reads them from there."""

    def __init__(self, outer, **carried):
        super().__init__(outer.opset)
        self.outer, self.inits, self.rng = outer, outer.inits, outer.rng
        self.prefix = f"body{len(outer.nodes)}"
        self.i, self.keep = f"{self.prefix}_i", f"{self.prefix}_keep"
        self.inputs = [info(self.i, TensorProto.INT64, []), info(self.keep, TensorProto.BOOL, [])]
        for name, (kind, dims) in carried.items():
            self.inputs.append(info(f"{self.prefix}_{name}", kind, dims))
            setattr(self, name, f"{self.prefix}_{name}")

    def name(self, hint):
        # The number of initializers tells siblings apart that stand in one outer graph.
        return f"{getattr(self, 'prefix', 'body')}_{hint}_{len(self.nodes) + len(self.inits)}"

    def result(self, value, kind=TensorProto.FLOAT, dims=None):
        name = f"{self.prefix}_out{len(self.outputs)}"
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"node_{name}"))
        self.outputs.append(info(name, kind, dims))

    def run(self, trip, keep, *start, outs=1):
        graph = helper.make_graph(self.nodes, self.prefix, self.inputs, self.outputs)
        return self.outer.op("Loop", trip, keep, *start, body=graph, outs=outs)


TOKENS = (TensorProto.FLOAT, ["batch", N, D])


def always(b):
    b.result(b.keep, TensorProto.BOOL, [])


@case("loop")
def loop():
    """A body whose output has no declared shape."""
    g = Graph(18)
    b = Body(g, s=(TensorProto.FLOAT, None))
    always(b)
    b.result(b.op("Mul", b.s, b.s))
    g.output(b.run(g.const(2, np.int64), g.const(True, bool), block(g, g.input("x", [N, D]))), [N, D])
    return g.case(1, 2, 1)


def refine(g, x, trip, keep=None, times=None):
    """An MLP with a residual sum again and again: weights are read from outside."""
    b = Body(g, s=TOKENS)
    always(b)
    y = gelu(b, linear(b, layer_norm(b, b.s), D, 2 * D))
    b.result(b.op("Add", b.s, linear(b, y, 2 * D, D)), dims=["batch", N, D])
    return b.run(trip, keep or g.const(True, bool), x)


@case("loop-mlp")
def mlp():
    g = Graph(17)
    x = refine(g, block(g, g.input("x", [N, D])), g.const(3, np.int64))
    g.output(block(g, x), [N, D])
    return g.case(2, 4, 2)


@case("loop-without-a-condition")
def unconditional():
    g = Graph(17)
    b = Body(g, s=TOKENS)
    b.result(b.op("Less", b.i, b.const(1, np.int64)), TensorProto.BOOL, [])
    b.result(b.op("Add", b.s, gelu(b, linear(b, b.s, D, D))), dims=["batch", N, D])
    x = b.run(g.const(5, np.int64), "", block(g, g.input("x", [N, D])))
    g.output(block(g, x), [N, D])
    return g.case(2, 4, 2)


@case("loop-while")
def while_large():
    """Goes on for as long as the data say; no trip count."""
    g = Graph(17)
    x = block(g, g.op("Mul", g.input("x", [N, D]), g.const(3.0)))
    large = lambda g, x: g.op("Greater", g.op("ReduceMean", g.op("Abs", x), keepdims=0), g.const(0.5))
    b = Body(g, s=TOKENS)
    y = b.op("Mul", b.op("Tanh", linear(b, b.s, D, D)), b.op("Div", b.const(2.0), b.op("Cast", b.op("Add", b.i, b.const(2, np.int64)), to=1)))
    b.result(large(b, y), TensorProto.BOOL, [])
    b.result(y, dims=["batch", N, D])
    g.output(block(g, b.run("", large(g, x), x)), [N, D])
    return g.case(2, 4, 2)


@case("loop-collects")
def collects():
    """What each iteration makes comes out on a new first axis."""
    g = Graph(17)
    b = Body(g, s=TOKENS)
    always(b)
    y = b.op("Add", b.s, gelu(b, linear(b, b.s, D, D)))
    b.result(y, dims=["batch", N, D])
    b.result(b.op("Tanh", y), dims=["batch", N, D])
    x, all_of_them = b.run(g.const(3, np.int64), g.const(True, bool), block(g, g.input("x", [N, D])), outs=2)
    x = g.op("Add", x, g.op("ReduceMax", all_of_them, axes=[0], keepdims=0))
    g.output(block(g, x), [N, D])
    return g.case(2, 4, 2)


@case("loop-never")
def never():
    """No iteration: the values come out as they went in, and the collection is empty.

    The batch is fixed: onnxruntime has 0 for an open size of a collection of nothing.
    """
    g = Graph(17, batch=1)
    b = Body(g, s=(TensorProto.FLOAT, [1, N, D]))
    always(b)
    b.result(linear(b, b.s, D, D), dims=[1, N, D])
    b.result(b.s, dims=[1, N, D])
    x, none = b.run(g.const(0, np.int64), g.const(True, bool), block(g, g.input("x", [N, D])), outs=2)
    x = g.op("Add", x, g.op("ReduceSum", none, g.ints(0), keepdims=0))
    g.output(block(g, x), [N, D])
    return g.case(2, 4, 2)


@case("loop-block")
def shared_block():
    """A whole transformer block with shared weights, as often as an input says."""
    g = Graph(17)
    x = g.input("x", [N, D])
    b = Body(g, s=TOKENS)
    always(b)
    b.result(block(b, b.s), dims=["batch", N, D])
    trip = g.op("Squeeze", g.op("Div", g.op("Slice", g.op("Shape", x), g.ints(1), g.ints(2)), g.ints(4)), g.ints(0))
    x = b.run(trip, g.const(True, bool), block(g, x))
    g.output(block(g, x), [N, D])
    return g.case(2, 4, 2)


@case("loop-grows")
def grows():
    """A token more in each iteration."""
    g = Graph(17)
    x = block(g, g.input("x", [N, D]))
    b = Body(g, s=(TensorProto.FLOAT, ["batch", "tokens", D]))
    always(b)
    y = b.op("Concat", b.s, b.op("ReduceMean", gelu(b, linear(b, b.s, D, D)), axes=[1], keepdims=1), axis=1)
    b.result(y, dims=["batch", "more", D])
    x = b.run(g.const(4, np.int64), g.const(True, bool), x)
    x = linear(g, gelu(g, linear(g, layer_norm(g, x), D, 2 * D)), 2 * D, D)
    g.output(g.op("ReduceMean", x, axes=[1], keepdims=0), [D])
    return g.case(1, 3, 2)


@case("loop-slices")
def slices():
    """Each iteration takes a slice of an outer value, and one of another size."""
    g = Graph(17)
    x = block(g, g.input("x", [N, D]))
    b = Body(g, s=(TensorProto.FLOAT, ["batch", D]))
    always(b)
    end = b.op("Add", b.i, b.const(1, np.int64))
    upto = b.op("Slice", x, b.ints(0), b.op("Unsqueeze", end, b.ints(0)), b.ints(1))
    one = b.op("Gather", x, b.i, axis=1)
    y = b.op("Add", b.op("Add", b.s, one), b.op("ReduceMean", upto, axes=[1], keepdims=0))
    b.result(y, dims=["batch", D])
    b.result(b.op("Tanh", y), dims=["batch", D])
    y, rows = b.run(g.const(N, np.int64), g.const(True, bool), g.op("ReduceMean", x, axes=[1], keepdims=0), outs=2)
    x = g.op("Add", x, g.op("Transpose", rows, perm=[1, 0, 2]))
    g.output(g.op("Add", block(g, x), g.op("Unsqueeze", y, g.ints(1))), [N, D])
    return g.case(2, 4, 2)


@case("loop-in-a-loop")
def nested():
    g = Graph(17)
    x = block(g, g.input("x", [N, D]))
    b = Body(g, s=TOKENS)
    always(b)
    c = Body(b, s=TOKENS)
    always(c)
    # Reads what the outer body is given, and what the graph around that computes.
    y = c.op("Add", c.op("Mul", c.s, c.const(0.5)), c.op("Add", b.s, x))
    c.result(gelu(c, linear(c, y, D, D)), dims=["batch", N, D])
    b.result(c.run(b.op("Add", b.i, b.const(1, np.int64)), b.const(True, bool), b.s), dims=["batch", N, D])
    g.output(block(g, b.run(g.const(2, np.int64), g.const(True, bool), x)), [N, D])
    return g.case(2, 4, 2)


@case("loop-in-a-branch")
def in_a_branch():
    g = Graph(17)
    x = block(g, g.input("x", [N, D]))
    t = Graph(17)
    t.name = lambda hint: f"then_{hint}_{len(t.nodes) + len(t.inits)}"
    y = refine(t, x, t.const(2, np.int64))
    then = helper.make_graph(t.nodes, "then", [], [info(y, TensorProto.FLOAT, ["batch", N, D])], t.inits)
    other = helper.make_graph([helper.make_node("Neg", [x], ["negative"])], "other", [], [info("negative", TensorProto.FLOAT, ["batch", N, D])])
    large = g.op("Greater", g.op("ReduceMax", g.op("Abs", x), keepdims=0), g.const(1.0))
    g.output(block(g, g.op("If", large, then_branch=then, else_branch=other)), [N, D])
    return g.case(2, 4, 2)


@case("loop-opset-11")
def raised():
    """The body's operators change with the operator set."""
    g = Graph(11)
    x = block(g, g.input("x", [N, D]), norm="pow", softmax_axis=3)
    b = Body(g, s=TOKENS)
    always(b)
    y = b.op("Squeeze", b.op("Unsqueeze", b.s, axes=[1]), axes=[1])
    y = b.op("Softmax", b.op("ReduceSum", b.op("Mul", y, b.s), axes=[2], keepdims=0), axis=1)
    b.result(b.op("Add", b.s, b.op("Mul", b.s, b.op("Unsqueeze", y, axes=[2]))), dims=["batch", N, D])
    g.output(block(g, b.run(g.const(2, np.int64), g.const(True, bool), x), norm="pow", softmax_axis=3), [N, D])
    return g.case(2, 4, 2)


@case("loop-reads")
def reads():
    """A body that reads what passes remove, merge, fold or fuse: each of it must still be there."""
    g = Graph(17)
    x = g.input("x", [N, D])
    y = block(g, x)
    same = g.op("Identity", y)
    cast = g.op("Cast", y, to=TensorProto.FLOAT)
    turned = g.transpose(g.transpose(y, 0, 2, 1), 0, 2, 1)
    folded = g.op("Mul", g.op("Constant", value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])), g.const([0.5]))
    twins = [g.op("Tanh", y) for _ in range(2)]
    normed = layer_norm(g, y, "pow")
    mean = [n.output[0] for n in g.nodes if n.op_type == "ReduceMean"][-2]
    size = g.op("Cast", g.op("Shape", y), to=TensorProto.FLOAT)
    weight = g.op("Transpose", g.weight(D, D), perm=[1, 0])
    # A layer reads it as well.
    moved = g.unsqueeze(y, 1)
    b = Body(g, s=TOKENS)
    always(b)
    total = b.op("Add", b.s, b.squeeze(moved, 1))
    for other in (x, same, cast, turned, *twins, normed, mean, b.op("Gather", size, b.const(1, np.int64))):
        total = b.op("Add", total, b.op("Mul", other, folded))
    b.result(b.op("Tanh", b.op("MatMul", total, weight)), dims=["batch", N, D])
    x = g.op("Add", b.run(g.const(2, np.int64), g.const(True, bool), normed), g.squeeze(linear(g, moved, D, D), 1))
    g.output(block(g, x), [N, D])
    # Of the LayerNorm whose mean the body reads, what comes after the mean is an RMSNorm.
    return g.case(2, 5, 2)


@case("loop-float16")
def half():
    g = Graph(17)
    x = g.op("Cast", g.input("x", [N, D]), to=TensorProto.FLOAT16)
    x = refine(g, block(g, x), g.const(2, np.int64))
    g.output(g.op("Cast", block(g, x), to=TensorProto.FLOAT), [N, D])
    c = g.case(2, 4, 2)
    narrow(c.model.graph)
    return c


def narrow(graph):
    """Every constant and declaration but those of the model itself in half precision."""
    from onnx import numpy_helper
    for t in graph.initializer:
        if t.data_type == TensorProto.FLOAT:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name))
    for n in graph.node:
        for a in n.attribute:
            if a.HasField("g"):
                for v in [*a.g.input, *a.g.output]:
                    if v.type.tensor_type.elem_type == TensorProto.FLOAT:
                        v.type.tensor_type.elem_type = TensorProto.FLOAT16
                narrow(a.g)
