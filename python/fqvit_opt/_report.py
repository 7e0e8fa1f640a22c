"""The report as objects: what is in its JSON form, with names for what people ask first."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar, Union

_T = TypeVar("_T")

#: :class:`Report` has a field of the name.
_Float = float


@dataclass(frozen=True)
class ModelFile:
    """A model and its size in bytes, external data included."""

    name: str
    bytes: int


@dataclass(frozen=True)
class DataUsed:
    """The samples behind the figures."""

    calibration: str
    calibration_samples: int
    verification: str
    verification_samples: int
    synthetic: bool


@dataclass(frozen=True)
class Accuracy:
    """Shares, 0..1, of labelled samples that each model gets right."""

    samples: int
    top1_float: float
    top1_quantized: float
    top5: Optional[dict[str, float]] = None


@dataclass(frozen=True)
class Tensor:
    """How far one value is from the float model's, over all samples.

    ``sqnr_db`` is 999 where there is no error at all. ``top1_agreement``, ``equal`` and ``matched`` are shares, 0..1, of
    rows that name the same class, labels that are the same, detections that found their like: at most one exists.
    """

    tensor: str
    samples: int
    sqnr_db: float
    cosine: float
    max_abs_error: float
    top1_agreement: Optional[float] = None
    equal: Optional[float] = None
    matched: Optional[float] = None
    accuracy: Optional[Accuracy] = None
    #: Where in the model it is, in words: ``block 3 mlp``.
    part: Optional[str] = None
    #: What it holds: ``"values"``, ``"labels"``, ``"detections"``, or ``{"classes": {"axis": n}}``.
    kind: Union[str, dict[str, Any], None] = None


@dataclass(frozen=True)
class Speed:
    """Medians in milliseconds of one run in tract, both models in turn."""

    runtime: str
    instructions: str
    threads: int
    rounds: int
    float_ms: float
    quantized_ms: float
    ratio: float


@dataclass(frozen=True)
class Level:
    """The quantized model at one level of optimization of another runtime, against the float model there."""

    level: str
    outputs: list[Tensor]


@dataclass(frozen=True)
class Baseline:
    """What the runtime's own static quantization makes of the float model, with its defaults."""

    bytes: int
    calibration_samples: int
    outputs: list[Tensor]
    ms: float
    ratio: float


@dataclass(frozen=True)
class Judged:
    """What another runtime makes of both models. Times are medians in milliseconds, at the last of the levels."""

    runtime: str
    version: str
    samples: int
    levels: list[Level]
    threads: int
    rounds: int
    float_ms: float
    quantized_ms: float
    ratio: float
    baseline: Optional[Baseline] = None


