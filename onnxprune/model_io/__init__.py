"""Load and save ONNX models: the only part of onnxprune that touches model files.

    load(path)            a file becomes an `onnx_ir.Model`, checked, functions inlined, old opsets upgraded
    load_any(model)       the same for a path, an `onnx.ModelProto` or an `onnx_ir.Model`, never changing what came in
    save(model, path)     the model appears at `path` whole or not at all
    ensure_unchanged(m)   the files of a loaded model are still those that were read
    check_output(path)    what `save` would refuse, asked before the work starts
    sha256(path)          one hash over the model file and its external data
    saved_size(model)     bytes of the files that `save` would write
    scratch_file(model)   the model as files for ONNX Runtime to map, as long as a session is made
    to_bytes, to_proto, to_skeleton, serialized_size   the model as one protobuf, without its weights, how large it is

What a loaded model guarantees to everything downstream: no local functions, no sparse tensors, no training
information, opset 7 or newer and one that ONNX Runtime runs, nodes in topological order, every value defined. Large
weights kept in external data stay on disk, memory-mapped, until somebody reads them.
"""

from __future__ import annotations

import lazy_loader

# What the package offers is in __init__.pyi, and imported when it is first asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
