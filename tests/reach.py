"""What a model that reach_cross.py tries must come to, and the list of these models.

KINDS maps a name to a function that returns a Kind: the model, inputs for it, and what is asked of it.
"""

import dataclasses

import onnx

from forms import D, H

W = D // H


@dataclasses.dataclass
class Kind:
    model: onnx.ModelProto
    feed: dict
    # dB against the float model, of every output.
    least: float = 15.0
    # dB between two levels of optimization.
    between: float = 35.0
    status: int = 0
    # What the report must hold; what it must not.
    says: tuple = ()
    silent: tuple = ()
    # Leave the data away.
    made_up: bool = False
    flags: tuple = ()
    # Samples that follow each other in the arrays; None: one array is one sample.
    rows: bool = True
    # The file holds tables of values as codes alone.
    tables: bool = False
    attentions: int = None
    norms: int = None


KINDS = {}


def kind(name):
    def put(make):
        KINDS[name] = make
        return make
    return put


def of(case, **how):
    return Kind(case.model, case.feed, **how)
