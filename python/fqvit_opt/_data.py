"""What people have their samples in, as arrays for the compiler."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, Optional, TypedDict, Union

import numpy as np
import numpy.typing as npt

from . import _native
from ._native import DataError

#: A folder of pictures or an ``.npy``/``.npz`` file; one array, samples along its first axis, for a model of one input;
#: arrays by the names of the inputs; an iterable of batches; or an onnxruntime ``CalibrationDataReader``.
Data = Union[str, "os.PathLike[str]", npt.ArrayLike, Mapping[str, npt.ArrayLike], Iterable[Any], Any]

_Input = tuple[str, str, list[Optional[int]]]

#: Keys under which batches carry the classes of their samples.
_LABELS = ("labels", "label")


class Source(TypedDict):
    """Samples as the compiler takes them."""

    path: Optional[str]
    arrays: Optional[_native.Arrays]
    preset: Optional[str]
    mean: list[float]
    std: list[float]
    resize: Optional[int]
    crop: Optional[int]
    crop_pct: Optional[float]
    fit: Optional[str]
    interpolation: Optional[str]
    exif: Optional[str]
    preprocessor: Optional[str]
    samples: Optional[int]
    seed: int


def source(
    data: Optional[Data],
    inputs: Callable[[], list[_Input]],
    what: str,
    *,
    preset: Optional[str] = None,
    mean: Union[float, Sequence[float], None] = None,
    std: Union[float, Sequence[float], None] = None,
    resize: Optional[int] = None,
    crop: Optional[int] = None,
    crop_pct: Optional[float] = None,
    fit: Optional[str] = None,
    interpolation: Optional[str] = None,
    exif: Optional[str] = None,
    preprocessor: Union[str, "os.PathLike[str]", None] = None,
    samples: Optional[int] = None,
    seed: int = 0,
) -> Source:
    """Looks at ``data`` once. ``what`` is what errors call it."""
    path: Optional[str] = None
    arrays: Optional[_native.Arrays] = None
    if isinstance(data, (str, os.PathLike)):
        path = os.fspath(data)
    elif data is not None:
        arrays = _spooled(data, inputs(), what)
    return Source(
        path=path,
        arrays=arrays,
        preset=preset,
        mean=_numbers(mean),
        std=_numbers(std),
        resize=resize,
        crop=crop,
        crop_pct=crop_pct,
        fit=fit,
        interpolation=interpolation,
        exif=exif,
        preprocessor=None if preprocessor is None else os.fspath(preprocessor),
        samples=samples,
        seed=seed,
    )


def _numbers(x: Union[float, Sequence[float], None]) -> list[float]:
    if x is None:
        return []
    return [float(x)] if isinstance(x, (int, float)) else [float(v) for v in x]


def _spooled(data: Any, inputs: list[_Input], what: str) -> _native.Arrays:
    spool = _native.spool_new(what)
    empty = True
    for batch in _batches(data, what):
        arrays = _named(batch, inputs, what)
        _native.spool_push(spool, [(name, a.dtype.str, list(a.shape), a.tobytes()) for name, a in arrays.items()])
        empty = False
    if empty:
        raise DataError(f"{what}: it holds no batch; an iterator that was read to its end gives nothing a second time")
    return _native.spool_finish(spool)


def _batches(data: Any, what: str) -> Iterator[Any]:
    if hasattr(data, "get_next") and callable(data.get_next):
        return iter(data.get_next, None)
    if isinstance(data, Mapping) or _is_array(data):
        return iter([data])
    try:
        return iter(data)
    except TypeError:
        kinds = "a path, an array, arrays by input, an iterable of batches, or a CalibrationDataReader"
        raise DataError(f"{what}: {type(data).__name__} is none of the kinds of data there are: {kinds}") from None


def _is_array(x: Any) -> bool:
    # Tensors of torch, jax and tensorflow have one of the two.
    return isinstance(x, (np.ndarray, np.generic)) or hasattr(x, "__array__") or hasattr(x, "detach")


def _array(x: Any, name: str, what: str) -> npt.NDArray[Any]:
    if hasattr(x, "detach"):  # torch: off the graph, off the accelerator
        x = x.detach().cpu()
        if str(getattr(x, "dtype", "")) == "torch.bfloat16":
            x = x.float()
    a = np.asarray(x)
    if a.dtype.kind not in "fiubV" or a.dtype.hasobject:
        raise DataError(f'{what}, array "{name}": elements of type {a.dtype} are no numbers')
    return a


def _named(batch: Any, inputs: list[_Input], what: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of one batch by input, each with the samples along its first axis."""
    names = [name for name, _, _ in inputs]
    if isinstance(batch, Mapping):
        found = {str(k): _array(v, str(k), what) for k, v in batch.items() if str(k) in (*names, *_LABELS)}
        for name in names:
            if name not in found:
                have = ", ".join(str(k) for k in batch)
                raise DataError(f'{what}: no array named "{name}" for that input of the model; it has {have}')
    elif _is_array(batch):
        found = _positional([batch], names, what)
    elif isinstance(batch, (tuple, list)) and batch and all(isinstance(x, (int, Mapping)) or _is_array(x) for x in batch):
        if isinstance(batch[0], Mapping):  # (inputs by name, labels)
            found = _named(batch[0], inputs, what)
            found.update(_label(batch[1:], what))
        else:
            found = _positional(list(batch), names, what)
    else:
        raise DataError(
            f"{what}: a batch is an array, a tuple of arrays in the order of the inputs, or arrays by input; "
            f"this one is {type(batch).__name__}"
        )
    return _with_samples_axis(found, inputs)


def _positional(arrays: list[Any], names: list[str], what: str) -> dict[str, npt.NDArray[Any]]:
    if len(arrays) < len(names):
        raise DataError(
            f"{what}: a batch of {len(arrays)} array(s) for a model of {len(names)} inputs; give arrays by input: "
            f"{', '.join(names)}"
        )
    found = {name: _array(a, name, what) for name, a in zip(names, arrays)}
    found.update(_label(arrays[len(names) :], what))
    return found


def _label(rest: Sequence[Any], what: str) -> dict[str, npt.NDArray[Any]]:
    """What follows the inputs: the classes, if it is one whole number per sample."""
    if len(rest) != 1 or isinstance(rest[0], Mapping):
        return {}
    a = _array(rest[0], "labels", what)
    return {"labels": a} if a.ndim <= 1 and a.dtype.kind in "iu" else {}


def _with_samples_axis(found: dict[str, npt.NDArray[Any]], inputs: list[_Input]) -> dict[str, npt.NDArray[Any]]:
    ranks = {name: len(dims) for name, _, dims in inputs}
    for key in _LABELS[1:]:
        if key in found and key not in ranks and "labels" not in found:
            found["labels"] = found.pop(key)
    single = any(found[n].ndim + 1 == rank for n, rank in ranks.items() if n in found)
    out: dict[str, npt.NDArray[Any]] = {}
    for name, a in found.items():
        if name in ranks and a.ndim + 1 == ranks[name]:
            a = a[None]
        elif name not in ranks and (a.ndim == 0 or (single and name != "labels")):
            a = a[None]
        out[name] = np.ascontiguousarray(a).reshape(a.shape)
    return out
