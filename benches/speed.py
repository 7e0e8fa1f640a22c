"""How long compiling takes beside the forward passes it needs, and how fast the result runs beside the float model.

    python benches/speed.py MODEL CALIB --mean 0.5 --std 0.5 [--example target/release/examples/runtime_speed]

Prints ratios, and the figures behind them:
- compile: each stage of the program, and their sum, as multiples of the forward passes over the calibration images
  (samples x time of one run of the float model in tract, divided by the threads used);
- latency: quantized over float, in onnxruntime (all optimizations) and in tract, one thread, runs in turn.
Needs onnx, onnxruntime, numpy, pillow, the program and `cargo build --release --example runtime_speed`.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import tempfile
import time

import measure


def tract_ms(example, model, runs):
    """Processor milliseconds of one run on one thread, as tract rewrites the model."""
    said = subprocess.run([example, model, str(runs), "0"], check=True, capture_output=True, text=True).stdout
    first = next(line for line in said.splitlines() if line.startswith("optimized"))
    processor, clock = re.search(r"processor\s+([\d.naN]+)", first), re.search(r"run\s+([\d.]+) ms", first)
    ms = float(processor[1])
    return ms if ms == ms else float(clock[1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measure.data_arguments(p)
    p.add_argument("--example", type=pathlib.Path, default=pathlib.Path("target/release/examples/runtime_speed"))
    p.add_argument("--threads", type=int, default=1, help="for the program")
    p.add_argument("--rounds", type=int, default=3, help="rounds of float and quantized in tract")
    p.add_argument("--json", type=pathlib.Path)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = pathlib.Path(temporary) / "q.onnx"
        command = [a.program, a.model, "-o", out, "--quiet", "--json", "-", "--threads", a.threads, "--no-verify"]
        start = time.perf_counter()
        done = subprocess.run(
            [str(c) for c in [*command, *measure.program_arguments(a)]], check=True, stdout=subprocess.PIPE, text=True
        )
        wall = time.perf_counter() - start
        report = json.loads(done.stdout)
        samples = report["data"]["calibration_samples"]
        side = measure.image_size(a.model)
        image, _ = measure.photographs(a.calib, side, measure.short_side(a, side), a.mean, a.std, 1)
        ms, ratio = measure.paired([a.model, out], image, a.runs)
        pairs = [(tract_ms(a.example, a.model, 8), tract_ms(a.example, out, 8)) for _ in range(a.rounds)]
    tract = [statistics.median(t) for t in zip(*pairs)]
    forward = samples * tract[0] / 1e3 / a.threads
    stages = {t["stage"]: t["seconds"] for t in report["timings"]}
    print(f"{a.model.name}: {samples} calibration samples, {a.threads} thread(s); their forward passes take {forward:.1f} s\n")
    rows = [["compile", "seconds", "of the forward passes"]]
    rows += [[k, f"{s:.2f}", f"{s / forward:.2f}"] for k, s in stages.items()]
    rows.append(["the program, from start to end", f"{wall:.2f}", f"{wall / forward:.2f}"])
    measure.table(rows)
    print()
    tract_ratio = statistics.median(q / f for f, q in pairs)
    measure.table(
        [
            ["latency", "float ms", "quantized ms", "ratio"],
            ["onnxruntime", f"{ms[0]:.1f}", f"{ms[1]:.1f}", f"{ratio[1][1]:.2f} ({ratio[1][0]:.2f}-{ratio[1][2]:.2f})"],
            ["tract", f"{tract[0]:.1f}", f"{tract[1]:.1f}", f"{tract_ratio:.2f}"],
        ]
    )
    if a.json:
        figures = {
            "model": str(a.model),
            "forward_s": forward,
            "stages_s": stages,
            "wall_s": wall,
            "compile_over_forward": wall / forward,
            "onnxruntime_ratio": ratio[1][1],
            "tract_ratio": tract_ratio,
        }
        a.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