@dataclass(frozen=True)
class Coverage:
    """How many of the operators that compute run on integers."""

    covered: int
    total: int
    by_op: dict[str, dict[str, int]] = field(default_factory=dict)
    between: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One threshold, held against its figure."""

    name: str
    limit: float
    at_least: bool
    passed: bool
    value: Optional[float] = None
    because: Optional[str] = None


@dataclass(frozen=True)
class Stage:
    """How long a stage took."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class Part:
    """What a part of the model has: ``precision`` is ``4-bit`` (its weights), ``recipe``, ``16-bit`` (its values) or ``float``.

    ``weights`` and ``values`` are bits, such as ``"8"`` or ``"8 and 16"``; ``"-"`` where it has none.
    """

    part: str
    precision: str
    weights: str
    values: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What was compiled, from what data, and how far the result is from the original."""

    tool: str
    recipe: str
    float: ModelFile
    quantized: ModelFile
    data: DataUsed
    outputs: list[Tensor]
    blocks: list[Tensor]
    coverage: Coverage
    islands: list[dict[str, Any]]
    decisions: dict[str, int]
    timings: list[Stage]
    checks: list[Check]
    notes: list[str]
    speed: Optional[Speed] = None
    judged: Optional[Judged] = None
    #: What each part has, where parts have precisions of their own.
    parts: list[Part] = field(default_factory=list)
    #: Values whose channels have factors of their own: ``tensor``, ``part``, ``reach`` and ``factors``, one for each channel.
    channels: list[dict[str, Any]] = field(default_factory=list)
    #: What was measured at single values, and which attentions there are.
    closer: Optional[dict[str, Any]] = None
    #: Samples that the two models put into different classes: ``output``, ``samples``, ``count`` and the ``worst``.
    disagreements: Optional[dict[str, Any]] = None
    #: What each pass changed, where that was asked for.
    passes: list[dict[str, Any]] = field(default_factory=list)
    #: The whole report, as ``--json`` writes it.
    raw: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sqnr_db(self) -> Optional[_Float]:
        """SQNR in dB of the output that suffers most; ``None`` if nothing was compared."""
        return min((t.sqnr_db for t in self.outputs), default=None)

    @property
    def agreement(self) -> Optional[_Float]:
        """The lowest share, 0..1, of samples on which both models say the same; ``None`` if no output says such a thing."""
        shares = [s for t in self.outputs for s in (t.top1_agreement, t.equal, t.matched) if s is not None]
        return min(shares, default=None)

    @property
    def accuracy(self) -> Optional[Accuracy]:
        """Of the first output that has labels."""
        return next((t.accuracy for t in self.outputs if t.accuracy is not None), None)

    @property
    def size(self) -> int:
        """Bytes of the quantized model."""
        return self.quantized.bytes

    @property
    def size_ratio(self) -> Optional[_Float]:
        """The quantized model's bytes as a share of the float model's."""
        return self.quantized.bytes / self.float.bytes if self.float.bytes else None

    @property
    def passed(self) -> bool:
        """Whether every threshold that was set is met; true if none was set."""
        return all(c.passed for c in self.checks)

    @property
    def verdict(self) -> str:
        """``PASS``, ``FAIL``, or ``-`` if there was nothing to judge by."""
        return "-" if not self.checks else "PASS" if self.passed else "FAIL"

    def worst(self, n: int = 5) -> list[Tensor]:
        """The blocks of the lowest SQNR, the worst first; exact ones are not among them."""
        return sorted((b for b in self.blocks if b.sqnr_db < 999), key=lambda b: b.sqnr_db)[:n]

    def to_json(self) -> str:
        """As ``--json`` writes it."""
        return json.dumps(self.raw, indent=2)

    def __str__(self) -> str:
        def show(x: Optional[_Float], form: str, scale: _Float = 1.0) -> str:
            return "-" if x is None else form.format(x * scale)

        mb = (self.float.bytes / 1e6, self.quantized.bytes / 1e6)
        exact = self.sqnr_db is not None and self.sqnr_db >= 999
        elsewhere = ""
        if self.judged:
            worst = min(t.sqnr_db for t in self.judged.levels[-1].outputs)
            elsewhere = f"{worst:.2f} dB in {self.judged.runtime} {self.judged.version}, "
        return (
            f"{self.verdict}: SQNR {'exact' if exact else show(self.sqnr_db, '{:.2f} dB')}, "
            f"agreement {show(self.agreement, '{:.1f} %', 100)} of {self.data.verification_samples} samples, "
            f"{elsewhere}"
            f"{mb[0]:.2f} MB -> {mb[1]:.2f} MB, "
            f"{self.coverage.covered} of {self.coverage.total} operators on integers"
        )


def _of(cls: type[_T], d: dict[str, Any]) -> _T:
    """Builds a dataclass from what it knows of ``d``; later versions may say more."""
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{k: v for k, v in d.items() if k in names})


def _tensor(d: dict[str, Any]) -> Tensor:
    accuracy = d.get("accuracy")
    return _of(Tensor, {**d, "accuracy": _of(Accuracy, accuracy) if accuracy else None})


def parse(text: str) -> Report:
    """Reads the JSON form."""
    d = json.loads(text)
    speed, judged = d.get("speed"), d.get("judged")
    if judged:
        levels = [Level(x["level"], [_tensor(t) for t in x["outputs"]]) for x in judged["levels"]]
        judged = {**judged, "levels": levels}
        if b := judged.get("baseline"):
            judged["baseline"] = _of(Baseline, {**b, "outputs": [_tensor(t) for t in b["outputs"]]})
    return Report(
        tool=d["tool"],
        recipe=d["recipe"],
        float=_of(ModelFile, d["float"]),
        quantized=_of(ModelFile, d["quantized"]),
        data=_of(DataUsed, d["data"]),
        outputs=[_tensor(t) for t in d["outputs"]],
        blocks=[_tensor(t) for t in d["blocks"]],
        coverage=_of(Coverage, d["coverage"]),
        islands=d["islands"],
        decisions=d["decisions"],
        timings=[_of(Stage, t) for t in d["timings"]],
        checks=[_of(Check, {**c, "passed": c["pass"]}) for c in d["checks"]],
        notes=d["notes"],
        speed=_of(Speed, speed) if speed else None,
        judged=_of(Judged, judged) if judged else None,
        parts=[_of(Part, p) for p in d.get("parts", [])],
        channels=d.get("channels") or [],
        closer=d.get("closer"),
        disagreements=d.get("disagreements"),
        passes=d.get("passes") or [],
        raw=d,
    )
