"""Compiles a float vision transformer in ONNX into a fully quantized one, and measures the difference.

    import fqvit_opt
    result = fqvit_opt.quantize("vit.onnx", "photos/", preset="inception")
    print(result.report)
    result.save("vit.q.onnx")
"""

from ._api import Attention, Comparison, Inspection, Model, Recipe, Result, inspect, quantize, recipes, verify
from ._data import Data, DataOptions, Fixed
from ._native import DataError, Error, ModelError, OutputError, PlanError, RecipeError, __version__
from ._static import quantize_static
from ._report import Accuracy, Baseline, Check, Coverage, DataUsed, Judged, Level, ModelFile, Part, Report, Speed, Stage, Tensor
from ._tune import Trial, Tuned, tune

__all__ = [
    "Accuracy",
    "Attention",
    "Baseline",
    "Check",
    "Comparison",
    "Coverage",
    "Data",
    "DataError",
    "DataOptions",
    "DataUsed",
    "Error",
    "Fixed",
    "Inspection",
    "Judged",
    "Level",
    "Model",
    "ModelError",
    "ModelFile",
    "OutputError",
    "Part",
    "PlanError",
    "Recipe",
    "RecipeError",
    "Report",
    "Result",
    "Speed",
    "Stage",
    "Tensor",
    "Trial",
    "Tuned",
    "__version__",
    "inspect",
    "quantize",
    "quantize_static",
    "recipes",
    "tune",
    "verify",
]
