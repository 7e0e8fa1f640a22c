from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Digits
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType

import fqvit_opt


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, digits: Digits) -> None:
        self.rest = iter([{digits.input: x[None]} for x in digits.calibration])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.rest, None)


def test_a_script_for_onnxruntime_needs_another_import_only(digits: Digits, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    result = fqvit_opt.quantize_static(
        digits.model,
        out,
        Reader(digits),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"WeightSymmetric": True},
    )
    assert out.read_bytes() == result.model
    assert digits.accuracy(str(out)) >= 0.93


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"quant_format": QuantFormat.QOperator}, "quant_format=QOperator"),
        ({"activation_type": QuantType.QInt16}, "fq-vit-r16"),
        ({"weight_type": QuantType.QInt16}, "weight_type=QInt16"),
        ({"calibrate_method": CalibrationMethod.Entropy}, "calibrate_method=Entropy"),
        ({"nodes_to_exclude": ["a"]}, "keep_float"),
        ({"nodes_to_quantize": ["a"]}, "keep_float"),
        ({"op_types_to_quantize": ["MatMul"]}, "linear-w8a8"),
        ({"use_external_data_format": True}, "2 GB"),
        ({"calibration_providers": ["CUDAExecutionProvider"]}, "runtime"),
        ({"calibration_cache_path": "c.json"}, "--stats"),
        ({"extra_options": {"ActivationSymmetric": True}}, "ActivationSymmetric"),
        ({"extra_options": {"ActivationSymmetric": [0, 0]}}, "ActivationSymmetric"),
        ({"extra_options": {"Unheard": 1}}, "Unheard"),
        ({"recipe": "fq-vit", "weight_type": QuantType.QInt4}, "not both"),
    ],
)
def test_what_can_not_be_followed_is_refused(digits: Digits, tmp_path: Path, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fqvit_opt.quantize_static(digits.model, tmp_path / "q.onnx", Reader(digits), **given)
    assert not list(tmp_path.iterdir())


def test_four_bits_take_their_recipe(digits: Digits, tmp_path: Path) -> None:
    r = fqvit_opt.quantize_static(digits.model, tmp_path / "q.onnx", digits.calibration, weight_type=QuantType.QInt4)
    assert r.report.recipe == "w4a8-int4"


def test_what_onnxruntime_does_anyway_may_be_said(digits: Digits, tmp_path: Path) -> None:
    fqvit_opt.quantize_static(
        digits.model,
        tmp_path / "q.onnx",
        Reader(digits),
        calibration_providers=["CPUExecutionProvider"],
        extra_options={"SmoothQuant": False, "MinimumRealRange": None, "TensorQuantOverrides": {}},
        verify=False,
    )
    assert (tmp_path / "q.onnx").is_file()
