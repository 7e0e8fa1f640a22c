"""Peak memory of importing, cleaning up and exporting a model of ViT-g size whose weights lie in a data file.

    cargo build --release
    python tests/large_model.py target/release/fqvit-opt [BLOCKS]

Writes a float model with random weights (40 blocks of width 1408: about 4 GB; fewer for a quick look), runs `inspect` on
it (import, clean-up, recognition, validation) and `--recipe none` (import, validation, export), and prints the peak
resident memory of each against the bytes of the weights. At most 1.3 times the weights may be resident: the mapped file
itself counts once if all of it is touched.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH, HIDDEN, TOKENS, HEADS = 1408, 6144, 257, 16
LIMIT = 1.3


class Writer:
    """Initializers whose bytes go straight to the data file."""

    def __init__(self, folder, name):
        self.file, self.name = open(folder / name, "wb"), name
        self.tensors, self.bytes, self.rng = [], 0, np.random.default_rng(0)

    def weight(self, name, *dims):
        data = self.rng.standard_normal(dims, np.float32).astype(np.float32) * 0.02
        t = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
        for k, v in [("location", self.name), ("offset", str(self.bytes)), ("length", str(data.nbytes))]:
            t.external_data.add(key=k, value=v)
        self.file.write(data.tobytes())
        self.bytes += data.nbytes
        self.tensors.append(t)
        return name


def build(folder, blocks):
    w, nodes = Writer(folder, "weights.bin"), []
    small = [helper.make_tensor("split", TensorProto.INT64, [5], [0, TOKENS, 3, HEADS, WIDTH // HEADS]),
             helper.make_tensor("join", TensorProto.INT64, [3], [0, TOKENS, WIDTH]),
             helper.make_tensor("parts", TensorProto.INT64, [3], [1, 1, 1]),
             helper.make_tensor("first", TensorProto.INT64, [1], [0]),
             helper.make_tensor("scale", TensorProto.FLOAT, [], [(WIDTH / HEADS) ** -0.5]),
             helper.make_tensor("root", TensorProto.FLOAT, [], [2**0.5]), helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
             helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])]

    def op(kind, *inputs, outs=1, **attrs):
        names = [f"v{len(nodes)}_{i}" for i in range(outs)]
        nodes.append(helper.make_node(kind, inputs, names, name=f"n{len(nodes)}", **attrs))
        return names[0] if outs == 1 else names

    def linear(x, name, ins, outs):
        return op("Add", op("MatMul", x, w.weight(name + ".weight", ins, outs)), w.weight(name + ".bias", outs))

    def norm(x, name):
        return op("LayerNormalization", x, w.weight(name + ".weight", WIDTH), w.weight(name + ".bias", WIDTH), axis=-1)

    x = "x"
    for b in range(blocks):
        qkv = op("Transpose", op("Reshape", linear(norm(x, f"{b}.norm1"), f"{b}.qkv", WIDTH, 3 * WIDTH), "split"), perm=[2, 0, 3, 1, 4])
        q, k, v = (op("Squeeze", p, "first") for p in op("Split", qkv, "parts", outs=3, axis=0))
        s = op("MatMul", op("Mul", q, "scale"), op("Transpose", k, perm=[0, 1, 3, 2]))
        y = op("Transpose", op("MatMul", op("Softmax", s, axis=-1), v), perm=[0, 2, 1, 3])
        x = op("Add", x, linear(op("Reshape", y, "join"), f"{b}.proj", WIDTH, WIDTH))
        y = linear(norm(x, f"{b}.norm2"), f"{b}.fc1", WIDTH, HIDDEN)
        y = op("Mul", op("Mul", y, op("Add", op("Erf", op("Div", y, "root")), "one")), "half")
        x = op("Add", x, linear(y, f"{b}.fc2", HIDDEN, WIDTH))
    value = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", TOKENS, WIDTH])
    graph = helper.make_graph(nodes, "g", [value("x")], [value(x)], small + w.tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    w.file.close()
    return w.bytes


def peak(*command):
    """Bytes of memory a command had at most."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{command} failed: {status}")
    return usage.ru_maxrss * 1024


def main():
    program, blocks = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 40
    bad = 0
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as tmp:
        folder = pathlib.Path(tmp)
        weights = build(folder, blocks)
        print(f"{blocks} blocks, {weights / 1e9:.2f} GB of weights")
        for what, command in [
            ("import, clean-up, recognition", [program, "inspect", folder / "model.onnx"]),
            ("import, validation, export", [program, folder / "model.onnx", "-o", folder / "out" / "model.onnx", "--recipe", "none"]),
        ]:
            (folder / "out").mkdir(exist_ok=True)
            most = peak(*map(str, command))
            bad += most > LIMIT * weights
            print(f"{'ok  ' if most <= LIMIT * weights else 'FAIL'} {what}: peak {most / 1e9:.2f} GB, {most / weights:.2f} x the weights")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
