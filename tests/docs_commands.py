#!/usr/bin/env python3
"""Runs every command that README and docs show, on the digits, in a temporary folder.

Blocks fenced as `sh` or `console` and commands in backquotes that begin with `fqvit-opt` are run line by line. What cannot
be run here has a reason in NOT_RUN; what needs the network or a person is replaced by what INSTEAD says. A line that is neither
is a failure, and so is a flag in backquotes that no command has.

Usage: docs_commands.py fqvit-opt
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

#: Commands that are not run, each with the reason.
NOT_RUN = {
    r"cargo (build|test|install|run --example) ?.*": "the checks build, install and test by themselves",
    r"FQVIT_BLESS=1 .*": "it rewrites what tests expect",
    r"\.ci/run.*": "it is what runs this",
    r"pip install .*": "the checks build the wheel and install it",
    r"docker (build|run) .*": "there is no daemon where the checks run",
    r"benches/.*|.*python3? benches/.*": "a measurement of an hour, not a command for users",
    r"fqvit-opt explain model\.onnx --rule hardswish": "the rule is one that the page teaches to write",
    r"maturin .*": "the checks build the wheel and install it",
}

#: What stands for the network and for people.
INSTEAD = [
    (r"curl -s https://example\.org/(\S+)", r"cat \1"),
    (r"^\$EDITOR ", "true "),
    (r"^cargo run --release -- ", "fqvit-opt "),
    (r"python eval\.py ", "fqvit-eval "),
]

#: Commands that are whole without a model.
WHOLE = {"recipes", "passes", "completions", "man"}

#: Words of signatures, and what to put in their place.
PLACES = {
    "MODEL": "vit.onnx",
    "OUT": "out.onnx",
    "FLOAT": "vit.onnx",
    "QUANT": "vit.q.onnx",
    "DIR|FILE": "photos",
    "FILE": "made.file",
    "DIR": "photos",
    "ID": "layernorm",
    "PASS": "clean-up",
    "A": "vit.onnx",
    "B": "vit.q.onnx",
}

FIRST = {"fqvit-opt", "cat", "true", "mkdir", "source"}

#: Flags of other programs that the text mentions.
FOREIGN = {
    "--release", "--test", "--lib", "--path", "--example", "--open", "--all-targets", "--no-default-features", "--bless",
    "--features", "--host-cpu", "--seconds",
}  # fmt: skip


def place(folder: pathlib.Path) -> None:
    """What the commands name."""
    digits = ROOT / "testdata/digits"
    shutil.copy(digits / "digits_vit.onnx", folder / "vit.onnx")
    shutil.copytree(digits, folder / "testdata/digits")
    (folder / "target").mkdir()
    calib, held = np.load(digits / "digits_calib.npz"), np.load(digits / "digits_eval.npz")
    np.savez(folder / "data.npz", input=calib["input"][:24])
    np.savez(folder / "test.npz", input=held["input"][:16], labels=held["labels"][:16])
    for name, many in (("photos", 12), ("other-photos", 6)):
        (folder / name).mkdir()
        for i in range(many):
            x = held["input"][i, 0]
            level = (255 * (x - x.min()) / max(float(np.ptp(x)), 1e-6)).astype(np.uint8)
            Image.fromarray(level).resize((16, 16)).save(folder / name / f"{i:02}.png")
    (folder / "labels.txt").write_text("".join(f"{i:02}.png {held['labels'][i]}\n" for i in range(12)))
    config = '{"image_mean": [0.5], "image_std": [0.5], "size": {"height": 8, "width": 8}, "resample": 2}'
    (folder / "preprocessor_config.json").write_text(config)
    prompted(folder)
    (folder / "other.json").write_text(config)


def prompted(folder: pathlib.Path) -> None:
    """The digits with two inputs beside the picture."""
    model = onnx.load(folder / "vit.onnx")
    g = model.graph
    logits = g.output[0].name
    g.node.append(onnx.helper.make_node("Mul", [logits, "temperature"], ["cooled"]))
    g.node.append(onnx.helper.make_node("Add", ["cooled", "prompt"], ["scores"]))
    g.output[0].name = "scores"
    g.input.append(onnx.helper.make_tensor_value_info("prompt", onnx.TensorProto.FLOAT, ["batch", 10]))
    g.input.append(onnx.helper.make_tensor_value_info("temperature", onnx.TensorProto.FLOAT, []))
    onnx.save(model, folder / "prompted.onnx")
    np.save(folder / "prompt.npy", np.linspace(-1, 1, 10, dtype=np.float32)[None])


def fenced(text: str) -> list[tuple[int, str]]:
    """Lines of the blocks, with their numbers; those that end with a backslash joined, comments and prompts away."""
    out: list[tuple[int, str]] = []
    inside, joined = False, ""
    for n, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            inside = not inside and line[3:].strip() in ("sh", "console", "bash")
            prompt = line[3:].strip() == "console"
            continue
        if not inside or (prompt and not line.startswith("$ ")):
            continue
        line = joined + re.sub(r"\s+# .*$|^#.*$", "", line.removeprefix("$ ")).strip()
        joined = line[:-1] if line.endswith("\\") else ""
        if line and not joined:
            out.append((n, line))
    return out


def in_backquotes(text: str) -> list[tuple[int, str]]:
    """Commands in running text, as far as they are whole: no `...`, and the name of a model where one is needed."""
    found = []
    for n, line in enumerate(text.splitlines(), 1):
        for code in re.findall(r"`(fqvit-opt [^`]+)`", line):
            code = code.replace("\\|", "|")
            if "..." in code:
                continue
            words = [PLACES.get(w, w) for w in code.replace("passes ID", "passes PASS").split()]
            if words[1] in WHOLE or any(w.endswith(".onnx") for w in words):
                found.append((n, " ".join(words)))
    return found


def flags(text: str) -> list[tuple[int, str]]:
    lines = enumerate(text.splitlines(), 1)
    return [(n, f) for n, line in lines for code in re.findall(r"`([^`]+)`", line) for f in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", code)]


def main() -> int:
    program = pathlib.Path(sys.argv[1]).resolve()
    failed: list[str] = []
    ran = skipped = 0
    with tempfile.TemporaryDirectory() as t:
        folder = pathlib.Path(t)
        place(folder)
        tools = folder / ".bin"
        tools.mkdir()
        (tools / "fqvit-opt").symlink_to(program)
        (tools / "fqvit-eval").write_text("#!/bin/sh\necho 0.97\n")
        (tools / "fqvit-eval").chmod(0o755)
        python = pathlib.Path(sys.executable).parent  # the Python that has onnxruntime
        env = {**os.environ, "PATH": f"{tools}:{python}:{os.environ['PATH']}"}

        def shell(line: str) -> subprocess.CompletedProcess[str]:
            call = ["bash", "-o", "pipefail", "-c", line]
            return subprocess.run(call, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)

        # What many commands read.
        made = shell("fqvit-opt vit.onnx -o vit.q.onnx --calibrate data.npz --fast --no-verify -q")
        if made.returncode != 0:
            print(made.stderr)
            return 1
        names = re.findall(r"^  ([a-z]+)  ", shell("fqvit-opt --help").stdout, re.M)
        help_of = " ".join(shell(f"fqvit-opt {c} --help").stdout for c in ["", *names])
        known = set(re.findall(r"--[a-z][a-z0-9-]+", help_of))
        for page in PAGES:
            text = page.read_text()
            name = page.relative_to(ROOT)
            for n, flag in flags(text):
                if flag not in known and flag not in FOREIGN:
                    failed.append(f"{name}:{n}: no command has {flag}")
            for n, line in [*fenced(text), *in_backquotes(text)]:
                if any(re.fullmatch(pattern, line) for pattern in NOT_RUN):
                    skipped += 1
                    continue
                for pattern, with_ in INSTEAD:
                    line = re.sub(pattern, with_, line)
                if line.split()[0] not in FIRST:
                    failed.append(f"{name}:{n}: neither run nor with a reason in NOT_RUN: {line}")
                    continue
                # A file that a signature names is there for none of them, or for all.
                (folder / "made.file").unlink(missing_ok=True)
                done = shell(line)
                ran += 1
                # 2: written, but a threshold was missed, which made-up pictures may well do.
                fine = {0, 1} if " diff " in line else {0, 2}
                if done.returncode not in fine:
                    failed.append(f"{name}:{n}: {line}\n    exit status {done.returncode}: {done.stderr.strip()[-400:]}")
    for f in failed:
        print(f"FAILED {f}")
    print(f"commands of the documentation: {ran} run, {skipped} with a reason not to, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
