from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "python" / "examples"


def run(script: str, folder: Path) -> str:
    # The repository's files, and a folder of one's own to write into.
    (folder / "testdata").symlink_to(ROOT / "testdata")
    (folder / "example.py").write_text(script)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "example.py"], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_digits(tmp_path: Path) -> None:
    out = run((EXAMPLES / "digits.py").read_text(), tmp_path)
    accuracy = re.search(r"accuracy in onnxruntime: ([0-9.]+)", out)
    assert out.startswith("PASS") and accuracy and float(accuracy[1]) >= 0.93, out
    assert (tmp_path / "digits.q.onnx").is_file()


def blocks() -> list[str]:
    text = (ROOT / "docs" / "python.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_what_the_documentation_says_runs(tmp_path: Path) -> None:
    """All blocks in their order, as one script."""
    assert len(blocks()) >= 5
    run("\n".join(blocks()), tmp_path)


@pytest.mark.parametrize("kept", [p.name for p in EXAMPLES.glob("*.py")])
def test_examples_compile(kept: str) -> None:
    compile((EXAMPLES / kept).read_text(), kept, "exec")


def test_from_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(16):
        image.fromarray(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(photos / f"{i}.png")
    from from_torch import main

    assert main(str(photos), pretrained=False).report.sqnr_db > 6
