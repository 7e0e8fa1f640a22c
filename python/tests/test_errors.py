from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Digits

import fqvit_opt


def quantize(model: Any, calibration: Any = None, **more: Any) -> fqvit_opt.Result:
    return fqvit_opt.quantize(model, calibration, **{"fast": True, "verify": False, "progress": False, **more})


def test_every_error_is_one_of_the_module() -> None:
    for name in ("ModelError", "DataError", "RecipeError", "PlanError", "OutputError"):
        assert issubclass(getattr(fqvit_opt, name), fqvit_opt.Error), name
        assert getattr(fqvit_opt, name).__module__ == "fqvit_opt"


@pytest.mark.parametrize(
    ("model", "says"),
    [("nowhere.onnx", "nowhere.onnx"), (b"no model", "the model"), (b"", "empty"), (3, "int is no model")],
)
def test_what_is_no_model(model: Any, says: str) -> None:
    with pytest.raises(fqvit_opt.ModelError, match=says):
        quantize(model)


def test_a_quantized_model_is_refused(digits: Digits) -> None:
    q = quantize(digits.model, digits.calibration).model
    with pytest.raises(fqvit_opt.ModelError, match="quantized already"):
        quantize(q, digits.calibration)


def bad(digits: Digits) -> dict[str, tuple[Any, str]]:
    x = digits.calibration
    nan = x.copy()
    nan[3].flat[0] = np.nan
    spent = iter([x])
    list(spent)
    return {
        "no such folder": ("nowhere/", "nowhere"),
        "wrong sizes": (x[..., :-1], "its shape is"),
        "too few axes": (x.reshape(-1), "its shape is"),
        "another name": ({"pixels": x}, f'no array named "{digits.input}"'),
        "not a number": (nan, "NaN"),
        "batches unlike": ([x[:2], x[2:4].astype(np.float64)], "<f8"),
        "no batch": ([], "no batch"),
        "read before": (spent, "no batch"),
        "text": ([np.array(["a"])], "no numbers"),
        "a number": (3, "int is none of the kinds"),
        "an object": ([object()], "this one is object"),
    }


@pytest.mark.parametrize("kind", list(bad(Digits())))
def test_what_are_no_samples(digits: Digits, kind: str) -> None:
    data, says = bad(digits)[kind]
    with pytest.raises(fqvit_opt.DataError, match=says):
        quantize(digits.model, data)


def test_an_error_of_the_iterator_comes_through(digits: Digits) -> None:
    def broken() -> Any:
        yield digits.calibration[:2]
        raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        quantize(digits.model, broken())


def test_an_error_of_the_callback_comes_through(digits: Digits) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no more paper")

    with pytest.raises(RuntimeError, match="no more paper"):
        quantize(digits.model, digits.calibration, progress=broken)


def test_recipes_and_plans(digits: Digits) -> None:
    with pytest.raises(fqvit_opt.RecipeError, match="there is no recipe `nonsense`; shipped are"):
        quantize(digits.model, recipe="nonsense")
    with pytest.raises(fqvit_opt.PlanError, match="plan"):
        quantize(digits.model, plan="- no plan")
    plan = quantize(digits.model, digits.calibration).plan
    assert plan is not None
    other = [line if not line.startswith("model:") else "model: '0000000000000000'" for line in plan.splitlines()]
    with pytest.raises(fqvit_opt.PlanError, match="0000000000000000"):
        quantize(digits.model, digits.calibration, plan="\n".join(other))
    with pytest.raises(fqvit_opt.PlanError, match="nothing in this model is called `tail`"):
        quantize(digits.model, digits.calibration, keep_float=["tail"])


@pytest.mark.parametrize(
    "given", [{"target": "gpu"}, {"preset": "none"}, {"by": "colour"}, {"keep_float": 1, "target_sqnr": 9.0}, {"keep_float": 1, "target_size": "1MB"}]
)
def test_values_that_there_are_not(digits: Digits, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="there (is|are)|not both"):
        quantize(digits.model, digits.calibration, **given)
    with pytest.raises(ValueError, match="target_size: write it as 4.5MB"):
        quantize(digits.model, digits.calibration, target_size="small")
    with pytest.raises(TypeError):
        quantize(digits.model, digits.calibration, no_such_option=True)


def test_the_words_are_those_of_the_command_line(digits: Digits, tmp_path: Path) -> None:
    with pytest.raises(fqvit_opt.RecipeError) as e:
        quantize(digits.model, recipe="nonsense")
    command = [sys.executable, "-m", "fqvit_opt", str(digits.model), "-o", str(tmp_path / "q.onnx")]
    said = subprocess.run([*command, "--recipe", "nonsense"], capture_output=True, text=True)
    assert said.returncode == 1 and str(e.value) in said.stderr


def test_files_that_were_read_are_never_written_over(digits: Digits, tmp_path: Path) -> None:
    data, other = tmp_path / "c.npz", tmp_path / "v.npz"
    np.savez(data, **{digits.input: digits.calibration[:24]})  # type: ignore[arg-type]
    np.savez(other, **{digits.input: digits.images[:8]})  # type: ignore[arg-type]
    before = data.read_bytes(), other.read_bytes()
    made = fqvit_opt.quantize(digits.model, data, verify=other, fast=True, bench=False)
    for path in (data, other, digits.model):
        with pytest.raises(fqvit_opt.OutputError, match="are the same file"):
            made.save(path)
    with pytest.raises(fqvit_opt.OutputError, match="are the same file"):
        fqvit_opt.quantize_static(digits.model, data, data)
    # Before the samples are read.
    with pytest.raises(fqvit_opt.OutputError, match="no-folder"):
        fqvit_opt.quantize_static(digits.model, tmp_path / "no-folder" / "x.onnx", unread())
    assert (data.read_bytes(), other.read_bytes()) == before


def unread() -> Iterator[Any]:
    raise AssertionError("a sample was asked for")
    yield


@pytest.mark.parametrize(
    "options",
    [
        dict(verify=False, judge="onnxruntime"),
        dict(verify=False, min_sqnr=5),
        dict(min_agreement=99),
        dict(min_agreement=-1),
        dict(min_sqnr=float("nan")),
        dict(target_sqnr=float("inf")),
        dict(keep_float=-1),
        dict(target="gpu"),
        dict(keep_float=1.5),
    ],
)
def test_options_that_say_nothing_are_refused(digits: Digits, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(options)[-1]):
        fqvit_opt.quantize(digits.model, unread(), **options)


def test_what_a_result_is_not(digits: Digits) -> None:
    made = fqvit_opt.quantize(digits.model, digits.calibration[:16], verify=False, fast=True)
    assert copy.deepcopy(made) is made
    with pytest.raises(TypeError, match="save"):
        pickle.dumps(made)
    with pytest.raises(ValueError, match="name of the file"):
        made.save("")
