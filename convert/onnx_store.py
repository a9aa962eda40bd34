"""How weights are stored in ONNX files: as they are, in half precision, or in 8 bits with a scale for each channel.

Smaller weights are made float32 again when the file is loaded (float16) or run (int8), so arithmetic does not change
and every runtime has the operations.
"""

from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

Dtype = Literal["float32", "float16", "int8"]
LARGEST = 2**31 - 1  # bytes that a protocol buffer can hold
SMALLEST = 1024  # elements of a weight that is worth storing smaller; positions and biases have fewer


def stored(model: onnx.ModelProto, dtype: Dtype) -> onnx.ModelProto:
    """Stores the weights of a model in a dtype, in place."""
    if dtype == "float32":
        return model
    graph = model.graph
    nodes = []
    for weight in list(graph.initializer):
        array = numpy_helper.to_array(weight)
        if array.dtype != np.float32 or array.size < SMALLEST:
            continue
        if dtype == "float16":
            small = {"small": array.clip(-65504, 65504).astype(np.float16)}
            node = onnx.helper.make_node("Cast", [f"{weight.name}.small"], [weight.name], to=onnx.TensorProto.FLOAT)
        else:
            axis = _channels(graph, weight.name, array)
            small = quantised(array, axis)
            names = [f"{weight.name}.{part}" for part in small]
            node = onnx.helper.make_node("DequantizeLinear", names, [weight.name], axis=axis)
        graph.initializer.remove(weight)
        graph.initializer.extend(numpy_helper.from_array(part, f"{weight.name}.{name}") for name, part in small.items())
        nodes.append(node)
    for index, node in enumerate(nodes):
        graph.node.insert(index, node)
    return model


def quantised(array: np.ndarray, axis: int) -> dict[str, np.ndarray]:
    """Rounds an array to 255 steps between minus and plus the largest value of each channel.

    Returns:
        `small` int8, `scale` float32 and `zero` int8, both a value for each channel along the axis: array is about
        small * scale.
    """
    others = tuple(other for other in range(array.ndim) if other != axis)
    scale = np.maximum(np.abs(array).max(axis=others), 1e-12).astype(np.float32) / 127
    small = np.rint(array / np.expand_dims(scale, others)).astype(np.int8)
    return {"small": small, "scale": scale, "zero": np.zeros(scale.shape, np.int8)}


def _channels(graph: onnx.GraphProto, name: str, array: np.ndarray) -> int:
    """The axis of a weight's output channels: the last of a matmul's, the first of a convolution's and all others."""
    users = [node.op_type for node in graph.node if name in node.input]
    return array.ndim - 1 if "MatMul" in users else 0
