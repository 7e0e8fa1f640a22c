"""Wall time and peak memory of compiling, beside those of onnxruntime's static quantizer, in one run.

    python benches/compile_time.py MODEL CALIB --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 [--rounds 3] [--fast]
    python benches/compile_time.py --shape vit-b --samples 32

Each round runs three processes, in turn: bare forward passes of the calibration images in onnxruntime (which decode the
images as well), `quantize_static` with its defaults (QDQ, min-max, every operator it knows; weights a channel), and this
program with everything that belongs to it (planner, fitting, verification). Printed are the median wall time, processor time
and peak resident memory of each, and their ratios to the quantizer's. `--shape` makes a model of that shape with random
weights and random images, no download; `--program` may name another build.
Needs onnx, onnxruntime, numpy and pillow.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import measure
import numpy as np

# Width, hidden width, blocks, heads; images of 224 in patches of 16.
SHAPES = {
    "vit-ti": (192, 768, 12, 3),
    "vit-s": (384, 1536, 12, 6),
    "vit-b": (768, 3072, 12, 12),
    "vit-l": (1024, 4096, 24, 16),
}
SIZE, PATCH, CLASSES = 224, 16, 1000


def vit(path, width, hidden, blocks, heads, seed=0):
    """Writes a vision transformer with random weights, as torch's exporter lays it out; weights beside it if they are large."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng, nodes, tensors = np.random.default_rng(seed), [], []
    tokens = (SIZE // PATCH) ** 2 + 1

    def constant(name, value):
        tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(name, *dims, spread=None):
        spread = dims[0] ** -0.5 if spread is None else spread
        return constant(name, rng.standard_normal(dims, np.float32) * np.float32(spread))

    def op(kind, *inputs, outs=1, **attributes):
        names = [f"v{len(nodes)}_{i}" for i in range(outs)]
        nodes.append(helper.make_node(kind, inputs, names, name=f"n{len(nodes)}", **attributes))
        return names[0] if outs == 1 else names

    def linear(x, name, ins, outs):
        return op("Add", op("MatMul", x, weight(f"{name}.weight", ins, outs)), weight(f"{name}.bias", outs, spread=0.02))

    def norm(x, name):
        gain = constant(f"{name}.weight", (1 + 0.2 * rng.standard_normal(width)).astype(np.float32))
        return op("LayerNormalization", x, gain, weight(f"{name}.bias", width, spread=0.1), axis=-1)

    i64 = lambda name, *v: constant(name, np.array(v, np.int64))
    flat, joined = i64("flat", 0, width, -1), i64("join", 0, tokens, width)
    apart, parts, first = i64("split", 0, tokens, 3, heads, width // heads), i64("parts", 1, 1, 1), i64("first", 0)
    zero, one64, one1 = i64("zero", 0), i64("one64", 1), i64("one1", 1)
    scale, root = constant("scale", np.float32((width // heads) ** -0.5)), constant("root", np.float32(2**0.5))
    one, half = constant("one", np.float32(1)), constant("half", np.float32(0.5))
    kernel = weight("patch.weight", width, 3, PATCH, PATCH, spread=(3 * PATCH * PATCH) ** -0.5)
    x = op("Conv", "image", kernel, weight("patch.bias", width, spread=0.02), strides=[PATCH] * 2, kernel_shape=[PATCH] * 2)
    x = op("Transpose", op("Reshape", x, flat), perm=[0, 2, 1])
    batch = op("Slice", op("Shape", "image"), zero, one64)
    row = op("Expand", weight("cls", 1, 1, width, spread=0.5), op("Concat", batch, one1, i64("wide", width), axis=0))
    x = op("Add", op("Concat", row, x, axis=1), weight("position", 1, tokens, width, spread=0.3))
    for b in range(blocks):
        qkv = op("Transpose", op("Reshape", linear(norm(x, f"{b}.norm1"), f"{b}.qkv", width, 3 * width), apart), perm=[2, 0, 3, 1, 4])
        q, k, v = (op("Squeeze", p, first) for p in op("Split", qkv, parts, outs=3, axis=0))
        s = op("Softmax", op("MatMul", op("Mul", q, scale), op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
        y = op("Reshape", op("Transpose", op("MatMul", s, v), perm=[0, 2, 1, 3]), joined)
        x = op("Add", x, linear(y, f"{b}.proj", width, width))
        y = linear(norm(x, f"{b}.norm2"), f"{b}.fc1", width, hidden)
        y = op("Mul", op("Mul", y, op("Add", op("Erf", op("Div", y, root)), one)), half)
        x = op("Add", x, linear(y, f"{b}.fc2", hidden, width))
    y = op("Gather", norm(x, "norm"), constant("token", np.int64(0)), axis=1)
    nodes.append(helper.make_node("Gemm", [y, weight("head.weight", width, CLASSES), weight("head.bias", CLASSES, spread=0.02)], ["logits"]))
    value = lambda n, *d: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", *d])
    graph = helper.make_graph(nodes, "vit", [value("image", 3, SIZE, SIZE)], [value("logits", CLASSES)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    large = sum(t.ByteSize() for t in tensors) > 1 << 30
    onnx.save(model, path, save_as_external_data=large, location="weights.bin" if large else None)


def pictures(folder, count, seed=0):
    """Smooth random images: what JPEG is made for, and what activations look like somewhat as on photographs."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC).save(folder / f"{i:04}.jpg", quality=90)


def forward(a):
    """Bare forward passes, in a process of their own."""
    side = measure.image_size(a.model)
    images, _ = measure.photographs(a.calib, side, measure.short_side(a, side), a.mean, a.std, a.samples)
    start = time.perf_counter()
    s = measure.session(a.model, a.threads)
    name = s.get_inputs()[0].name
    for i in range(len(images)):
        s.run(None, {name: images[i : i + 1]})
    print(json.dumps({"passes": time.perf_counter() - start, "samples": len(images)}))


def static(a):
    """onnxruntime's static quantizer, in a process of its own."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    side = measure.image_size(a.model)

    class Reader(CalibrationDataReader):
        def __init__(self):
            images, _ = measure.photographs(a.calib, side, measure.short_side(a, side), a.mean, a.std, a.samples)
            name = measure.session(a.model).get_inputs()[0].name
            self.rest = iter({name: images[i : i + 1]} for i in range(len(images)))

        def get_next(self):
            return next(self.rest, None)

    kinds = {"per_channel": True, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    beside = a.model.with_name("weights.bin").exists()
    quantize_static(str(a.model), str(a.out), Reader(), use_external_data_format=beside, **kinds)


def watched(command):
    """Wall seconds, processor seconds, peak bytes and what it printed."""
    start = time.perf_counter()
    child = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    # 2: written, and a threshold was missed, as random weights may.
    if os.waitstatus_to_exitcode(status) not in (0, 2):
        sys.exit(f"{' '.join(map(str, command))} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, said


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measure.data_arguments(p, optional=True)
    p.add_argument("--shape", choices=SHAPES, help="a model of this shape with random weights, and random images")
    p.add_argument("--samples", type=int, help="calibration samples [default: all; 32 with --shape]")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--fast", action="store_true", help="the program's --fast")
    p.add_argument("--json", type=pathlib.Path)
    p.add_argument("--role", choices=["forward", "static"], help=argparse.SUPPRESS)
    p.add_argument("--out", type=pathlib.Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.role:
        return forward(a) if a.role == "forward" else static(a)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        if a.shape:
            a.samples = a.samples or 32
            a.model, a.calib = folder / f"{a.shape}.onnx", folder / "images"
            vit(a.model, *SHAPES[a.shape])
            pictures(a.calib, a.samples)
        if not (a.model and a.calib):
            p.error("give MODEL and CALIB, or --shape")
        given = [a.model, a.calib, "--mean", *a.mean, "--std", *a.std, "--threads", a.threads]
        if a.samples:
            given += ["--samples", a.samples]
        # The program holds every eighth sample back; the others calibrate the way all of the peer's do.
        ours = [a.program, a.model, "-o", folder / "ours.onnx", "--json", "-", "--quiet", "--threads", a.threads]
        ours += [*measure.program_arguments(a)] + (["--samples", a.samples] if a.samples else []) + (["--fast"] if a.fast else [])
        own = [sys.executable, __file__, *given, "--role"]
        sides = {
            "forward passes": [*own, "forward"],
            "onnxruntime static": [*own, "static", "--out", folder / "theirs.onnx"],
            "this program": ours,
        }
        found = {name: [] for name in sides}
        for _ in range(a.rounds):
            for name, command in sides.items():
                found[name].append(watched(command))
    middle = {name: [statistics.median(r[i] for r in runs) for i in range(3)] for name, runs in found.items()}
    base = middle["onnxruntime static"]
    rows = [["", "wall s", "processor s", "peak GB", "wall ratio", "memory ratio"]]
    for name, (wall, cpu, peak) in middle.items():
        rows.append([name, f"{wall:.1f}", f"{cpu:.1f}", f"{peak / 1e9:.2f}", f"{wall / base[0]:.2f}", f"{peak / base[2]:.2f}"])
    print(f"{a.model.name}, {a.samples or 'all'} samples, {a.threads} threads, median of {a.rounds}\n")
    measure.table(rows)
    report = json.loads(found["this program"][-1][3])
    passes = json.loads(found["forward passes"][-1][3])["passes"]
    stages = {t["stage"]: t["seconds"] for t in report["timings"]}
    print("\n" + ", ".join(f"{stage} {s:.1f} s ({s / passes:.2f})" for stage, s in stages.items()))
    print(f"in parentheses: of the {passes:.1f} s that the forward passes take in onnxruntime without reading the images")
    if a.json:
        a.json.write_text(json.dumps({"rounds": found, "stages": stages, "passes": passes}, indent=1))


if __name__ == "__main__":
    main()
