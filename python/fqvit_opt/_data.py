"""What people have their samples in, as arrays for the compiler."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Callable, Optional, TypedDict, Union

import numpy as np
import numpy.typing as npt

from . import _native
from ._native import DataError

if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack
elif sys.version_info >= (3, 11):
    from typing import Unpack as Unpack
else:  # for typing.get_type_hints alone
    Unpack = Optional

#: A folder of pictures or an ``.npy``/``.npz`` file; one array, samples along its first axis, for a model of one input;
#: arrays by the names of the inputs; an iterable of batches; or an onnxruntime ``CalibrationDataReader``.
Data = Union[str, "os.PathLike[str]", npt.ArrayLike, Mapping[str, npt.ArrayLike], Iterable[Any], Any]

#: What an input is in every sample: a number for all its elements, an array of shape ``[1, ...]``, or an ``.npy`` file.
Fixed = Union[float, npt.ArrayLike, str, "os.PathLike[str]"]

_Input = tuple[str, str, list[Optional[int]]]

#: Keys under which batches carry the classes of their samples.
_LABELS = ("labels", "label")


class DataOptions(TypedDict, total=False):
    """How data become inputs: the keywords that everything that takes data has in common.

    They are keywords of the call, or a dict that several calls share::

        how: fqvit_opt.DataOptions = {"preset": "clip", "fit": "squash"}
        fqvit_opt.quantize("vit.onnx", "photos/", **how)
        fqvit_opt.verify("vit.onnx", "vit.q.onnx", "other-photos/", **how)
    """

    #: How pictures become numbers, by name: ``imagenet``, ``inception``, ``clip``, ...
    preset: Optional[str]
    #: In place of the preset's: of pixels from 0 to 1, one number or one per channel.
    mean: Union[float, Sequence[float], None]
    std: Union[float, Sequence[float], None]
    #: Pixels that the resize leaves: of the short side, both sides or the long side, as ``fit`` says. 0: no resize.
    resize: Optional[int]
    #: Side of the centre crop, for a model that leaves its size open.
    crop: Optional[int]
    #: In place of ``resize``: the crop's side over this, as timm's ``crop_pct``.
    crop_pct: Optional[float]
    #: ``crop``, ``squash`` or ``letterbox``.
    fit: Optional[str]
    #: The filter of the resize: ``bicubic``, ``bilinear``, ...
    interpolation: Optional[str]
    #: ``apply`` or ``ignore``: what becomes of the orientation that a camera writes into a picture.
    exif: Optional[str]
    #: ``preprocessor_config.json`` of transformers or ``config.json`` of timm, in place of the one beside the model;
    #: ``"none"`` looks for none.
    preprocessor: Union[str, "os.PathLike[str]", None]
    #: Classes of the pictures of a folder: a file with ``file class`` in each line.
    labels: Union[str, "os.PathLike[str]", None]
    #: Names of the classes for the report's page: a file with one in each line, or JSON with ``id2label``.
    class_names: Union[str, "os.PathLike[str]", None]
    #: Inputs that are the same in every sample, by name: a mask or a prompt beside a folder of pictures.
    fixed: Optional[Mapping[str, Fixed]]
    #: Sizes that the model leaves open, by input.
    shape: Optional[Mapping[str, Sequence[int]]]
    #: Of samples that are made up, where no data are given.
    seed: int


#: Samples as the compiler takes them: options that are not there, or ``None``, are as if nothing was said.
Source = dict[str, Any]


def refuse_unknown(function: str, given: Mapping[str, Any]) -> None:
    """Refuses keywords that are no data options, in Python's words."""
    for name in given:
        if name not in DataOptions.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def flag(verify: Union[Data, bool, None]) -> Union[Data, bool, None]:
    """numpy's own truth values are no data."""
    return bool(verify) if isinstance(verify, np.bool_) else verify


