"""Getting accuracy back without labels or training: bias and variance matching, least-squares reconstruction."""

from onnxprune.recovery.methods import METHODS
from onnxprune.recovery.reconstruct import Recovery, Step, compose_kept, recover

__all__ = ["METHODS", "Recovery", "Step", "compose_kept", "recover"]
