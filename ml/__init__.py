"""The machine learning around the argument: data, triggers, training with a mark, ONNX, the integer network."""
