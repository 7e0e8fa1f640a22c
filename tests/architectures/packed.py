"""ONNX models whose weights are drawn again when they are read: small enough to keep many of them."""

import lzma

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

# Elements from which on a tensor is worth drawing again.
LARGE = 128
# Skewness and kurtosis of what is taken for drawn from a normal distribution (0 and 3), perhaps with a factor for each
# channel since, where an exporter folded a norm.
SKEW = 0.6
KURTOSIS = (2.2, 8.0)
MARK = "normal "


def normal(values):
    """Mean and standard deviation, of what looks drawn from a normal distribution; None for a mask, a table of sines..."""
    mean, std = float(values.mean()), float(values.std())
    if not std or len(np.unique(values)) < 0.9 * min(values.size, 1000):
        return None
    z = (values - mean) / std
    slack = 12 / values.size**0.5
    low, high = KURTOSIS
    return (mean, std) if abs((z**3).mean()) < SKEW + slack and low - slack < (z**4).mean() < high + slack else None


def write(path, model):
    """Writes the model without the values of its weights; returns the size of the file."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for t in tensors(model.graph):
        if t.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(t)
        drawn = normal(values.astype(np.float64).ravel()) if values.size >= LARGE else None
        if drawn:
            name, dims = t.name, list(t.dims)
            t.Clear()
            t.name, t.data_type, t.doc_string = name, TensorProto.FLOAT, f"{MARK}{drawn[0]:.6g} {drawn[1]:.6g}"
            t.dims.extend(dims)
    # Where the exporter stood in its own source is half of the file, and nobody's business.
    del model.metadata_props[:]
    for n in nodes(model.graph):
        n.doc_string = ""
        del n.metadata_props[:]
    data = lzma.compress(model.SerializeToString(), preset=9)
    path.write_bytes(data)
    return len(data)


def read(path):
    """The model, with weights drawn from a generator that follows from the place of each."""
    model = onnx.load_from_string(lzma.decompress(path.read_bytes()))
    for place, t in enumerate(tensors(model.graph)):
        if t.doc_string.startswith(MARK):
            mean, std = map(float, t.doc_string[len(MARK):].split())
            values = np.random.default_rng(place).normal(mean, std, list(t.dims))
            t.raw_data = values.astype("<f4").tobytes()
            t.doc_string = ""
    return model


def nodes(graph):
    for n in graph.node:
        yield n
        for a in n.attribute:
            for g in [a.g, *a.graphs]:
                yield from nodes(g)


def tensors(graph):
    yield from graph.initializer
    for n in graph.node:
        for a in n.attribute:
            if a.HasField("t"):
                yield a.t
            for g in [a.g, *a.graphs]:
                yield from tensors(g)
