"""How fast the compiled files run, beside the float model and onnxruntime's own quantizer, all in one run.

    python benches/latency.py MODEL CALIB --mean 0.5 --std 0.5 --files fq-vit:qdq fq-vit:integer cpu linear-w8a8
    python benches/latency.py --random base --files fq-vit cpu          (a ViT of that shape with random weights)

Each of `--files` is RECIPE[:TARGET] to compile, or NAME=FILE for a file that is there. The peers are made by onnxruntime's
static quantizer (see peers.py): as it comes, and for MatMuls with constant weights only.

Everything runs in turn on one thread, round after round, so that what else the machine does meets all alike; printed are
medians of the ratios within a round, to the float model and to each peer, in onnxruntime with all optimizations and, with
`--runtimes`, in OpenVINO (float32 between codes) and tract (`fqvit-opt bench`). With `--eval DIR` also top-1 agreement with
the float model and SQNR of the logits, at basic and at all optimizations and in OpenVINO. `--markdown` prints the table for a
README. Needs onnx, onnxruntime, numpy, pillow, a built program, and openvino for its column.
"""

import argparse
import json
import logging
import pathlib
import platform
import statistics
import subprocess
import tempfile
import time

import numpy as np
import onnx

import measure
import peers

PEERS = ["onnxruntime, default", "onnxruntime, weights-MatMul"]
# Of a Vision Transformer: width, depth, heads.
SHAPES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
INT8 = ["avx2", "avx_vnni", "avx512_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm"]


def processor():
    """Name of the processor and what it has for products of 8 bits."""
    told = pathlib.Path("/proc/cpuinfo")
    if not told.exists():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in told.read_text().splitlines() if ":" in line)
    facts = {k.strip(): v.strip() for k, v in lines.items()}
    flags = facts.get("flags", facts.get("Features", "")).split()
    return f"{facts.get('model name', platform.machine())}; for int8: {', '.join(f for f in INT8 if f in flags) or 'nothing'}"


def random_vit(path, shape, seed=0):
    """A ViT-16 at 224 pixels with random weights, as exporters write one: LayerNormalization, Gelu, one product for q, k and v."""
    from onnx import TensorProto, helper, numpy_helper

    width, depth, heads = SHAPES[shape]
    size, tokens = width // heads, 197
    rng, nodes, held = np.random.default_rng(seed), [], []

    def constant(name, array):
        held.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(name, *dims):
        return constant(name, (rng.standard_normal(dims) / np.sqrt(np.prod(dims[:-1]))).astype(np.float32))

    def op(kind, inputs, outputs=1, **attributes):
        names = [f"v{len(nodes)}_{i}" for i in range(outputs)]
        nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names if outputs > 1 else names[0]

    def layer(name, x, inputs, outs):
        bias = constant(f"{name}.bias", (0.02 * rng.standard_normal(outs)).astype(np.float32))
        return op("Add", [op("MatMul", [x, weight(f"{name}.weight", inputs, outs)]), bias])

    def norm(name, x):
        scale = constant(f"{name}.scale", (1 + 0.1 * rng.standard_normal(width)).astype(np.float32))
        bias = constant(f"{name}.bias", (0.1 * rng.standard_normal(width)).astype(np.float32))
        return op("LayerNormalization", [x, scale, bias], axis=-1, epsilon=1e-6)

    ints = lambda name, *v: constant(name, np.int64(v))  # noqa: E731
    kernel = constant("patch.weight", (rng.standard_normal((width, 3, 16, 16)) / 28).astype(np.float32))
    bias = constant("patch.bias", np.zeros(width, np.float32))
    x = op("Conv", ["input", kernel, bias], kernel_shape=[16, 16], strides=[16, 16])
    x = op("Transpose", [op("Reshape", [x, ints("flat", 0, width, -1)])], perm=[0, 2, 1])
    token = constant("token", (0.1 * rng.standard_normal((1, 1, width))).astype(np.float32))
    places = constant("places", (0.1 * rng.standard_normal((1, tokens, width))).astype(np.float32))
    x = op("Add", [op("Concat", [token, x], axis=1), places])
    parts, whole = ints("parts", 1, tokens, 3, heads, size), ints("whole", 1, tokens, width)
    one = ints("one", 0)
    shrink = constant("shrink", np.float32(size**-0.5))
    for i in range(depth):
        y = layer(f"{i}.qkv", norm(f"{i}.norm1", x), width, 3 * width)
        y = op("Transpose", [op("Reshape", [y, parts])], perm=[2, 0, 3, 1, 4])
        q, k, v = (op("Squeeze", [part, one]) for part in op("Split", [y], 3, axis=0))
        scores = op("MatMul", [op("Mul", [q, shrink]), op("Transpose", [k], perm=[0, 1, 3, 2])])
        y = op("MatMul", [op("Softmax", [scores], axis=-1), v])
        y = op("Reshape", [op("Transpose", [y], perm=[0, 2, 1, 3]), whole])
        x = op("Add", [x, layer(f"{i}.proj", y, width, width)])
        y = op("Gelu", [layer(f"{i}.fc1", norm(f"{i}.norm2", x), width, 4 * width)])
        x = op("Add", [x, layer(f"{i}.fc2", y, 4 * width, width)])
    first = op("Gather", [norm("norm", x), constant("first", np.int64(0))], axis=1)
    y = layer("head", first, width, 1000)
    nodes[-1].output[0] = "logits"
    del y
    graph = helper.make_graph(
        nodes,
        f"vit_{shape}",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1000])],
        held,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


