"""onnxprune: make any ONNX model smaller and faster by rewriting its graph.

result = onnxprune.prune("model.onnx", sparsity=0.5, structure="channels")
onnxprune.save(result, "smaller.onnx")
"""

import lazy_loader

# What the package offers is in __init__.pyi, and imported when it is first asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
