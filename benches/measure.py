"""What the benches share: photographs, onnxruntime sessions, metrics, paired timing, tables."""

import pathlib
import statistics
import time

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png"}


def photographs(folder, size, resize, mean, std, limit=None):
    """Images as a model sees them, and their classes from labels.txt (`file class` a line), or None."""
    folder = pathlib.Path(folder)
    listed = folder / "labels.txt"
    if listed.exists():
        rows = [line.split() for line in listed.read_text().splitlines() if line.strip()]
        names, classes = [r[0] for r in rows], np.array([int(r[1]) for r in rows])
    else:
        names, classes = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), None
    if limit and limit < len(names):
        pick = [i * len(names) // limit for i in range(limit)]
        names, classes = [names[i] for i in pick], None if classes is None else classes[pick]
    out = np.empty((len(names), 3, size, size), np.float32)
    for i, name in enumerate(names):
        image = Image.open(folder / name).convert("RGB")
        if resize:
            share = resize / min(image.size)
            image = image.resize([round(side * share) for side in image.size], Image.Resampling.BICUBIC)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
        out[i] = ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)
    return out, classes


def session(path, threads=1, everything=True):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if everything else levels.ORT_ENABLE_BASIC
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(path, images, everything, threads=2):
    """The first output for every image, one image at a time: a fixed batch is no obstacle."""
    s = session(path, threads, everything)
    name = s.get_inputs()[0].name
    return np.concatenate([s.run(None, {name: images[i : i + 1]})[0] for i in range(len(images))])


def sqnr(reference, other):
    reference = reference.astype(np.float64)
    noise = ((other - reference) ** 2).sum()
    return float("inf") if noise == 0 else float(10 * np.log10((reference**2).sum() / noise))


def paired(paths, image, runs):
    """Milliseconds of each model, run in turn on one thread, and the median ratio to the first with its quartiles.

    Ratios are taken within a round, so that what else the machine does meets all of them alike; the order turns from
    round to round."""
    sessions = [session(p) for p in paths]
    feeds = [{s.get_inputs()[0].name: image} for s in sessions]
    for s, f in zip(sessions, feeds):
        s.run(None, f)
    times = [[] for _ in sessions]
    for r in range(runs):
        for k in range(len(sessions)):
            j = (k + r) % len(sessions)
            start = time.perf_counter()
            sessions[j].run(None, feeds[j])
            times[j].append(1e3 * (time.perf_counter() - start))
    ratios = [[t / first for t, first in zip(ts, times[0])] for ts in times]
    spread = [statistics.quantiles(r, n=4) if runs > 1 else r * 3 for r in ratios]
    return [statistics.median(ts) for ts in times], spread


def megabytes(path):
    path = pathlib.Path(path)
    model = onnx.load(path, load_external_data=False)
    beside = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    return (path.stat().st_size + sum((path.parent / b).stat().st_size for b in beside)) / 1e6


def image_size(path):
    """Side of the square images a model reads; 224 where it leaves that open."""
    dims = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    return dims[-1].dim_value or 224


def table(rows):
    """Rows of text with a header, columns aligned; the first to the left."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    for n, row in enumerate(rows):
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip())
        if n == 0:
            print("  ".join("-" * w for w in widths))


def data_arguments(parser, optional=False):
    count = {"nargs": "?"} if optional else {}
    parser.add_argument("model", type=pathlib.Path, help="the float model", **count)
    parser.add_argument("calib", type=pathlib.Path, help="folder of images to calibrate on", **count)
    parser.add_argument("--mean", type=float, nargs="+", default=[0.485, 0.456, 0.406])
    parser.add_argument("--std", type=float, nargs="+", default=[0.229, 0.224, 0.225])
    parser.add_argument("--resize", type=int, help="short side of calibration images before the crop; 0: as they are")
    parser.add_argument("--recipe", default="fq-vit")
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("target/release/fqvit-opt"))
    parser.add_argument("--runs", type=int, default=40, help="rounds of paired timing")


def short_side(a, side):
    """What calibration images are resized to, by the program's own rule where nothing was said."""
    return round(side / 0.875) if a.resize is None else a.resize


def program_arguments(a):
    """What tells the program to see the images as the peers do."""
    listed = lambda x: ",".join(str(v) for v in x)  # noqa: E731
    out = ["--calibrate", str(a.calib), f"--mean={listed(a.mean)}", f"--std={listed(a.std)}", "--recipe", a.recipe]
    return out + (["--resize", str(a.resize)] if a.resize is not None else [])
