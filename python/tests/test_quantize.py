from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import Digits

import fqvit_opt

LEAST = 0.93


@pytest.fixture(scope="module")
def result(digits: Digits) -> fqvit_opt.Result:
    return fqvit_opt.quantize(digits.model, digits.calibration, progress=False)


def quick(model: Any, calibration: Any, **more: Any) -> fqvit_opt.Result:
    """Weights rounded, nothing compared: for tests of how data come in."""
    return fqvit_opt.quantize(model, calibration, fast=True, verify=False, bench=False, progress=False, **more)


def test_an_array_reaches_the_accuracy(digits: Digits, result: fqvit_opt.Result) -> None:
    assert digits.accuracy(result.model) >= LEAST
    assert b"QuantizeLinear" in result.model
    assert len(result.model) < digits.model.stat().st_size


def test_a_generator_is_read_once_and_gives_the_same_bytes(digits: Digits, result: fqvit_opt.Result) -> None:
    reads = 0

    def batches() -> Iterator[dict[str, Any]]:
        nonlocal reads
        for i in range(0, len(digits.calibration), 7):
            reads += 1
            yield {digits.input: digits.calibration[i : i + 7]}

    r = fqvit_opt.quantize(digits.model, batches(), progress=False)
    assert reads == -(-len(digits.calibration) // 7)
    assert digits.accuracy(r.model) >= LEAST
    assert r.model == result.model


def test_the_command_line_writes_the_same_bytes(
    digits: Digits, result: fqvit_opt.Result, tmp_path: Path
) -> None:
    out = tmp_path / "q.onnx"
    command = [sys.executable, "-m", "fqvit_opt", str(digits.model), "-o", str(out), "-q"]
    subprocess.run([*command, "--calibrate", str(digits.calibration_file)], check=True, stdout=subprocess.DEVNULL)
    assert out.read_bytes() == result.model


def test_every_kind_of_model_is_the_same_model(digits: Digits) -> None:
    data = digits.model.read_bytes()
    proto = onnx.load_from_string(data)
    models = [quick(m, digits.calibration).model for m in (str(digits.model), data, bytearray(data), proto)]
    assert len(set(models)) == 1


class Reader:
    """As onnxruntime's CalibrationDataReader: a dict at a time, then None."""

    def __init__(self, digits: Digits) -> None:
        self.rest = iter([{digits.input: x[None]} for x in digits.calibration])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.rest, None)