def source(
    data: Optional[Data],
    inputs: Callable[[list[str]], list[_Input]],
    what: str,
    samples: Optional[int] = None,
    **how: Unpack[DataOptions],
) -> Source:
    """Looks at ``data`` once. ``what`` is what errors call it."""
    fixed = _by_input("fixed", how.get("fixed"))
    shapes = _by_input("shape", how.get("shape"))
    said = [f"{name}={_sizes(name, sizes)}" for name, sizes in shapes.items()]
    path: Optional[str] = None
    arrays: Optional[_native.Arrays] = None
    if isinstance(data, (str, os.PathLike)):
        path = os.fspath(data)
    elif data is not None:
        arrays = _spooled(data, [i for i in inputs(said) if i[0] not in fixed], what, set(fixed))
    files = (("preprocessor", how.get("preprocessor")), ("labels", how.get("labels")), ("class_names", how.get("class_names")))
    paths = {k: os.fspath(v) for k, v in files if v}
    return {
        **how,
        **paths,
        "path": path,
        "arrays": arrays,
        "samples": samples,
        "mean": _numbers("mean", how.get("mean")),
        "std": _numbers("std", how.get("std")),
        "fixed": [(name, *_fixed(name, value, lambda: inputs(said))) for name, value in fixed.items()],
        "shape": said,
    }


def _fixed(
    name: str, value: Fixed, inputs: Callable[[], list[_Input]]
) -> tuple[Optional[float], Optional[str], Optional[_native.Arrays]]:
    """A number, a path, or an array: one of them."""
    if isinstance(value, (str, os.PathLike)):
        return None, os.fspath(value), None
    a = _array(value, name, "fixed")
    if a.ndim == 0:
        number = float(a)
        if a.dtype.kind in "iu" and int(number) != int(a):
            raise DataError(f"fixed, {name}: {a} has more digits than a number here can have; give an array")
        return number, None, None
    rank = next((len(dims) for n, _, dims in inputs() if n == name), a.ndim)
    a = np.ascontiguousarray(a[None] if a.ndim + 1 == rank else a)
    spool = _native.spool_new("fixed")
    _native.spool_push(spool, [(name, a.dtype.str, list(a.shape), a.tobytes())])
    return None, None, _native.spool_finish(spool)


def _by_input(key: str, given: Optional[Mapping[str, Any]]) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{key}={given!r}: give a dict with the names of inputs")
    return dict(given or {})


def _sizes(name: str, sizes: Sequence[int]) -> str:
    if isinstance(sizes, str) or not all(isinstance(n, (int, np.integer)) for n in sizes):
        raise TypeError(f"shape, {name}: give whole numbers such as (1, 3, 224, 224), not {sizes!r}")
    return ",".join(str(n) for n in sizes)


def _numbers(key: str, x: Union[float, Sequence[float], None]) -> list[float]:
    if x is None:
        return []
    a = np.atleast_1d(np.asarray(x))
    if a.ndim > 1 or a.dtype.kind not in "fiu":
        raise TypeError(f"{key}={x!r}: give a number, or one for each channel")
    return [float(v) for v in a]


def _spooled(data: Any, inputs: list[_Input], what: str, fixed: AbstractSet[str]) -> _native.Arrays:
    """``fixed``: inputs that are given in another way."""
    spool = _native.spool_new(what)
    empty = True
    for batch in _batches(data, what):
        arrays = _named(batch, inputs, what, fixed)
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
    return isinstance(x, (np.ndarray, np.generic, memoryview)) or hasattr(x, "__array__") or hasattr(x, "detach")


def _array(x: Any, name: str, what: str) -> npt.NDArray[Any]:
    if hasattr(x, "detach"):  # torch: off the graph, off the accelerator
        x = x.detach().cpu()
        if str(getattr(x, "dtype", "")) == "torch.bfloat16":
            x = x.float()
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise DataError(f'{what}, array "{name}": some elements are masked; fill them (`.filled(0)`)')
    a = np.asarray(x)
    if a.dtype.kind not in "fiubV" or a.dtype.hasobject:
        raise DataError(f'{what}, array "{name}": elements of type {a.dtype} are no numbers')
    return a


