"""Processor time and memory of clean-up and recognition on graphs of very many nodes, and how they grow.

    python benches/large_graphs.py [PROGRAM] [--sizes 25000 50000 100000] [--kinds chain readers blocks unused]

Each graph goes through `PROGRAM inspect`, which reads it, cleans it up, applies the rules and looks for what can be quantized.
Kinds: `chain` of Relu; `readers`, one value with half as many readers as there are nodes, two nodes each, summed by one node;
`blocks`, transformer blocks with LayerNorm, GELU and attention decomposed as torch's exporter writes them, of some 70 nodes
each; `unused`, one node and as many initializers that nothing reads. Growth is the time of a graph over that of the one
before, by the growth of the graph: 1.0 is linear. Needs onnx and numpy.
"""

import argparse
import os
import pathlib
import subprocess
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS, TOKENS = 16, 2, 5
F32, I64 = np.float32, np.int64


class Graph:
    def __init__(self, *dims):
        self.nodes, self.tensors, self.dims = [], [], dims

    def op(self, kind, *inputs, path="", **attributes):
        """A node named as torch's exporter does, under the module's path."""
        name = f"{path}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_output_0"], name, **attributes))
        return f"{name}_output_0"

    def weight(self, value):
        name = f"onnx::w_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def constant(self, value, path):
        return self.op("Constant", path=path, value=numpy_helper.from_array(np.asarray(value)))

    def save(self, result, path):
        self.nodes.append(helper.make_node("Identity", [result], ["y"]))
        x, y = (helper.make_tensor_value_info(v, TensorProto.FLOAT, self.dims) for v in "xy")
        graph = helper.make_graph(self.nodes, "g", [x], [y], self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, path)


def chain(n, path):
    g, x = Graph(4), "x"
    for _ in range(n):
        x = g.op("Relu", x)
    g.save(x, path)


def readers(n, path):
    g = Graph(4)
    x, kinds = g.op("Exp", "x"), ["Relu", "Sigmoid", "Tanh", "Abs", "Neg"]
    read = [g.op(kinds[i % 5], g.op("Mul", x, g.weight(np.full(4, i, F32)))) for i in range(n // 2)]
    g.save(g.op("Sum", *read), path)


def unused(n, path):
    g = Graph(4)
    for i in range(n):
        g.weight(np.full(4, i, F32))
    g.save(g.op("Relu", "x"), path)


def norm(g, x, path, weights):
    centred = g.op("Sub", x, g.op("ReduceMean", x, path=path, axes=[-1]), path=path)
    square = g.op("Pow", centred, g.constant(F32(2), path), path=path)
    spread = g.op("Add", g.op("ReduceMean", square, path=path, axes=[-1]), g.constant(F32(1e-6), path), path=path)
    y = g.op("Div", centred, g.op("Sqrt", spread, path=path), path=path)
    return g.op("Add", g.op("Mul", y, g.weight(weights[WIDTH]), path=path), g.weight(weights[WIDTH]), path=path)


def layer(g, x, ins, outs, path, weights):
    return g.op("Add", g.weight(weights[outs]), g.op("MatMul", x, g.weight(weights[ins, outs]), path=path), path=path)


def heads(g, x, path, perm):
    shape = g.op("Shape", x, path=path)
    size = lambda i: g.op("Gather", shape, g.constant(I64(i), path), path=path, axis=0)
    batch, tokens = (g.op("Unsqueeze", size(i), g.constant(np.array([0]), path), path=path) for i in range(2))
    parts = [g.constant(np.array([s]), path) for s in (HEADS, WIDTH // HEADS)]
    x = g.op("Reshape", x, g.op("Concat", batch, tokens, *parts, path=path, axis=0), path=path)
    return g.op("Transpose", x, path=path, perm=perm), batch, tokens


def block(g, x, path, weights):
    y, a = norm(g, x, f"{path}/norm1", weights), f"{path}/attn"
    q, k, v = (layer(g, y, WIDTH, WIDTH, f"{a}/{part}", weights) for part in "qkv")
    q, batch, tokens = heads(g, q, a, [0, 2, 1, 3])
    k, v = heads(g, k, a, [0, 2, 3, 1])[0], heads(g, v, a, [0, 2, 1, 3])[0]
    scores = g.op("Div", g.op("MatMul", q, k, path=a), g.constant(F32(8**0.5), a), path=a)
    y = g.op("MatMul", g.op("Softmax", scores, path=a, axis=-1), v, path=a)
    y = g.op("Transpose", y, path=a, perm=[0, 2, 1, 3])
    shape = g.op("Concat", batch, tokens, g.constant(np.array([WIDTH]), a), path=a, axis=0)
    x = g.op("Add", x, layer(g, g.op("Reshape", y, shape, path=a), WIDTH, WIDTH, f"{a}/proj", weights), path=path)
    y = layer(g, norm(g, x, f"{path}/norm2", weights), WIDTH, 2 * WIDTH, f"{path}/fc1", weights)
    e = g.op("Erf", g.op("Div", y, g.constant(F32(2**0.5), path), path=path), path=path)
    y = g.op("Mul", y, g.op("Add", e, g.constant(F32(1), path), path=path), path=path)
    y = g.op("Mul", y, g.constant(F32(0.5), path), path=path)
    return g.op("Add", x, layer(g, y, 2 * WIDTH, WIDTH, f"{path}/fc2", weights), path=path)


def blocks(n, path):
    g, x, rng = Graph("batch", TOKENS, WIDTH), "x", np.random.default_rng(0)
    shapes = [WIDTH, 2 * WIDTH, (WIDTH, WIDTH), (WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH)]
    weights = {s: rng.standard_normal(s, F32) for s in shapes}
    while len(g.nodes) < n:
        x = block(g, x, f"/blocks.{len(g.nodes)}", weights)
    g.save(x, path)


KINDS = {"chain": chain, "readers": readers, "blocks": blocks, "unused": unused}


def measured(command):
    """Processor seconds and peak memory in MB of one process."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit status {child.returncode}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("program", nargs="?", default="target/release/fqvit-opt", type=pathlib.Path)
    p.add_argument("--sizes", nargs="+", type=int, default=[25_000, 50_000, 100_000])
    p.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    a = p.parse_args()
    print(f"{'graph':10}{'nodes':>9}{'seconds':>9}{'growth':>8}{'MB':>7}")
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "m.onnx"
        for kind in a.kinds:
            last = None
            for n in a.sizes:
                KINDS[kind](n, file)
                seconds, peak = measured([a.program, "inspect", file])
                growth = f"{seconds / last[1] / (n / last[0]):.2f}" if last else ""
                print(f"{kind:10}{n:>9}{seconds:>9.2f}{growth:>8}{peak:>7.0f}", flush=True)
                last = n, seconds


if __name__ == "__main__":
    main()
