from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
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


def test_from_torch_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the export, which has a model of timm in its place."""
    shape = (3, 32, 32)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    config = {"input_size": shape, "mean": mean, "std": std, "crop_pct": 0.9}
    exported = onnx.load(str(ROOT / "testdata/zoo/timm_vit-fused.torchscript.dynbatch.opset17.onnx"))

    def export(
        model: Any,
        args: tuple[Any, ...],
        f: str,
        *,
        input_names: list[str],
        output_names: list[str],
        dynamic_axes: dict[str, dict[int, str]],
        opset_version: int,
        dynamo: bool,
    ) -> None:
        assert [a.shape for a in args] == [(1, *shape)] and set(dynamic_axes) == {*input_names, *output_names}
        assert opset_version == exported.opset_import[0].version and not dynamo
        g = exported.graph
        names = {g.input[0].name: input_names[0], g.output[0].name: output_names[0]}
        for value in [g.input[0], g.output[0]]:
            value.name = names[value.name]
        for node in g.node:
            node.input[:] = [names.get(n, n) for n in node.input]
            node.output[:] = [names.get(n, n) for n in node.output]
        onnx.save(exported, f)

    model = SimpleNamespace()
    model.eval = lambda: model
    torch, timm = ModuleType("torch"), ModuleType("timm")
    vars(torch).update(zeros=lambda *size: np.zeros(size, np.float32), onnx=SimpleNamespace(export=export))
    data = SimpleNamespace(resolve_model_data_config=lambda m: config)
    vars(timm).update(create_model=lambda name, pretrained: model, data=data)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.delitem(sys.modules, "from_torch", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    photos = tmp_path / "photos"
    photos.mkdir()
    for picture in ["rgb.jpg", "rgb.png", "progressive.jpg", "tall.png"]:
        shutil.copy(ROOT / "testdata/images" / picture, photos)
    from from_torch import main

    result = main(str(photos), "vit")
    assert result.report.sqnr_db > 6
    q = onnx.load(str(tmp_path / "vit.q.onnx"))
    assert [v.name for v in [*q.graph.input, *q.graph.output]] == ["image", "logits"]
    del sys.modules["from_torch"]