def _named(batch: Any, inputs: list[_Input], what: str, fixed: AbstractSet[str]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of one batch by input, each with the samples along its first axis."""
    names = [name for name, _, _ in inputs]
    if isinstance(batch, Mapping):
        found = {str(k): _array(v, str(k), what) for k, v in batch.items() if str(k) in (*names, *_LABELS)}
        idle = [str(k) for k in batch if str(k) not in found and str(k) not in fixed]
        twice = [str(k) for k in batch if str(k) in fixed]
        if twice:
            _ignored(what, f"as fixed= gives these inputs: {', '.join(twice)}")
        if idle:
            _ignored(what, f"as the model has no such input: {', '.join(idle)}")
        for name in names:
            if name not in found:
                have = ", ".join(str(k) for k in batch)
                raise DataError(f'{what}: no array named "{name}" for that input of the model; it has {have}')
    elif _is_array(batch):
        found = _positional([batch], names, what)
    elif isinstance(batch, list) and len(names) == 1 and _are_samples(batch, inputs[0]):
        rank = len(inputs[0][2])
        parts = [_array(x, names[0], what) for x in batch]
        found = {names[0]: np.concatenate([a if a.ndim == rank else a[None] for a in parts])}
    elif isinstance(batch, (tuple, list)) and batch and not _odd(batch, len(names)):
        if isinstance(batch[0], Mapping):  # (inputs by name, labels)
            found = _named(batch[0], inputs, what, fixed)
            found.update(_label(batch[1:], what))
        else:
            found = _positional(list(batch), names, what)
    else:
        odd = _odd(batch, len(names)) if isinstance(batch, (tuple, list)) else []
        held = f" with a {type(odd[0]).__name__} in it" if odd else ""
        raise DataError(
            f"{what}: a batch is an array, a tuple of arrays in the order of the inputs, or arrays by input; "
            f"this one is {type(batch).__name__}{held}"
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
    if not rest:
        return {}
    if len(rest) == 1 and not isinstance(rest[0], Mapping):
        a = _array(rest[0], "labels", what)
        if a.ndim == 2 and a.shape[1] == 1:
            a = a[:, 0]
        if a.ndim <= 1 and a.dtype.kind in "iu":
            return {"labels": a}
    kinds = ", ".join("a dict" if isinstance(x, Mapping) else f"{_array(x, 'labels', what).dtype}" for x in rest)
    _ignored(what, f"as classes are one whole number per sample: what follows the inputs in a batch ({kinds})")
    return {}


def _ignored(what: str, why: str) -> None:
    """Warns the caller of this package; Python shows it once for each place and text."""
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        depth, frame = depth + 1, frame.f_back
    warnings.warn(f"{what}: not used, {why}", stacklevel=depth)


def _is_part(x: Any, last: bool) -> bool:
    """Whether it can be a part of a batch: inputs by name, an array, or in the end the classes in a list."""
    classes = last and isinstance(x, (list, tuple)) and all(isinstance(n, (int, np.integer)) for n in x)
    return isinstance(x, (int, float, Mapping)) or _is_array(x) or classes


def _odd(batch: Sequence[Any], inputs: int) -> list[Any]:
    """What cannot be a part of it."""
    return [x for i, x in enumerate(batch) if not _is_part(x, i >= inputs)]


def _are_samples(batch: list[Any], given: _Input) -> bool:
    """Whether a list holds samples of the one input, and not the input and what follows it: all are of one shape and type, and at
    least one has no axis of samples."""
    _, dtype, dims = given
    if len(batch) < 2 or len(dims) < 3 or "int" in dtype or not all(_is_array(x) for x in batch):
        return False
    shapes = [tuple(x.shape) for x in batch]
    plain = [s[1:] if len(s) == len(dims) and s[0] == 1 else s for s in shapes]
    alike = len({(s, str(x.dtype)) for s, x in zip(plain, batch)}) == 1
    return alike and len(plain[0]) == len(dims) - 1 and any(len(s) == len(dims) - 1 for s in shapes)


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
