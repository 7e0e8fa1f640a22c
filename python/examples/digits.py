"""Quantizes a small vision transformer from arrays, and says what it still gets right."""

import numpy as np
import onnxruntime as ort

import fqvit_opt

folder = "testdata/digits/"
model, samples = folder + "digits_vit.onnx", np.load(folder + "digits_calib.npz")["input"]
result = fqvit_opt.quantize(model, samples)
print(result.report)
result.save("digits.q.onnx")

held = np.load(folder + "digits_eval.npz")
session = ort.InferenceSession("digits.q.onnx")
logits = np.concatenate([session.run(None, {"input": x[None]})[0] for x in held["input"]])
print(f"accuracy in onnxruntime: {np.mean(logits.argmax(1) == held['labels']):.3f}")
