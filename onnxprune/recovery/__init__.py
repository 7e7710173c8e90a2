"""Getting accuracy back without labels or training: least squares, OBC, matching of moments, merging of units."""

from onnxprune.recovery.reconstruct import METHODS, Method, Recovery, Step, recover, stages

__all__ = ["METHODS", "Method", "Recovery", "Step", "recover", "stages"]
