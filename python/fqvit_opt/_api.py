"""What people call."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Protocol, Union, cast

from . import _native
from . import _report
from ._data import Data, DataOptions, Source, Unpack, flag, refuse_unknown, source
from ._native import ModelError
from ._progress import Progress, Shown
from ._report import Report


class _Proto(Protocol):
    def SerializeToString(self) -> bytes: ...


#: A file's name, its bytes, or an ``onnx.ModelProto``.
Model = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, _Proto]


def options(**given: Any) -> dict[str, Any]:
    """What is to be done, as the compiler takes it: each option as it is if nothing is said of it."""
    o: dict[str, Any] = dict(
        recipe=None,
        passes_dir=None,
        target=None,
        plan=None,
        keep_float=None,
        target_sqnr=None,
        target_size=None,
        up_to=None,
        by="part",
        calibrated_on=None,
        min_sqnr=None,
        min_agreement=None,
        keep_opset=False,
        assume_vnni=False,
        fast=False,
        bench=True,
        judge=None,
        baseline=False,
        threads=None,
    )
    o.update(given)
    o["recipe"] = None if o["recipe"] is None else os.fspath(o["recipe"])
    return o


def load(model: Model) -> _native.Model:
    """Reads a model, wherever it is, unless that was done before."""
    if type(model).__name__ == "PyCapsule":
        return cast("_native.Model", model)
    if isinstance(model, (str, os.PathLike)):
        return _native.model_load(os.fspath(model))
    if isinstance(model, (bytes, bytearray, memoryview)):
        return _native.model_parse(bytes(model))
    if hasattr(model, "SerializeToString"):
        try:
            return _native.model_parse(model.SerializeToString())
        except ValueError as e:
            raise ModelError(f"the model cannot be serialised ({e}); save it with external data and give the path") from e
    raise ModelError(f"{type(model).__name__} is no model; give a path, bytes, or an onnx.ModelProto")


class Result:
    """A quantized model with its report and plan."""

    def __init__(self, compiled: _native.Compiled) -> None:
        self._compiled = compiled
        self._report: Optional[Report] = None

    @property
    def model(self) -> bytes:
        """The ONNX file's bytes. A model of more than 2 GB has no such form: :meth:`save` it."""
        return _native.compiled_model(self._compiled)

    @property
    def report(self) -> Report:
        """How far the model is from the original."""
        if self._report is None:
            self._report = _report.parse(_native.compiled_report(self._compiled)[0])
        return self._report

    @property
    def plan(self) -> Optional[str]:
        """Every decision with its reason, as YAML; :func:`quantize` takes it back. ``None`` if nothing was quantized."""
        return _native.compiled_plan(self._compiled)

    @property
    def html(self) -> str:
        """The report as one page."""
        return _native.compiled_report(self._compiled)[1]

    def save(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Writes the file, whole or not at all, and never over a file that the model or its samples were read from. Above 2 GB,
        weights go into a data file beside it."""
        _native.compiled_save(self._compiled, _named_file(path))

    def __copy__(self) -> Result:
        return self

    def __deepcopy__(self, memo: object) -> Result:
        return self

    def __getstate__(self) -> object:
        raise TypeError(
            f"a {type(self).__name__} belongs to its process and cannot be pickled; send its .model (bytes) and .report, or save() it"
        )

    def _repr_html_(self) -> str:
        return _framed(self.html)

    def __repr__(self) -> str:
        return f"<fqvit_opt.Result {self.report}>"


@dataclass(frozen=True)
class Comparison:
    """What :func:`verify` found."""

    report: Report
    html: str

    def _repr_html_(self) -> str:
        return _framed(self.html)

    def __repr__(self) -> str:
        return f"<fqvit_opt.Comparison {self.report}>"


def _named_file(path: Union[str, "os.PathLike[str]"]) -> str:
    name = os.fspath(path)
    if not name:
        raise ValueError("give the name of the file to write")
    return name


def _framed(page: str) -> str:
    """A page inside of a page, so that the styles of neither reach the other."""
    quoted = page.replace("&", "&amp;").replace('"', "&quot;")
    return f'<iframe srcdoc="{quoted}" width="100%" height="720" style="border:0"></iframe>'


def quantize(
    model: Model,
    calibration: Optional[Data] = None,
    *,
    recipe: Union[str, "os.PathLike[str]", None] = None,
    target: Optional[str] = None,
    verify: Union[Data, bool, None] = None,
    progress: Progress = None,
    samples: Optional[int] = None,
    plan: Optional[str] = None,
    keep_float: Union[int, Sequence[str], None] = None,
    target_sqnr: Optional[float] = None,
    target_size: Union[int, str, None] = None,
    up_to: Optional[str] = None,
    by: str = "part",
    min_sqnr: Optional[float] = None,
    min_agreement: Optional[float] = None,
    passes_dir: Union[str, "os.PathLike[str]", None] = None,
    keep_opset: bool = False,
    assume_vnni: bool = False,
    fast: bool = False,
    bench: bool = True,
    judge: Optional[str] = None,
    baseline: bool = False,
    threads: Optional[int] = None,
    **how: Unpack[DataOptions],
) -> Result:
    """Compiles a float vision transformer into a quantized one, and measures the difference.

    ``calibration`` is a folder of pictures, an ``.npy`` or ``.npz`` file, an array for a model of one input (samples along
    its first axis), a dict of arrays by input, an iterable of batches (arrays, tuples, dicts; torch's ``DataLoader``), or an
    onnxruntime ``CalibrationDataReader``. It is read once; what does not come from files is put aside in temporary files,
    because the model runs over the samples several times. Without it samples are made up, which costs accuracy.

    ``verify`` is other data of the same kinds to compare both models on; without it every eighth calibration sample is held
    back for that, and ``False`` compares nothing. ``recipe`` is ``"fq-vit"`` if nothing is said. ``plan`` is a plan's text to
    carry out instead of making one; a ``recipe`` that is not the plan's own is an error.
    ``target_size`` is bytes, or text such as ``"4.5MB"`` or ``"20%"`` (of the float file): weights of as many parts as it takes are
    stored in 4 bits. ``target_sqnr`` raises parts to 16 bits or float; with both, the smallest file is looked for that reaches it.
    ``up_to`` (``"recipe"``, ``"16-bit"``, ``"float"``) is the most that either may make a part.
    ``judge="onnxruntime"`` also runs and times both models there, and applies the thresholds there; with ``baseline=True``
    the report also shows what onnxruntime's own static quantization makes of the float model. ``progress`` is ``True``
    or ``False`` (by default: in a terminal), or a callable that takes a stage, how many are done, and of how many. All other
    arguments are those of the command line.

    How data become inputs is said by the keywords of :class:`DataOptions`. Pictures are prepared as
    ``preprocessor_config.json`` or timm's ``config.json`` beside the model says, or ``preprocessor``, another file of that
    kind (``"none"`` looks for none); ``preset``, ``mean``, ``std``, ``resize``, ``crop``, ``crop_pct``, ``fit`` (``"crop"``,
    ``"squash"``, ``"letterbox"``), ``interpolation`` and ``exif`` say otherwise. ``fixed`` gives inputs that are the same in
    every sample: ``{"mask": 1}``, with a number for all elements, an array of shape ``[1, ...]``, or an ``.npy`` file.
    ``shape`` gives sizes that the model leaves open: ``{"x": (1, 3, 48, 320)}``.

    Raises :class:`ModelError`, :class:`DataError`, :class:`RecipeError` or :class:`PlanError`, all of them
    :class:`Error`, and :class:`ValueError` for an argument that has no such value.
    """
    refuse_unknown("quantize", how)
    verify = flag(verify)
    if verify is False:
        for name, value in (("judge", judge), ("min_sqnr", min_sqnr), ("min_agreement", min_agreement)):
            if value is not None:
                raise ValueError(f"{name} needs samples to compare the models on, and verify=False compares nothing")
    if baseline and judge is None:
        raise ValueError("baseline=True shows what a judge makes of the float model; give judge='onnxruntime' as well")
    m = load(model)
    o = options(
        recipe=recipe,
        target=target,
        plan=plan,
        keep_float=_names(keep_float),
        target_sqnr=target_sqnr,
        target_size=None if target_size is None else str(target_size),
        up_to=up_to,
        by=by,
        min_sqnr=min_sqnr,
        min_agreement=min_agreement,
        passes_dir=passes_dir,
        keep_opset=keep_opset,
        assume_vnni=assume_vnni,
        fast=fast,
        bench=bench,
        judge=_judge(judge),
        baseline=baseline,
        threads=threads,
    )
    _native.options_check(o)
    data, other = samples_of(m, calibration, verify, samples, how)
    with Shown(progress) as tell:
        return Result(_native.compile(m, data, other, verify is not False, o, tell))


def samples_of(
    m: _native.Model,
    calibration: Optional[Data],
    verify: Union[Data, bool, None],
    samples: Optional[int],
    how: DataOptions,
) -> tuple[Source, Optional[Source]]:
    """What to calibrate on, and what else to compare on, if that is other data."""
    data = source(calibration, lambda shape: _native.model_inputs(m, shape), "calibration", samples, **how)
    if verify is None or isinstance(verify, bool):
        return data, None
    return data, source(verify, lambda shape: _native.model_inputs(m, shape), "verify", **how)


def _judge(runtime: Optional[str]) -> Optional[str]:
    """The Python that has the runtime: this one."""
    if runtime is None:
        return None
    if runtime != "onnxruntime":
        raise ValueError(f"judge={runtime!r}: there is 'onnxruntime'")
    return sys.executable


def _names(given: Union[int, Iterable[str], None]) -> Any:
    """A number as it is, and names as a list."""
    if isinstance(given, str):
        return [n.strip() for n in given.split(",")]
    return list(given) if isinstance(given, Iterable) else given


def verify(
    float: Model,
    quantized: Model,
    data: Optional[Data] = None,
    *,
    progress: Progress = None,
    samples: Optional[int] = None,
    min_sqnr: Optional[float] = None,
    min_agreement: Optional[float] = None,
    bench: bool = True,
    judge: Optional[str] = None,
    threads: Optional[int] = None,
    **how: Unpack[DataOptions],
) -> Comparison:
    """Runs a quantized model beside its float original over ``data``, of the kinds that :func:`quantize` takes.

    ``judge="onnxruntime"`` also runs and times both there. How data become inputs is said as for :func:`quantize`
    (:class:`DataOptions`).
    """
    refuse_unknown("verify", how)
    f, q = load(float), load(quantized)
    given = source(data, lambda shape: _native.model_inputs(f, shape), "data", samples, **how)
    o = options(
        min_sqnr=min_sqnr, min_agreement=min_agreement, bench=bench, judge=_judge(judge), threads=threads
    )
    with Shown(progress) as tell:
        text, html = _native.compare(f, q, given, o, tell)
    return Comparison(_report.parse(text), html)


@dataclass(frozen=True)
class Attention:
    """An attention that was recognised: the value it makes, by which rule, the factor of its scores, its masks."""

    output: str
    rule: str
    scale: Optional[float]
    masks: int


@dataclass(frozen=True)
class Inspection:
    """What a model holds, and what of it is recognised once it is in canonical form."""

    opset: int
    nodes: int
    operators: dict[str, int]
    #: LayerNorms and GELUs as the exporter wrote them: how many each rule recognises.
    as_written: dict[str, dict[str, int]]
    attentions: list[Attention]
    layer_norms: int
    gelus: int
    linears: int
    #: Softmax of no recognised attention, which stay in float.
    softmaxes: list[str]
    #: What else stays in float, and why.
    islands: list[tuple[str, str]]
    notes: list[str]


def inspect(
    model: Model,
    *,
    recipe: Union[str, "os.PathLike[str]"] = "fq-vit",
    passes_dir: Union[str, "os.PathLike[str]", None] = None,
    keep_opset: bool = False,
) -> Inspection:
    """Tells what a model holds and what the rules recognise in it, without running it."""
    o = options(recipe=recipe, passes_dir=passes_dir, keep_opset=keep_opset)
    d = json.loads(_native.model_inspect(load(model), o))
    c = d["canonical"]
    return Inspection(
        opset=d["opset"],
        nodes=d["nodes"],
        operators=d["operators"],
        as_written=d["as_written"],
        attentions=[Attention(**a) for a in c["attentions"]],
        layer_norms=c["layer_norms"],
        gelus=c["gelus"],
        linears=c["linears"],
        softmaxes=c["softmaxes"],
        islands=[(node, why) for node, why in c["islands"]],
        notes=d["notes"],
    )


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe."""

    name: str
    summary: str


def recipes() -> list[Recipe]:
    """The shipped recipes."""
    return [Recipe(name, summary) for name, summary in _native.recipes()]
