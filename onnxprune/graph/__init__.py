"""What ONNX says of a graph, and nothing about pruning: operators, layers, shapes, sizes, editing."""
