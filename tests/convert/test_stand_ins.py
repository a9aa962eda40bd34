"""What stands in for torchvision and timm does what they do."""

import importlib
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from convert import stand_ins

REAL = {"torchvision": stand_ins.TORCHVISION, "timm": stand_ins.TIMM}


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Puts packages in the place of torchvision and timm for one test: file -> content."""

    def packages():
        return [name for name in sys.modules if name.partition(".")[0] in REAL]

    def write(files):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        monkeypatch.syspath_prepend(tmp_path)

    before = {name: sys.modules.pop(name) for name in packages()}
    yield write
    for name in packages():
        del sys.modules[name]
    sys.modules.update(before)


def test_they_take_the_place_of_packages_that_cannot_be_imported(install):
    # As torchvision fails beside another build of torch, and timm beside that torchvision.
    install(
        {
            "torchvision/__init__.py": "import torchvision.half\nraise RuntimeError('operator nms does not exist')",
            "torchvision/half.py": "",
            "timm/__init__.py": "import torchvision.transforms.v2",
        }
    )
    stand_ins.provide()
    assert "torchvision.half" not in sys.modules
    for modules in REAL.values():
        for name, members in modules.items():
            assert members.items() <= vars(importlib.import_module(name)).items()


def test_packages_that_can_be_imported_are_left_alone(install):
    install(
        {
            "torchvision/__init__.py": "",
            "torchvision/transforms/functional.py": "resize = 'real'",
            "torchvision/ops/boxes.py": "",
            "timm/__init__.py": "",
            "timm/models/layers.py": "import warnings\nwarnings.warn('old name', FutureWarning)",
            "timm/models/registry.py": "register_model = 'real'",
        }
    )
    stand_ins.provide()
    assert importlib.import_module("torchvision.transforms.functional").resize == "real"
    assert importlib.import_module("timm.models.registry").register_model == "real"


def test_pictures_are_resized_by_pillow():
    picture = np.random.default_rng(0).integers(0, 256, (30, 45, 3), np.uint8)
    resized = stand_ins.resize(Image.fromarray(picture), (20, 30))
    np.testing.assert_array_equal(resized, Image.fromarray(picture).resize((30, 20), Image.BILINEAR))


def test_sam_2s_pictures_become_tensors_are_resized_with_antialiasing_and_normalised():
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:, ::2] = 255
    tensor = stand_ins.ToTensor()(stripes)
    assert tensor.shape == (3, 8, 8)
    assert tensor[0, 0, :2].tolist() == [1, 0]
    smaller = stand_ins.Resize((2, 2))(tensor)
    assert smaller.shape == (3, 2, 2)
    assert (smaller - 0.5).abs().max() < 0.05  # without antialiasing stripes would remain
    normalised = stand_ins.Normalize([0.5, 0.0, 0.0], [0.25, 1.0, 0.5])(tensor)
    assert normalised[:, 0, 0].tolist() == [2, 1, 2]


def test_stochastic_depth_is_only_had_at_zero():
    assert stand_ins.DropPath(0.0)(torch.ones(2)).tolist() == [1, 1]
    with pytest.raises(NotImplementedError, match="needs timm"):
        stand_ins.DropPath(0.1)


def plain_nms(boxes, scores, categories, threshold):
    """Box by box in double."""
    stays = []
    for index in sorted(range(len(boxes)), key=lambda index: -scores[index]):
        x1, y1, x2, y2 = boxes[index]
        for better in stays:
            bx1, by1, bx2, by2 = boxes[better]
            shared = max(min(x2, bx2) - max(x1, bx1), 0) * max(min(y2, by2) - max(y1, by1), 0)
            union = (x2 - x1) * (y2 - y1) + (bx2 - bx1) * (by2 - by1) - shared
            if categories[index] == categories[better] and union and shared / union > threshold:
                break
        else:
            stays.append(index)
    return stays


@pytest.mark.parametrize("count", [0, 1, 7, 300])
@pytest.mark.parametrize("categories", [1, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_suppression_equals_the_plain_one(count, categories, threshold):
    # Whole coordinates and few scores: ties, equal boxes, empty boxes and IoUs at the threshold all occur.
    rng = np.random.default_rng(count)
    corners = rng.integers(0, 12, (count, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float64)
    scores, labels = rng.integers(0, 20, count) / 20, rng.integers(0, categories, count)
    stays = stand_ins.batched_nms(*(torch.from_numpy(array) for array in (boxes, scores, labels)), threshold)
    assert stays.dtype == torch.int64
    assert stays.tolist() == plain_nms(boxes.tolist(), scores.tolist(), labels.tolist(), threshold)


def test_an_iou_at_the_threshold_is_not_above_it():
    boxes = torch.tensor([[0.0, 0, 4, 1], [1, 0, 4, 1]])  # IoU 3/4
    scores, categories = torch.tensor([1.0, 2.0]), torch.zeros(2)
    assert stand_ins.batched_nms(boxes, scores, categories, 0.75).tolist() == [1, 0]
    assert stand_ins.batched_nms(boxes, scores, categories, 0.74).tolist() == [1]


def test_area_of_a_box():
    assert stand_ins.box_area(torch.tensor([[1, 2, 4, 7], [3, 3, 3, 9]])).tolist() == [15, 0]