class Tensor:
    """What of a torch tensor is looked at."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.dtype = "torch.float32"

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.array


def test_every_kind_of_data_is_the_same_data(digits: Digits, tmp_path: Path) -> None:
    x = digits.calibration
    labels = np.arange(len(x)) % 10
    file = tmp_path / "x.npy"
    np.save(file, x)
    kinds: dict[str, Any] = {
        "array": x,
        "column-major": np.asfortranarray(x),
        "dict": {digits.input: x},
        "reader": Reader(digits),
        "list of arrays": [x[:5], x[5:]],
        "file": file,
        "npz": str(digits.calibration_file),
        "loader": [(Tensor(x[:9]), Tensor(labels[:9])), (Tensor(x[9:]), Tensor(labels[9:]))],
        "dicts with labels and more": [{digits.input: x, "labels": labels, "name": "a", "other": np.zeros((3, 1))}],
        "samples without a batch axis": [(a, int(n)) for a, n in zip(x, labels)],
    }
    models = {name: quick(digits.model, data).model for name, data in kinds.items()}
    assert {name for name, m in models.items() if m != models["array"]} == set()


def test_labels_in_the_data_become_an_accuracy(digits: Digits) -> None:
    held = [(digits.images[:50], digits.labels[:50])]
    r = fqvit_opt.quantize(digits.model, digits.calibration, verify=held, fast=True, bench=False, progress=False)
    assert r.report.accuracy is not None and r.report.accuracy.top1_quantized >= 0.8
    assert r.report.data.verification_samples == r.report.accuracy.samples


def test_lists_of_samples_are_batches(digits: Digits, result: fqvit_opt.Result) -> None:
    x = digits.calibration
    batches = [[x[i], x[i + 1], x[i + 2][None]] for i in range(0, 24, 3)]
    def count(r: fqvit_opt.Result) -> int:
        return r.report.data.calibration_samples + r.report.data.verification_samples

    assert count(fqvit_opt.quantize(digits.model, batches, fast=True, bench=False)) == 24
    # The input, and something of its shape that follows it.
    with pytest.warns(UserWarning, match="not used"):
        assert count(fqvit_opt.quantize(digits.model, [[x[:16], x[16:32]]], fast=True, bench=False)) == 16
    labelled = fqvit_opt.verify(digits.model, digits.model, [[digits.images[:8], digits.labels[:8]]], bench=False)
    assert labelled.report.accuracy is not None and labelled.report.accuracy.samples == 8


def test_what_is_not_used_of_the_data_is_told(digits: Digits) -> None:
    x, y = digits.images[:16], digits.labels[:16]
    for data in ([(x, np.ones((16, 3), np.float32))], [(x, y, y)], {digits.input: x, "mask": y}):
        with pytest.warns(UserWarning, match="not used"):
            fqvit_opt.verify(digits.model, digits.model, data, bench=False)
    for labels in (y[:, None], y.tolist()):
        found = fqvit_opt.verify(digits.model, digits.model, [(x, labels)], bench=False)
        assert found.report.accuracy is not None and found.report.accuracy.samples == 16
    with pytest.raises(fqvit_opt.DataError, match="with a str in it"):
        fqvit_opt.verify(digits.model, digits.model, [(x, "cat")], bench=False)


def test_numpy_has_more_kinds_of_arrays(digits: Digits, result: fqvit_opt.Result) -> None:
    few = digits.calibration[:4]
    whole = fqvit_opt.quantize(digits.model, few, verify=False)
    view = np.ascontiguousarray(few).data
    assert fqvit_opt.quantize(digits.model, view, verify=np.False_).model == whole.model
    masked = np.ma.MaskedArray(few, mask=few > 0)
    with pytest.raises(fqvit_opt.DataError, match="masked"):
        fqvit_opt.quantize(digits.model, masked, verify=False)


def test_the_report_is_typed(digits: Digits, result: fqvit_opt.Result) -> None:
    r = result.report
    assert r.sqnr_db is not None and 6 < r.sqnr_db < 999
    assert r.agreement is not None and r.agreement >= 0.9
    assert r.size == len(result.model)
    assert r.size_ratio is not None and 0 < r.size_ratio < 1
    assert r.verdict == "PASS" and r.passed and all(isinstance(c, fqvit_opt.Check) for c in r.checks)
    assert r.coverage.covered > 0 and r.blocks and r.worst(3)[0].sqnr_db == min(b.sqnr_db for b in r.blocks)
    assert r.speed is not None and r.speed.float_ms > 0
    assert not r.data.synthetic and r.data.calibration_samples + r.data.verification_samples == len(digits.calibration)
    assert "PASS" in repr(result) and r.raw["version"] >= 1
    assert r.outputs[0].kind == {"classes": {"axis": 1}} and r.worst(1)[0].part is not None
    # Everything that is in the JSON form has a field, or is a property (`verdict`).
    known = {f.name for f in dataclasses.fields(r)}
    assert set(r.raw) - known == {"version", "verdict"}, set(r.raw) - known
    assert r.raw["verdict"] == r.verdict.lower()
    assert r.closer is not None and r.channels


def test_the_page_stands_in_a_notebook(result: fqvit_opt.Result) -> None:
    assert result.html.startswith("<!") and "<iframe" in result._repr_html_()


def test_a_plan_goes_round(digits: Digits, result: fqvit_opt.Result) -> None:
    assert result.plan is not None and "activations" in result.plan
    again = fqvit_opt.quantize(digits.model, digits.calibration, plan=result.plan, verify=False, progress=False)
    assert again.model == result.model and again.report.recipe == "fq-vit"
    with pytest.raises(fqvit_opt.PlanError, match="--recipe cpu: plan given was made by recipe `fq-vit`"):
        fqvit_opt.quantize(digits.model, digits.calibration, plan=result.plan, recipe="cpu", progress=False)


def test_saving_is_safe(digits: Digits, result: fqvit_opt.Result, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    result.save(out)
    assert out.read_bytes() == result.model
    assert [p.name for p in tmp_path.iterdir()] == ["q.onnx"]
    mine = tmp_path / "mine.onnx"
    mine.write_bytes(digits.model.read_bytes())
    before = mine.read_bytes()
    r = quick(mine, digits.calibration)
    with pytest.raises(fqvit_opt.OutputError, match="same file"):
        r.save(mine)
    assert mine.read_bytes() == before
    with pytest.raises(fqvit_opt.OutputError, match="nowhere"):
        result.save(tmp_path / "nowhere" / "q.onnx")


def test_saving_knows_its_inputs_from_any_folder(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    shutil.copy(digits.model, here / "m.onnx")
    shutil.copy(digits.calibration_file, here / "c.npz")
    shutil.copy(digits.model, there / "m.onnx")
    monkeypatch.chdir(here)
    r = fqvit_opt.quantize("m.onnx", "c.npz", fast=True, verify=False)
    monkeypatch.chdir(there)
    for name in ("m.onnx", "c.npz"):
        before = (here / name).read_bytes()
        with pytest.raises(fqvit_opt.OutputError):
            r.save(here / name)
        with pytest.raises(fqvit_opt.OutputError):
            r.save(f"../here/{name}")
        assert (here / name).read_bytes() == before
    # Of the same name, and not what was read.
    r.save("m.onnx")
    assert (there / "m.onnx").read_bytes() == r.model


def test_without_data_a_note_says_so(digits: Digits) -> None:
    said: list[str] = []
    r = fqvit_opt.quantize(
        digits.model, fast=True, bench=False, progress=lambda what, done, of: said.append(what) if of == 0 else None
    )
    assert r.report.data.synthetic and any("synthetic" in s for s in said)


def test_progress_counts_every_stage(digits: Digits) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    fqvit_opt.quantize(
        digits.model,
        digits.calibration[:16],
        bench=False,
        progress=lambda what, done, of: seen.setdefault(what, []).append((done, of)),
    )
    assert {"calibrating", "fitting weights", "verifying"} <= set(seen)
    for steps in seen.values():
        assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1]


def test_verify_compares_two_files(digits: Digits, result: fqvit_opt.Result) -> None:
    c = fqvit_opt.verify(digits.model, result.model, {digits.input: digits.images, "labels": digits.labels}, bench=False)
    assert c.report.accuracy is not None and c.report.accuracy.top1_quantized >= LEAST
    same = fqvit_opt.verify(digits.model, digits.model, digits.images[:4], bench=False)
    assert same.report.sqnr_db == 999
    asked = fqvit_opt.verify(digits.model, result.model, digits.images, bench=False, min_sqnr=200.0)
    assert asked.report.verdict == "FAIL"


def test_parts_stay_in_float(digits: Digits) -> None:
    r = quick(digits.model, digits.calibration, keep_float=["head"])
    assert any("kept in float: head" in n for n in r.report.notes)


def test_a_file_of_a_size_has_parts_in_four_bits(digits: Digits) -> None:
    whole = quick(digits.model, digits.calibration, keep_opset=False)
    size = len(whole.model) - 2000
    r = quick(digits.model, digits.calibration, target_size=size)
    assert len(r.model) == r.report.quantized.bytes <= size
    assert {"4-bit", "recipe"} >= {p.precision for p in r.report.parts} >= {"4-bit"}
    with pytest.raises(fqvit_opt.PlanError, match="out of reach"):
        quick(digits.model, digits.calibration, target_size="1kB")
    r = quick(digits.model, digits.calibration, target_size="100%", up_to="16-bit")
    assert "16-bit" in {p.precision for p in r.report.parts} <= {"recipe", "16-bit"}
    with pytest.raises(ValueError, match="there are recipe, 16-bit, float"):
        quick(digits.model, digits.calibration, target_size="100%", up_to="4-bit")
    with pytest.raises(ValueError, match="give one of these"):
        quick(digits.model, digits.calibration, up_to="float")


def test_recipes_are_listed_and_used(digits: Digits) -> None:
    names = [r.name for r in fqvit_opt.recipes()]
    assert "fq-vit" in names and "none" in names
    same = fqvit_opt.quantize(digits.model, recipe="none", progress=False)
    assert same.plan is None and same.report.verdict == "-"
    integer = quick(digits.model, digits.calibration, target="integer")
    assert b"MatMulInteger" in integer.model
    ort.InferenceSession(integer.model, providers=["CPUExecutionProvider"])


def test_inspect_tells_what_is_recognised(digits: Digits) -> None:
    i = fqvit_opt.inspect(digits.model)
    assert sum(i.operators.values()) == i.nodes and i.attentions and i.linears > 0
    assert i.layer_norms > 0 and sum(i.as_written["LayerNorm"].values()) > 0
    said = subprocess.run(
        [sys.executable, "-m", "fqvit_opt", "inspect", str(digits.model)], capture_output=True, text=True, check=True
    )
    assert f"{len(i.attentions)} attentions, {i.layer_norms} LayerNorms" in said.stdout


def test_onnxruntime_is_asked(digits: Digits) -> None:
    r = fqvit_opt.quantize(digits.model, digits.calibration, judge="onnxruntime", fast=True, bench=False, progress=False)
    judged = r.report.judged
    assert judged is not None and judged.version == ort.__version__
    assert [x.level for x in judged.levels] == ["basic", "all"] and judged.rounds >= 3 and judged.ratio > 0
    # The same samples, so nearly the same figure as in tract.
    (there,), (here,) = judged.levels[0].outputs, r.report.outputs
    assert abs(there.sqnr_db - here.sqnr_db) < 1.0 and there.samples == here.samples
    assert "sqnr_db in onnxruntime at all" in [c.name for c in r.report.checks]
    assert "onnxruntime" in r._repr_html_() and f"onnxruntime {ort.__version__}" in str(r.report)


def test_what_onnxruntime_makes_itself_stands_beside(digits: Digits) -> None:
    how: dict[str, Any] = dict(fast=True, bench=False, progress=False)
    r = fqvit_opt.quantize(digits.model, digits.calibration, judge="onnxruntime", baseline=True, **how)
    judged = r.report.judged
    assert judged is not None and judged.baseline is not None, r.report.notes
    b = judged.baseline
    # Its file holds the same weights in 8 bits, and is judged on the same samples.
    assert 0.2 < b.bytes / r.report.float.bytes < 0.6 and 8 <= b.calibration_samples <= 48
    assert b.outputs[0].samples == r.report.outputs[0].samples and b.outputs[0].sqnr_db > 0 and b.ms > 0 and b.ratio > 0
    assert "Beside the default of onnxruntime" in r.html and "own static quantization" in r.html
    with pytest.raises(ValueError, match="judge='onnxruntime'"):
        fqvit_opt.quantize(digits.model, digits.calibration, baseline=True, **how)


def test_an_unknown_judge_is_refused(digits: Digits) -> None:
    with pytest.raises(ValueError, match="onnxruntime"):
        fqvit_opt.quantize(digits.model, digits.calibration, judge="tract")
