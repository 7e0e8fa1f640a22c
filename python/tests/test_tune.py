from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from conftest import Digits

import fqvit_opt


def test_the_first_recipe_that_is_enough_is_the_answer(digits: Digits) -> None:
    seen: list[fqvit_opt.Trial] = []
    t = fqvit_opt.tune(
        digits.model, digits.calibration, metric=digits.accuracy, at_least=0.93, show=seen.append, verify=False
    )
    assert t.reached and t.best.recipe == "fq-vit" and t.trials == seen == [t.best]
    assert digits.accuracy(t.model) == t.best.score >= 0.93
    whole = fqvit_opt.quantize(digits.model, digits.calibration, bench=False, progress=False)
    assert t.model == whole.model


@pytest.mark.parametrize("score", [float("inf"), -float("inf"), float("nan")])
def test_a_metric_must_be_finite(digits: Digits, score: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        fqvit_opt.tune(digits.model, digits.calibration[:8], metric=lambda _: score, at_least=0.5, show=False)


def floats(path: str) -> float:
    """A number that grows with what stays in float."""
    return -float(sum(n.op_type == "DequantizeLinear" for n in onnx.load(path).graph.node))


def test_as_few_steps_as_are_enough_are_taken(digits: Digits, tmp_path: Path) -> None:
    state = tmp_path / "search.json"
    measured: list[str] = []

    def metric(path: str) -> float:
        measured.append(path)
        return floats(path)

    def search(at_least: float) -> fqvit_opt.Tuned:
        return fqvit_opt.tune(
            digits.model,
            digits.calibration,
            metric=metric,
            at_least=at_least,
            recipes=["fq-vit"],
            state=state,
            show=False,
            verify=False,
        )

    missed = search(1.0)
    assert not missed.reached and missed.best.kept
    assert not Path(measured[-1]).exists()
    known, n = missed.trials, len(measured)
    assert known[0].parts == () and len({t.parts for t in known}) == len(known) == n
    # More and more parts are raised: 16 bits first where that pays, float in the end.
    raised = [len(t.parts) for t in known]
    assert raised == sorted(raised) and any(t.wide for t in known)
    # The same search again, and one for less: all is known, or is measured once.
    assert search(1.0).trials == known and len(measured) == n
    # With every part in float it would be the float model, which is no answer.
    whole = max(len(t.parts) for t in known)
    enough = max(t.score for t in known if len(t.parts) < whole)
    t = search(enough)
    assert t.reached and t.best.score >= enough
    assert all(o.score < enough for o in t.trials if len(o.parts) < len(t.best.parts))
    assert any("kept in float" in i["reason"] for i in t.report.islands)
    with pytest.raises(fqvit_opt.Error, match="another model"):
        fqvit_opt.tune(
            digits.model, digits.calibration[:9], metric=metric, at_least=1.0, state=state, show=False, verify=False
        )


def test_a_search_that_was_cut_short_goes_on(digits: Digits, tmp_path: Path) -> None:
    state = tmp_path / "search.json"
    calls = 0

    def metric(path: str) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return 0.0 if calls == 1 else 1.0

    def search() -> fqvit_opt.Tuned:
        return fqvit_opt.tune(
            digits.model, digits.calibration, metric=metric, at_least=0.5, state=state, show=False, verify=False
        )

    with pytest.raises(KeyboardInterrupt):
        search()
    t = search()
    assert t.best.recipe == "fq-vit-r16" and t.reached and calls == 3


def test_what_makes_no_sense_is_refused(digits: Digits) -> None:
    with pytest.raises(fqvit_opt.RecipeError, match="nothing to tune"):
        fqvit_opt.tune(digits.model, digits.calibration, metric=floats, at_least=1, recipes=["none"])
    with pytest.raises(ValueError, match="at_least"):
        fqvit_opt.tune(digits.model, digits.calibration, metric=floats, at_least=float("nan"))
    with pytest.raises(ValueError, match="nan"):
        fqvit_opt.tune(digits.model, digits.calibration[:16], metric=lambda _: float("nan"), at_least=1, show=False)
    with pytest.raises(TypeError, match="metric=5"):
        fqvit_opt.tune(digits.model, digits.calibration, metric=5, at_least=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one at least"):
        fqvit_opt.tune(digits.model, digits.calibration, metric=floats, at_least=1, recipes=[])


def test_the_report_says_what_it_was_calibrated_on(digits: Digits) -> None:
    found = fqvit_opt.tune(digits.model, digits.calibration[:16], metric=lambda _: 1.0, at_least=1, show=False)
    assert found.report.data.calibration_samples == 14 and "arrays" in found.report.data.calibration


def test_a_state_that_can_not_be_kept_is_told_first(digits: Digits, tmp_path: Path) -> None:
    def metric(_: str) -> float:
        raise AssertionError("it was measured")

    with pytest.raises(fqvit_opt.OutputError, match="no-folder"):
        fqvit_opt.tune(digits.model, digits.calibration, metric=metric, at_least=1, state=tmp_path / "no-folder" / "s.json")
