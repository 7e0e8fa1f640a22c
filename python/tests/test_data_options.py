"""How data become inputs: the keywords that everything that takes data has in common."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Digits
from PIL import Image

import fqvit_opt

PROMPT = np.linspace(-1, 1, 10, dtype=np.float32)
LOOK: fqvit_opt.DataOptions = {"mean": 0.5, "std": [0.5], "fit": "squash", "preprocessor": "none"}


@pytest.fixture(scope="module")
def prompted(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits with two inputs beside the picture: `scores = logits * temperature + prompt`."""
    model = onnx.load(digits.model)
    g = model.graph
    g.node.append(onnx.helper.make_node("Mul", [g.output[0].name, "temperature"], ["cooled"]))
    g.node.append(onnx.helper.make_node("Add", ["cooled", "prompt"], ["scores"]))
    g.output[0].name = "scores"
    g.input.append(onnx.helper.make_tensor_value_info("prompt", onnx.TensorProto.FLOAT, ["batch", 10]))
    g.input.append(onnx.helper.make_tensor_value_info("temperature", onnx.TensorProto.FLOAT, []))
    path = tmp_path_factory.mktemp("prompted") / "prompted.onnx"
    onnx.save(model, path)
    return str(path)


@pytest.fixture(scope="module")
def pictures(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, x in enumerate(digits.images[:16, 0]):
        Image.fromarray((255 * (x - x.min()) / np.ptp(x)).astype(np.uint8)).save(folder / f"{i:02}.png")
    return folder


def how(fixed: dict[str, Any]) -> fqvit_opt.DataOptions:
    return {**LOOK, "fixed": fixed}


def quick(model: Any, data: Any, **more: Any) -> fqvit_opt.Result:
    return fqvit_opt.quantize(model, data, fast=True, bench=False, progress=False, **more)


def test_what_is_the_same_in_every_picture(prompted: str, pictures: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "prompt.npy", PROMPT[None])
    ways: list[Any] = [tmp_path / "prompt.npy", str(tmp_path / "prompt.npy"), PROMPT, PROMPT[None], list(map(float, PROMPT))]
    done = [quick(prompted, pictures, fixed={"prompt": p, "temperature": 0.5}, **LOOK) for p in ways]
    assert len({r.model for r in done}) == 1
    assert "`prompt` is prompt.npy, `temperature` is 0.5" in done[0].report.data.calibration
    assert "`prompt` is an array" in done[2].report.data.calibration
    for number in (0.5, np.float32(0.5), np.array(0.5), np.float16(0.5)):
        assert quick(prompted, pictures, fixed={"prompt": PROMPT, "temperature": number}, **LOOK).model == done[0].model
    # It is what the models are compared on, too: another temperature makes other scores.
    q = done[0].model
    given: dict[str, Any] = {"prompt": PROMPT, "temperature": 0.5}
    with_, other = (
        fqvit_opt.verify(prompted, q, pictures, bench=False, **how({**given, "temperature": t})).report.outputs[0]
        for t in (0.5, 2)
    )
    assert with_.sqnr_db != other.sqnr_db


def test_arrays_feed_what_is_not_fixed(prompted: str, digits: Digits) -> None:
    x, fixed = digits.calibration[:16], {"prompt": 0, "temperature": True}
    one = quick(prompted, x, fixed=fixed)
    named = quick(prompted, {digits.input: x}, fixed=fixed)
    whole = {digits.input: x, "prompt": np.zeros((len(x), 10), np.float32), "temperature": np.ones(len(x), np.float32)}
    assert one.model == named.model == quick(prompted, whole).model


def test_a_search_takes_it(prompted: str, pictures: Path) -> None:
    given = how({"prompt": PROMPT, "temperature": 0.5})
    t = fqvit_opt.tune(prompted, pictures, metric=lambda _: 1.0, at_least=1.0, show=False, verify=False, **given)
    whole = fqvit_opt.quantize(prompted, pictures, bench=False, progress=False, **given)
    assert t.reached and t.model == whole.model


@pytest.mark.parametrize(
    ("fixed", "says"),
    [
        ({"prompt": 1}, "temperature"),
        ({"prompt": 1, "temperature": 1, "mask": 1}, "no such input; it has input, prompt, temperature"),
        ({"prompt": np.ones((1, 9)), "temperature": 1}, re.escape("its shape is [1, 9]")),
        ({"prompt": np.ones((2, 10)), "temperature": 1}, "2 samples"),
        ({"prompt": np.full(10, np.nan), "temperature": 1}, "NaN"),
        ({"prompt": float("inf"), "temperature": 1}, "inf"),
        ({"prompt": "nowhere.npy", "temperature": 1}, "nowhere.npy"),
        ({"prompt": __file__, "temperature": 1}, "not an .npy file"),
        ({"prompt": np.array(["a"] * 10), "temperature": 1}, "no numbers"),
        ({"prompt": None, "temperature": 1}, "no numbers"),
        ({"prompt": 2**53 + 1, "temperature": 1}, "digits"),
        ({"prompt": 10**40, "temperature": 1}, "no numbers"),
    ],
)
def test_values_that_do_not_fit(prompted: str, pictures: Path, fixed: Any, says: str) -> None:
    with pytest.raises(fqvit_opt.DataError, match=says):
        quick(prompted, pictures, fixed=fixed, **LOOK)


def test_sizes_and_classes(digits: Digits, pictures: Path, tmp_path: Path) -> None:
    open_sizes = onnx.load(digits.model)
    for d in open_sizes.graph.input[0].type.tensor_type.shape.dim[2:]:
        d.dim_param = "side"
    (tmp_path / "classes").write_text("".join(f"{i:02}.png {c}\n" for i, c in enumerate(digits.labels[:16])))
    r = quick(open_sizes, pictures, shape={digits.input: (1, 1, 8, 8)}, labels=tmp_path / "classes", **LOOK)
    assert r.report.accuracy is not None
    assert r.report.outputs[0].sqnr_db == quick(digits.model, pictures, **LOOK).report.outputs[0].sqnr_db
    with pytest.raises(fqvit_opt.DataError, match="--shape"):
        quick(open_sizes, pictures, shape={"x": [1, 1, 8, 8]}, **LOOK)


def test_all_that_take_data_take_the_same_keywords(digits: Digits, pictures: Path, tmp_path: Path) -> None:
    for f in (fqvit_opt.quantize, fqvit_opt.verify, fqvit_opt.tune, fqvit_opt.quantize_static):
        last = list(inspect.signature(f).parameters.values())[-1]
        assert last.kind is inspect.Parameter.VAR_KEYWORD and "DataOptions" in str(last.annotation), f
        typing.get_type_hints(f)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"mean": "0.5"}, "mean='0.5': give a number"),
        ({"std": [[0.5]]}, "std"),
        ({"fixed": 3}, "fixed=3: give a dict"),
        ({"shape": [1, 1, 8, 8]}, "shape=.*: give a dict"),
        ({"shape": {digits.input: "1,1,8,8"}}, f"shape, {digits.input}: give whole numbers"),
        ({"resize": "8"}, "resize"),
    ]
    for wrong, says in refused:
        with pytest.raises(TypeError, match=says):
            quick(digits.model, pictures, **wrong)
    assert quick(digits.model, pictures, mean=np.float32(0.5), std=np.array([0.5])).report.data.calibration_samples == 14
    with pytest.raises(TypeError, match=r"quantize\(\) got an unexpected keyword argument 'means'"):
        fqvit_opt.quantize(digits.model, pictures, means=0.5)  # type: ignore[call-arg]
    out = tmp_path / "q.onnx"
    fqvit_opt.quantize_static(digits.model, out, pictures, progress=False, **LOOK)
    assert out.read_bytes() == fqvit_opt.quantize(digits.model, pictures, progress=False, **LOOK).model
    assert set(fqvit_opt.DataOptions.__annotations__) >= {"preset", "mean", "fixed", "shape", "labels", "seed"}
