"""Smaller weights are close to what they were, by channel, and small arrays stay exact."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from convert.onnx_store import SMALLEST, quantised, stored


@pytest.fixture
def model():
    """x @ weight + bias, the weight's columns of very different size."""
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32) * np.logspace(
        -3, 3, 32, dtype=np.float32
    )
    bias = np.arange(32, dtype=np.float32) / 3
    assert bias.size < SMALLEST < weight.size
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"]), helper.make_node("Add", ["y", "bias"], ["out"])]
    ends = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [3, 64]), ("out", [3, 32]))]
    arrays = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0), ("float16", 1e-3), ("int8", 1e-2)])
def test_the_result_is_close_in_every_channel(model, dtype, bound):
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    expected, size = run(model, x), model.ByteSize()
    largest = np.abs(x) @ np.abs(numpy_helper.to_array(model.graph.initializer[0]))  # if no term cancelled another
    found = stored(model, dtype)
    onnx.checker.check_model(found, full_check=True)
    assert (np.abs(run(found, x) - expected) <= bound * largest).all()
    assert found.ByteSize() <= size * {"float32": 1, "float16": 0.6, "int8": 0.4}[dtype]


def test_a_channel_of_zeros_stays_zero():
    array = np.zeros((4, 3), np.float32)
    array[:, 0] = [1, -2, 0.5, 2]
    found = quantised(array, axis=1)
    np.testing.assert_allclose(found["small"] * found["scale"], array, atol=2 / 127)
    assert (found["small"][:, 1:] == 0).all()