def compiled(a, recipe, target, calib, work):
    """A file of ours. The plan of a recipe is made once."""
    out = work / f"{recipe}.{target}.onnx"
    if a.reuse and out.exists():
        return out
    command = [a.program, a.model, "-o", out, "--no-verify", "--quiet", "--recipe", recipe, "--target", target]
    command += ["--plan", work / f"{recipe}.plan.yaml", *calib]
    subprocess.run([str(c) for c in command], check=True)
    return out


class Onnxruntime:
    def __init__(self, path):
        self.session = measure.session(path)
        self.name = self.session.get_inputs()[0].name

    def __call__(self, x):
        return self.session.run(None, {self.name: x})[0]


class Openvino:
    def __init__(self, path):
        import openvino

        how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        core = openvino.Core()
        self.model = core.compile_model(core.read_model(str(path)), "CPU", how)

    def __call__(self, x):
        return self.model(x)[0]


RUNTIMES = {"onnxruntime": Onnxruntime, "openvino": Openvino}


def in_turn(made, image, rounds):
    """Milliseconds of each, a list a round; the order turns from round to round."""
    for run in made:
        run(image)
    times = [[0.0] * len(made) for _ in range(rounds)]
    for r in range(rounds):
        for k in range(len(made)):
            j = (k + r) % len(made)
            start = time.perf_counter()
            made[j](image)
            times[r][j] = 1e3 * (time.perf_counter() - start)
    return times


def tract(a, path, calib):
    """Ratio to the float model and milliseconds, as the program itself measures."""
    command = [a.program, "bench", a.model, path, "--rounds", a.rounds, "--json", "-", *calib]
    try:
        said = json.loads(subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout)
        return said["ratio"], said["quantized_ms"]
    except subprocess.CalledProcessError as e:
        return None, (e.stderr or e.stdout).strip().splitlines()[-1]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measure.data_arguments(p, optional=True)
    p.add_argument("--random", choices=SHAPES, help="a model of this shape with random weights, and random data")
    p.add_argument("--files", nargs="+", default=["fq-vit", "fq-vit:integer", "cpu", "linear-w8a8"])
    p.add_argument("--runtimes", nargs="+", default=["onnxruntime"], choices=[*RUNTIMES, "tract"])
    p.add_argument("--rounds", type=int, default=25)
    p.add_argument("--eval", type=pathlib.Path, help="folder of images to judge on")
    p.add_argument("--limit", type=int, help="judge on this many images, spread evenly")
    p.add_argument("--calib-limit", type=int, default=48, help="calibrate peers on this many images")
    p.add_argument("--no-peers", action="store_true")
    p.add_argument("--keep", type=pathlib.Path, help="folder for the files that are made; default: a temporary one")
    p.add_argument("--reuse", action="store_true", help="take files that lie in --keep already")
    p.add_argument("--markdown", action="store_true")
    p.add_argument("--json", type=pathlib.Path)
    a = p.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        work = a.keep or pathlib.Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        bench(a, work)


