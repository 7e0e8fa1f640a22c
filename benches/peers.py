"""fqvit-opt beside onnxruntime's own static quantizer, on the same images.

    python benches/peers.py MODEL CALIB EVAL --mean 0.5 --std 0.5 [--limit N] [--json FILE]

CALIB and EVAL are folders of photographs; EVAL has a labels.txt (`file class` a line). Rivals: the quantizer as it comes
(min-max), with percentile calibration, and for MatMuls with constant weights only, the rest in float; all QDQ, uint8
activations, int8 weights a channel. One table: top-1 and agreement with float (basic optimizations, where every runtime
means the same), SQNR of the logits at basic and at all optimizations, milliseconds an image and the ratio to float
(paired runs in turn, one thread, all optimizations), seconds to quantize, megabytes.
Needs onnx, onnxruntime, numpy, pillow, and a built program.
"""

import argparse
import json
import logging
import pathlib
import subprocess
import tempfile
import time

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import measure

PEERS = {
    "onnxruntime, default": {},
    "onnxruntime, percentile": {"calibrate_method": CalibrationMethod.Percentile},
    "onnxruntime, weights-MatMul": {
        "op_types_to_quantize": ["MatMul"],
        "extra_options": {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
    },
}


class Feeds(CalibrationDataReader):
    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


def quantize(model, out, feeds, how):
    """Quantizes as the guide of onnxruntime says: preprocessing first. `feeds`: inputs by name, a dict for each sample."""
    ready = out.with_suffix(".pre.onnx")
    try:
        quant_pre_process(str(model), str(ready))
    except Exception:  # symbolic shape inference gives up on some models, and needs sympy
        quant_pre_process(str(model), str(ready), skip_symbolic_shape=True)
    quantize_static(
        str(ready),
        str(out),
        Feeds(feeds),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        **how,
    )


def rival(model, out, images, how):
    """The same on images. Seconds it took."""
    start = time.perf_counter()
    name = measure.session(model).get_inputs()[0].name
    quantize(model, out, ({name: images[i : i + 1]} for i in range(len(images))), how)
    return time.perf_counter() - start


def ours(a, out):
    command = [a.program, a.model, "-o", out, "--no-verify", "--quiet", "--json", "-", *measure.program_arguments(a)]
    command += ["--samples", a.calib_limit] if a.calib_limit else []
    start = time.perf_counter()
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measure.data_arguments(p)
    p.add_argument("eval", type=pathlib.Path, help="folder of images to judge on")
    p.add_argument("--eval-resize", type=int, default=0, help="short side of these before the crop; 0: as they are")
    p.add_argument("--limit", type=int, help="judge on this many images, spread evenly")
    p.add_argument("--calib-limit", type=int, help="calibrate on this many images, spread evenly")
    p.add_argument("--quantized", type=pathlib.Path, help="judge this file of ours instead of making one")
    p.add_argument("--skip", nargs="*", default=[], metavar="WORD", help="leave out rivals whose name has this word")
    p.add_argument("--keep", type=pathlib.Path, help="folder for the quantized files; default: a temporary one")
    p.add_argument("--json", type=pathlib.Path, help="write the figures here as well")
    a = p.parse_args()
    # The quantizer warns of each gamma and beta that has no second axis.
    logging.disable(logging.WARNING)
    side = measure.image_size(a.model)
    calib, _ = measure.photographs(a.calib, side, measure.short_side(a, side), a.mean, a.std, a.calib_limit)
    images, classes = measure.photographs(a.eval, side, a.eval_resize, a.mean, a.std, a.limit)
    with tempfile.TemporaryDirectory() as temporary:
        work = a.keep or pathlib.Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        files, seconds, failed = {"float": a.model}, {"float": None}, {}
        label = f"fqvit-opt, {a.recipe}"
        if a.quantized:
            files[label], seconds[label] = a.quantized, None
        else:
            files[label] = work / "ours.onnx"
            seconds[label] = ours(a, files[label])
        for k, (name, how) in enumerate(PEERS.items()):
            if any(word in name for word in a.skip):
                continue
            try:
                out = work / f"peer{k}.onnx"
                seconds[name] = rival(a.model, out, calib, dict(how))
                files[name] = out
            except Exception as e:  # a rival that fails is a result, too
                failed[name] = f"{type(e).__name__}: {e}".splitlines()[0]
        ms, ratio = measure.paired(list(files.values()), images[:1], a.runs)
        reference = measure.outputs(a.model, images, everything=False)
        figures = []
        for (name, path), t, r in zip(files.items(), ms, ratio):
            basic = reference if name == "float" else measure.outputs(path, images, everything=False)
            every = None if name == "float" else measure.outputs(path, images, everything=True)
            best = basic.argmax(-1)
            figures.append(
                {
                    "name": name,
                    "top1": None if classes is None else float((best == classes).mean()),
                    "agreement": float((best == reference.argmax(-1)).mean()),
                    "sqnr_basic_db": None if every is None else measure.sqnr(reference, basic),
                    "sqnr_all_db": None if every is None else measure.sqnr(reference, every),
                    "ms": t,
                    "ratio_to_float": r[1],
                    "ratio_quartiles": [r[0], r[2]],
                    "quantize_s": seconds[name],
                    "mb": measure.megabytes(path),
                }
            )
    show = lambda x, form: "-" if x is None else format(x, form)  # noqa: E731
    rows = [["", "top-1", "agreement", "SQNR basic", "SQNR all", "ms/image", "of float (quartiles)", "to quantize", "MB"]]
    for f in figures:
        rows.append(
            [
                f["name"],
                show(f["top1"], ".1%"),
                show(f["agreement"], ".1%"),
                show(f["sqnr_basic_db"], ".2f"),
                show(f["sqnr_all_db"], ".2f"),
                show(f["ms"], ".1f"),
                f"{f['ratio_to_float']:.2f} ({f['ratio_quartiles'][0]:.2f}-{f['ratio_quartiles'][1]:.2f})",
                show(f["quantize_s"], ".1f") + (" s" if f["quantize_s"] is not None else ""),
                show(f["mb"], ".2f"),
            ]
        )
    print(f"{a.model.name}: {len(calib)} images to calibrate on, {len(images)} to judge on\n")
    measure.table(rows)
    for name, why in failed.items():
        print(f"{name}: failed, {why}")
    if a.json:
        a.json.write_text(json.dumps({"model": str(a.model), "images": len(images), "rows": figures, "failed": failed}))


if __name__ == "__main__":
    main()
