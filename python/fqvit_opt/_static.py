"""The call that people who come from onnxruntime have in their scripts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union, cast

import numpy as np

from . import _native
from ._api import Model, Result, _named_file, load, quantize, samples_of
from ._data import Data, DataOptions, Unpack, refuse_unknown
from ._progress import Progress

#: What onnxruntime does if nothing is said: to say it changes nothing here either.
_DEFAULTS: dict[str, Any] = {
    "ActivationSymmetric": False,
    "WeightSymmetric": True,
    "EnableSubgraph": False,
    "ForceQuantizeNoInputCheck": False,
    "MatMulConstBOnly": False,
    "AddQDQPairToWeight": False,
    "DedicatedQDQPair": False,
    "CalibTensorRangeSymmetric": False,
    "CalibMovingAverage": False,
    "CalibStridedMinMax": None,
    "CalibMaxIntermediateOutputs": None,
    "MinimumRealRange": None,
    "OpTypesToExcludeOutputQuantization": [],
    "QDQDisableWeightAdjustForInt32Bias": False,
    "QDQKeepRemovableActivations": False,
    "QDQOpTypePerChannelSupportToAxis": {},
    "SmoothQuant": False,
    "TensorQuantOverrides": {},
    "UseQDQContribOps": False,
}

#: Where onnxruntime calibrates if nothing is said.
_ON_THE_CPU = ["CPUExecutionProvider"]


def quantize_static(
    model_input: Model,
    model_output: Union[str, "os.PathLike[str]"],
    calibration_data_reader: Optional[Data] = None,
    quant_format: Any = "QDQ",
    op_types_to_quantize: Optional[Sequence[str]] = None,
    per_channel: bool = False,
    reduce_range: bool = False,
    activation_type: Any = "QInt8",
    weight_type: Any = "QInt8",
    nodes_to_quantize: Optional[Sequence[str]] = None,
    nodes_to_exclude: Optional[Sequence[str]] = None,
    use_external_data_format: bool = False,
    calibrate_method: Any = "MinMax",
    calibration_providers: Optional[Sequence[Any]] = None,
    extra_options: Optional[Mapping[str, Any]] = None,
    calibration_cache_path: Union[str, "os.PathLike[str]", None] = None,
    *,
    recipe: Union[str, "os.PathLike[str]", None] = None,
    target: Optional[str] = None,
    verify: Union[Data, bool, None] = None,
    progress: Progress = None,
    **how: Unpack[DataOptions],
) -> Result:
    """As ``onnxruntime.quantization.quantize_static``: quantizes ``model_input`` into the file ``model_output``.

    The recipe decides what onnxruntime leaves to these arguments: weights have a scale per channel whatever ``per_channel``
    says, never saturate in 16 bits whatever ``reduce_range`` says, and the range of each activation is the one of least
    error at its consumer. ``QInt8`` and ``QUInt8`` both say 8 bits: activations are uint8, and weights int8 with the zero point 0,
    or uint8 where int8 could saturate. ``weight_type=QInt4`` takes recipe ``w4a8-int4``. An argument that cannot be followed is refused
    with a :class:`ValueError` that says what to use instead; none is ignored. Unlike onnxruntime's, the call returns
    something: the :class:`Result`. Keywords that onnxruntime does not know are those of :func:`quantize`.
    """
    refuse_unknown("quantize_static", how)
    _one_of("quant_format", quant_format, {"QDQ"}, "files hold QuantizeLinear and DequantizeLinear")
    _one_of(
        "activation_type",
        activation_type,
        {"QInt8", "QUInt8"},
        "activations have 8 bits; recipe='fq-vit-r16' has the residual stream in 16",
    )
    weights = _one_of("weight_type", weight_type, {"QInt8", "QUInt8", "QInt4"}, "weights are int8, or int4 as QInt4")
    _one_of("calibrate_method", calibrate_method, {"MinMax"}, "the recipe chooses the range of every activation")
    for name, value, instead in (
        ("op_types_to_quantize", op_types_to_quantize, "a recipe says what is quantized; recipe='linear-w8a8' is layers only"),
        ("nodes_to_quantize", nodes_to_quantize, "fqvit_opt.quantize(keep_float=...) leaves parts in float"),
        ("nodes_to_exclude", nodes_to_exclude, "fqvit_opt.quantize(keep_float=...) leaves parts in float"),
        (
            "calibration_providers",
            list(calibration_providers or _ON_THE_CPU) != _ON_THE_CPU,
            "calibration runs in the compiler's own runtime, on the processor",
        ),
        ("calibration_cache_path", calibration_cache_path, "`fqvit-opt calibrate --stats FILE` keeps statistics"),
        ("use_external_data_format", use_external_data_format, "above 2 GB weights go into a data file by themselves"),
    ):
        if value:
            raise ValueError(f"{name} cannot be followed: {instead}")
    for key, value in (extra_options or {}).items():
        if key not in _DEFAULTS or not _same(value, _DEFAULTS[key]):
            raise ValueError(f"extra_options[{key!r}]={value!r} cannot be followed: a recipe says how values are quantized")
    if recipe is None:
        recipe = "w4a8-int4" if weights == "QInt4" else "fq-vit"
    elif weights == "QInt4":
        raise ValueError("give recipe or weight_type=QInt4, not both")
    data = calibration_data_reader
    # Before the work: where the file goes, which must be none of those that are read.
    files = [d if isinstance(d, (str, os.PathLike)) else None for d in (data, verify)]
    m = load(model_input)
    known: DataOptions = {**how, "fixed": {k: v for k, v in (how.get("fixed") or {}).items() if isinstance(v, (str, os.PathLike))}}
    _native.output_check(m, *samples_of(m, files[0], files[1], None, known), _named_file(model_output))
    result = quantize(cast(Model, m), data, recipe=recipe, target=target, verify=verify, progress=progress, **how)
    result.save(model_output)
    return result


def _same(value: Any, default: Any) -> bool:
    if isinstance(default, list):
        return isinstance(value, (list, tuple)) and list(value) == default
    # Of arrays and lists, "equal" has no single answer; none is a default.
    plain = value is None or isinstance(value, (bool, int, np.bool_, Mapping))
    return plain and bool(value == default)


def _one_of(name: str, value: Any, known: set[str], instead: str) -> str:
    # Members of onnxruntime's enumerations, or their names.
    said = str(getattr(value, "name", value))
    if said not in known:
        raise ValueError(f"{name}={said} cannot be followed: {instead}")
    return said
