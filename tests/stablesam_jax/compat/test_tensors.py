"""Tensors where PyTorch is loaded, arrays where it is not."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from stablesam_jax.compat import tensors
from tests.conftest import ROOT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8, torch.bool])
def test_a_tensor_of_any_dtype_becomes_an_array(dtype):
    given = torch.tensor([[0, 1], [1, 0]]).to(dtype).requires_grad_(dtype.is_floating_point)
    np.testing.assert_array_equal(tensors.array(given), np.array([[0, 1], [1, 0]], np.float32))
    assert tensors.array(given).dtype == np.float32
    assert tensors.array([1, 2], np.int32).dtype == np.int32


def test_an_array_that_may_not_be_written_to_becomes_a_tensor_that_may():
    values = np.arange(3.0)
    values.flags.writeable = False
    made = tensors.tensor(values)
    made += 1
    assert made.tolist() == [1, 2, 3]
    assert values.tolist() == [0, 1, 2]
    assert tensors.cpu_device() == torch.device("cpu")


def test_what_came_as_an_array_goes_as_one():
    assert isinstance(tensors.like(np.ones(2), np.zeros(2)), np.ndarray)
    assert isinstance(tensors.like(torch.ones(2), np.zeros(2)), torch.Tensor)


CODE = """
import sys
import numpy as np
from stablesam_jax import compat
from tests.reference import small

picture = np.full((40, 64, 3), 90, np.uint8)
predictor = compat.SamPredictor(*small.nano())
predictor.set_image(picture)
masks, scores, logits = predictor.predict(box=np.array([3, 4, 50, 30]), multimask_output=False)
embedding = predictor.get_image_embedding()
boxes = predictor.transform.apply_boxes_torch(np.array([[3, 4, 50, 30]]), predictor.original_size)
record = {"image": picture.transpose(2, 0, 1), "original_size": (40, 64), "boxes": boxes}
(batch,) = predictor.model([record], False)
sparse, dense = predictor.model.prompt_encoder(None, boxes, None)
pe = predictor.model.prompt_encoder.get_dense_pe()
low_res, iou = predictor.model.mask_decoder(embedding, pe, sparse, dense, False)
for found in (predictor.predict_torch(None, None, boxes, None, False)[2], batch["low_res_logits"], low_res):
    assert np.abs(found[0] - logits).max() < 1e-4 * logits.std(), np.abs(found[0] - logits).max()
predictor.features = embedding
assert "torch" not in sys.modules
print(type(embedding).__name__, embedding.shape, predictor.device, masks.shape)
"""


@pytest.mark.slow
def test_without_pytorch_all_are_arrays():
    printed = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, check=False)
    assert printed.stdout == "ndarray (1, 256, 4, 4) cpu (1, 40, 64)\n", printed.stderr[-2000:]
