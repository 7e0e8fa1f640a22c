"""Compiles a float vision transformer in ONNX into a fully quantized one, and measures the difference.

    import fqvit_opt
    result = fqvit_opt.quantize("vit.onnx", "photos/", preset="inception")
    print(result.report)
    result.save("vit.q.onnx")
"""

from ._api import Comparison, Model, Recipe, Result, quantize, recipes, verify
from ._data import Data
from ._native import DataError, Error, ModelError, OutputError, PlanError, RecipeError, __version__
from ._static import quantize_static
from ._report import Accuracy, Check, Coverage, DataUsed, ModelFile, Report, Speed, Stage, Tensor

__all__ = [
    "Accuracy",
    "Check",
    "Comparison",
    "Coverage",
    "Data",
    "DataError",
    "DataUsed",
    "Error",
    "Model",
    "ModelError",
    "ModelFile",
    "OutputError",
    "PlanError",
    "Recipe",
    "RecipeError",
    "Report",
    "Result",
    "Speed",
    "Stage",
    "Tensor",
    "__version__",
    "quantize",
    "quantize_static",
    "recipes",
    "verify",
]
