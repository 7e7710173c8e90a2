"""The operator functions, one module a family. Importing this registers them all."""

from onnxprune.bridge.ops import (  # noqa: F401
    activation,
    arithmetic,
    casting,
    convolution,
    host,
    indexing,
    linear,
    movement,
    normalization,
    pooling,
    reduction,
)
