#!/usr/bin/env python3
"""Judges recipes on calibration data alone, so that nothing is chosen on the data a result is judged on.

    benches/folds.py PROGRAM MODEL FOLDER PRESET RECIPE [RECIPE ...]

The pictures of FOLDER are divided into four by their place in the sorted list; the model is quantized on three quarters and
compared with the float model on the fourth, four times over. Prints for each recipe the SQNR of the logits for each
quarter and pooled (from the mean of the noise shares), in dB, and the share of pictures on which both name the same class.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

QUARTERS = 4


def main() -> None:
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    program, model, folder, preset, *recipes = sys.argv[1:]
    pictures = sorted(p for p in Path(folder).resolve().iterdir() if p.suffix.lower() in (".jpeg", ".jpg", ".png"))
    with tempfile.TemporaryDirectory() as tmp:
        work = Path(tmp)
        for k in range(QUARTERS):
            for part in ("rest", "held"):
                (work / f"{part}{k}").mkdir()
            for i, p in enumerate(pictures):
                (work / f"{'held' if i % QUARTERS == k else 'rest'}{k}" / p.name).symlink_to(p)
        for recipe in recipes:
            rows = []
            for k in range(QUARTERS):
                report = work / "report.json"
                command = [
                    program, model, "-o", work / "q.onnx", "--recipe", recipe, "--preset", preset,
                    "--calibrate", work / f"rest{k}", "--verify", work / f"held{k}", "--json", report,
                ]
                run = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
                # 2: written, but a threshold of the recipe was missed.
                if run.returncode not in (0, 2):
                    sys.exit(run.stderr)
                rows.append(json.loads(report.read_text())["outputs"][0])
            each = " ".join(f"{r['sqnr_db']:.2f}" for r in rows)
            noise = sum(10 ** (-r["sqnr_db"] / 10) for r in rows) / QUARTERS
            agree = sum(r["top1_agreement"] for r in rows) / QUARTERS
            print(f"{recipe}: {each}; pooled {-10 * math.log10(noise):.2f} dB, agreement {agree:.3f}", flush=True)


if __name__ == "__main__":
    main()
