from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

DIGITS = Path(__file__).resolve().parents[2] / "testdata" / "digits"


class Digits:
    """A trained model of 8x8 digits, samples to calibrate on, and labelled ones to judge by."""

    model = DIGITS / "digits_vit.onnx"
    calibration_file = DIGITS / "digits_calib.npz"

    def __init__(self) -> None:
        session = ort.InferenceSession(str(self.model), providers=["CPUExecutionProvider"])
        self.input = session.get_inputs()[0].name
        self.calibration: np.ndarray[Any, Any] = np.load(self.calibration_file)[self.input]
        held = np.load(DIGITS / "digits_eval.npz")
        self.images: np.ndarray[Any, Any] = held[self.input]
        self.labels: np.ndarray[Any, Any] = held["labels"]

    def accuracy(self, model: bytes | str) -> float:
        """Of a file in onnxruntime, on samples that calibration has not seen."""
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        logits = np.concatenate([session.run(None, {self.input: x[None]})[0] for x in self.images])
        return float(np.mean(logits.argmax(-1) == self.labels))


@pytest.fixture(scope="session")
def digits() -> Digits:
    return Digits()