def bench(a, work):
    if a.random:
        a.model = work / f"vit_{a.random}.onnx"
        if not a.model.exists():
            random_vit(a.model, a.random)
        images = np.random.default_rng(1).standard_normal((8, 3, 224, 224)).astype(np.float32)
        np.save(work / "random.npy", images)
        ours = ["--calibrate", work / "random.npy"]
    else:
        side = measure.image_size(a.model)
        images, _ = measure.photographs(a.calib, side, measure.short_side(a, side), a.mean, a.std, a.calib_limit)
        ours = measure.program_arguments(a)
        at = ours.index("--recipe")
        del ours[at : at + 2]
    files = {"float": a.model}
    for name in [] if a.no_peers else PEERS:
        out = work / f"peer-{name.split()[-1]}.onnx"
        if not (a.reuse and out.exists()):
            peers.rival(a.model, out, images, dict(peers.PEERS[name]))
        files[name] = out
    for asked in a.files:
        name, _, path = asked.partition("=")
        recipe, _, target = name.partition(":")
        files[name] = pathlib.Path(path) if path else compiled(a, recipe, target or "qdq", ours, work)
    held = measure.photographs(a.eval, side, 0, a.mean, a.std, a.limit)[0] if a.eval else None
    reference = measure.outputs(a.model, held, everything=False) if a.eval else None
    rows = {name: {"name": name, "mb": measure.megabytes(path)} for name, path in files.items()}
    for runtime in a.runtimes:
        if runtime == "tract":
            for name, path in list(files.items())[1:]:
                rows[name]["tract_ratio"], rows[name]["tract_ms"] = tract(a, path, ours)
            continue
        made = {}
        for name, path in files.items():
            try:
                made[name] = RUNTIMES[runtime](path)
            except Exception as e:  # what does not load is a result, too
                rows[name][f"{runtime}_failed"] = str(e).splitlines()[0][:100]
        times = in_turn(list(made.values()), images[:1], a.rounds)
        for j, name in enumerate(made):
            rows[name][f"{runtime}_ms"] = statistics.median(t[j] for t in times)
            for k, other in enumerate(made):
                if other == "float" or other in PEERS:
                    to = other.split()[-1]
                    rows[name][f"{runtime}_to_{to}"] = statistics.median(t[j] / t[k] for t in times)
        if a.eval:
            for name in list(made)[1:]:
                if runtime == "openvino":
                    out = np.concatenate([made[name](held[i : i + 1]) for i in range(len(held))])
                    rows[name]["sqnr_openvino_db"] = measure.sqnr(reference, out)
                    continue
                out = measure.outputs(files[name], held, everything=False)
                rows[name]["agreement"] = float((out.argmax(-1) == reference.argmax(-1)).mean())
                rows[name]["sqnr_basic_db"] = measure.sqnr(reference, out)
                rows[name]["sqnr_all_db"] = measure.sqnr(reference, measure.outputs(files[name], held, everything=True))
    print(f"{a.model.name}, one thread, {a.rounds} rounds in turn; {processor()}\n")
    show(rows, a.markdown)
    if a.json:
        a.json.write_text(json.dumps({"model": str(a.model), "processor": processor(), "rows": list(rows.values())}, indent=1))


COLUMNS = [
    ("agreement", "agreement", "{:.1%}"),
    ("sqnr_basic_db", "SQNR basic", "{:.2f}"),
    ("sqnr_all_db", "SQNR all", "{:.2f}"),
    ("sqnr_openvino_db", "SQNR OpenVINO", "{:.2f}"),
    ("mb", "MB", "{:.2f}"),
    ("onnxruntime_ms", "ms", "{:.1f}"),
    ("onnxruntime_to_float", "of float", "{:.3f}"),
    ("onnxruntime_to_default", "of default", "{:.3f}"),
    ("onnxruntime_to_weights-MatMul", "of weights-MatMul", "{:.3f}"),
    ("openvino_to_float", "OpenVINO, of float", "{:.3f}"),
    ("openvino_to_weights-MatMul", "OpenVINO, of weights-MatMul", "{:.3f}"),
    ("tract_to_float", "tract, of float", "{:.3f}"),
]


def show(rows, markdown):
    for r in rows.values():
        if "tract_ratio" in r:
            r["tract_to_float"] = r["tract_ratio"]
    there = [c for c in COLUMNS if any(c[0] in r for r in rows.values())]
    table = [["", *(title for _, title, _ in there)]]
    for r in rows.values():
        table.append([r["name"], *("-" if r.get(key) is None else form.format(r[key]) for key, _, form in there)])
    if markdown:
        table.insert(1, ["---", *("---:" for _ in there)])
        print("\n".join("| " + " | ".join(row) + " |" for row in table))
    else:
        measure.table(table)
    for r in rows.values():
        for key in r:
            if key.endswith("_failed"):
                print(f"{r['name']}: {key.removesuffix('_failed')}: {r[key]}")


if __name__ == "__main__":
    main()
