"""Engines that have kernels for zeros: what these kernels need, in one table.

layer.py                            what a rule and an engine are, and which layers of a model do not fit
openvino.py tensorrt.py xnnpack.py  one engine each: its rules, each with its source
chains.py                           the parts of a graph that XNNPACK can run in its sparse layout

>>> ENGINES["tensorrt"].structure
'2:4'
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.engines import openvino, tensorrt, xnnpack
from onnxprune.engines.layer import Engine, Layer, Rule, misfits

__all__ = ["ENGINES", "Engine", "Layer", "Rule", "misfits"]

ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in (openvino.ENGINE, tensorrt.ENGINE, xnnpack.ENGINE)}
"""All engines, as ``--engine`` takes them."""
