"""What is known of ai.onnx.ml's Scaler: y = (x - offset) * scale, for each feature."""

from onnxprune.graph.multiply_adds import no_products
from onnxprune.graph.operators import register
from onnxprune.graph.properties import Operator

register(Operator("ai.onnx.ml::Scaler", multiply_adds=no_products, pointwise="unary", passes_units=True))
