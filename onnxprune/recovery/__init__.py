"""Getting accuracy back without labels or training: least squares, OBC, matching of moments, merging of units."""

from onnxprune.recovery.reconstruct import Step, stages
from onnxprune.recovery.registry import METHODS, Method, method, model_method
from onnxprune.recovery.run import Recovery, recover

__all__ = ["METHODS", "Method", "Recovery", "Step", "method", "model_method", "recover", "stages"]
