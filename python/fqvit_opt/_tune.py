"""A search for the fastest file that reaches a number of one's own."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, SupportsFloat, Union

from . import _native
from ._api import Model, Result, load, options, samples_of
from ._data import Data, DataOptions, Unpack, flag, refuse_unknown
from ._progress import Progress, Shown


@dataclass(frozen=True)
class Trial:
    """One file that was measured: its recipe, the parts that are not as the recipe has them, and the number."""

    recipe: str
    #: Names of parts with their precision, ``"16-bit"`` or ``"float"``.
    parts: tuple[tuple[str, str], ...]
    score: float

    @property
    def kept(self) -> tuple[str, ...]:
        """The parts that stay in float."""
        return tuple(name for name, precision in self.parts if precision == "float")

    @property
    def wide(self) -> tuple[str, ...]:
        """The parts whose values have 16 bits where no product reads them."""
        return tuple(name for name, precision in self.parts if precision == "16-bit")

    def __str__(self) -> str:
        named = (("in 16 bits", self.wide), ("in float", self.kept))
        more = [f", {len(names)} {what}: {', '.join(names)}" for what, names in named if names]
        return f"{self.score:g} by {self.recipe}{''.join(more)}"


class Tuned(Result):
    """The file that a search ended with: a :class:`Result` with the way to it."""

    def __init__(self, compiled: _native.Compiled, best: Trial, reached: bool, trials: list[Trial]) -> None:
        super().__init__(compiled)
        #: What the file is, and its number.
        self.best = best
        #: Whether the number is what was asked for. If not, this is the file that came nearest.
        self.reached = reached
        #: Everything that was measured, in order.
        self.trials = trials

    def __repr__(self) -> str:
        return f"<fqvit_opt.Tuned {'reached' if self.reached else 'missed'}: {self.best}>"


def tune(
    model: Model,
    calibration: Optional[Data] = None,
    *,
    metric: Callable[[str], SupportsFloat],
    at_least: float,
    recipes: Optional[Sequence[str]] = None,
    state: Union[str, "os.PathLike[str]", None] = None,
    verify: Union[Data, bool, None] = None,
    show: Union[bool, Callable[[Trial], object]] = True,
    progress: Progress = None,
    target: Optional[str] = None,
    samples: Optional[int] = None,
    by: str = "part",
    passes_dir: Union[str, "os.PathLike[str]", None] = None,
    keep_opset: bool = False,
    assume_vnni: bool = False,
    threads: Optional[int] = None,
    **how: Unpack[DataOptions],
) -> Tuned:
    """Finds the fastest file whose ``metric`` is ``at_least`` a number.

    ``metric`` takes the name of an ONNX file, which is gone afterwards, and returns a number; more is better. ``recipes``
    are tried in their order, from the fastest to the most precise (by default ``fq-vit``, ``fq-vit-r16``, which has the
    residual stream in 16 bits, and ``linear-w8a8``, which has the layers alone in 8 bits); the first that reaches the
    number is taken. If none does, parts of the best of them get more precision, 16 bits or float, by measured sensitivity: those
    first that gain most for what it costs, and as few steps as are enough. ``show`` prints every trial to standard error, or is called with it.

    ``state`` is a file that keeps what was measured: a call that was interrupted goes on where it was, and one with another
    number begins with what is known. All other arguments are those of :func:`quantize`.
    """
    refuse_unknown("tune", how)
    if not callable(metric):
        raise TypeError(f"metric={metric!r}: give a function that takes the name of a file and returns a number")
    if isinstance(recipes, (str, os.PathLike)):
        recipes = os.fspath(recipes).split(",")
    if recipes is not None and not len(recipes):
        raise ValueError("recipes: give one at least, or leave it out")
    verify = flag(verify)
    m = load(model)
    given: dict[str, Any] = dict(
        target=target, by=by, passes_dir=passes_dir, keep_opset=keep_opset, assume_vnni=assume_vnni, threads=threads
    )
    _native.options_check(options(**given))
    data, other = samples_of(m, calibration, verify, samples, how)
    names = None if recipes is None else [os.fspath(r) for r in recipes]
    file = None if state is None else os.fspath(state)
    tuner = _native.tuner_new(m, data, names, float(at_least), options(**given), file)
    known = [Trial(r, tuple(p), s) for r, p, s in _native.tuner_trials(tuner)]
    for t in known:
        _tell(show, t, " (known)")
    with tempfile.TemporaryDirectory(prefix="fqvit-opt-") as folder, Shown(progress) as tell:
        while True:
            recipe, parts, plan, candidate, last, reached, calibrated_on = _native.tuner_next(tuner, tell)
            if last is not None:
                break
            path = os.path.join(folder, "candidate.onnx")
            _native.candidate_save(candidate, path)
            score = float(metric(path))
            if not math.isfinite(score):
                raise ValueError(f"the metric gives {score} for a file of {recipe}: give a finite number, more being better")
            t = Trial(recipe, tuple(parts), score)
            _native.tuner_score(tuner, t.score)
            known.append(t)
            _tell(show, t)
        best = Trial(recipe, tuple(parts), last)
        # The plan names its recipe, which need not have a name that is known elsewhere.
        o = options(plan=plan, calibrated_on=calibrated_on, **given)
        compiled = _native.compile(m, data, other, verify is not False, o, tell)
    return Tuned(compiled, best, bool(reached), known)


def _tell(show: Union[bool, Callable[[Trial], object]], t: Trial, more: str = "") -> None:
    if callable(show):
        show(t)
    elif show:
        print(f"tune: {t}{more}", file=sys.stderr)
