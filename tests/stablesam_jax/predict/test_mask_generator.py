"""The records of SamAutomaticMaskGenerator, one by one and in its order, and what the official code does not bear.

Random weights give masks that lie all over the picture, of which hardly one survives the filters. So the filters are
compared on a toy, a segmenter by colour and distance, whose masks are local, have holes and islands and follow the
picture. That SAM and HQ-SAM themselves answer alike is compared on random weights.
"""

import math
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from faster_coco_eval import mask as coco
from PIL import Image

from convert import stand_ins
from eval.parity import torch_sam, twins  # the official packages import what stands in for torchvision
from stablesam_jax.build import assemble
from stablesam_jax.config import Frame, SamConfig, ViTConfig
from stablesam_jax.data import collage, rle
from stablesam_jax.errors import InputError
from stablesam_jax.model.mask_decoder import Masks
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.predict import mask_generator
from stablesam_jax.predict.mask_generator import MaskGenerator
from stablesam_jax.predict.postprocess import upscaling_axes
from tests.reference import sam_pair

# isort: split
import segment_anything
import segment_anything_hq
from segment_anything.utils import amg

PICTURES = collage.ASSETS / "im"
FLIPS = 1e-5  # share of the pixels that may differ: logits are equal to rounding, and some lie at 0
SCORES = 2e-6  # the bound of IoU predictions

TOY = SamConfig(encoder=ViTConfig(width=1, depth=1, heads=1, global_blocks=()), image_size=256)
REACH = np.array([5, 14, 40], np.float32)  # of the three masks of a point, in low-resolution pixels
COLOUR = 12.0  # logits lost for a squared distance of colours of 1
LEVEL = 6.0  # logit at the point itself


def picture(name, width, height):
    return np.asarray(Image.open(PICTURES / f"{name}.jpg").convert("RGB").resize((width, height)))


def paint(xp, colours, points, level):
    """(64, 64, 3) colours, (P, 2) points in the model's frame -> (P, 3, 64, 64) logits, (P, 3) predicted IoU."""
    side = TOY.mask_size
    x, y = xp.clip(points // 4, 0, side - 1).astype(np.int32).T
    axis = xp.arange(side)
    colour = ((colours[None] - colours[y, x][:, None, None]) ** 2).sum(-1)
    distance = (axis[None, None] - x[:, None, None]) ** 2 + (axis[None, :, None] - y[:, None, None]) ** 2
    distance = distance[:, None].astype(np.float32) / REACH[None, :, None, None] ** 2
    phase = (5 * x + 9 * y)[:, None] + 2 * xp.arange(3)[None]
    return level - COLOUR * colour[:, None] - 6 * distance, 0.5 + 0.5 * xp.sin(phase.astype(np.float32)) ** 2


class Toy(nn.Module):
    """Ours."""

    config: SamConfig = TOY
    level: float = LEVEL

    def encode(self, pictures):
        side = TOY.mask_size
        return ImageEmbedding(pictures.reshape(-1, side, 4, side, 4, 3).mean((2, 4)))

    def fuse(self, embedding):
        return embedding

    def decode(self, embedding, prompts, **_):
        logits, iou = paint(jnp, embedding.features[0], prompts.coords[0, :, 0], self.level)
        return Masks(logits[None], iou[None])


class ToyEncoder(torch.nn.Module):
    """Theirs, in the three parts that the official Sam has."""

    img_size = TOY.image_size

    def forward(self, pictures):
        return torch.nn.functional.avg_pool2d(pictures, 4)


class ToyPromptEncoder(torch.nn.Module):
    def forward(self, points, boxes, masks):
        return points[0][:, 0], None

    def get_dense_pe(self):
        return None


class ToyMaskDecoder(torch.nn.Module):
    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, *, image_embeddings, sparse_prompt_embeddings, **_):
        colours = image_embeddings[0].permute(1, 2, 0).numpy()
        outputs = paint(np, colours, sparse_prompt_embeddings.numpy().astype(np.float32), self.level)
        return tuple(map(torch.from_numpy, outputs))


def toy_reference(level=LEVEL, **arguments):
    parts = ToyEncoder(), ToyPromptEncoder(), ToyMaskDecoder(level)
    official = segment_anything.modeling.Sam(*parts, list(TOY.pixel_mean), list(TOY.pixel_std))
    return segment_anything.SamAutomaticMaskGenerator(official, **arguments)


def toy(level=LEVEL, **arguments):
    return MaskGenerator(Toy(level=level), {}, **arguments)


@pytest.fixture(autouse=True)
def pycocotools(monkeypatch):
    """The official code writes compressed run lengths with pycocotools, which faster-coco-eval replaces."""
    monkeypatch.setitem(sys.modules, "pycocotools", types.SimpleNamespace(mask=coco))


def as_mask(segmentation):
    if isinstance(segmentation, np.ndarray):
        return segmentation
    return coco.decode(segmentation) == 1 if isinstance(segmentation["counts"], str) else rle.decode(segmentation)


def assert_same(ours, theirs):
    """Equal records in equal order; predictions to their bounds, masks up to a few pixels."""
    assert len(ours) == len(theirs)
    flips, pixels = 0, 0
    for our, their in zip(ours, theirs, strict=True):
        assert list(our) == list(their)
        assert type(our["segmentation"]) is type(their["segmentation"])
        for key in ("bbox", "point_coords", "crop_box"):
            assert our[key] == their[key]
        assert our["predicted_iou"] == pytest.approx(their["predicted_iou"], abs=SCORES)
        mask, reference = as_mask(our["segmentation"]), as_mask(their["segmentation"])
        flips += (mask != reference).sum()
        pixels += mask.size
        assert our["area"] == mask.sum()
        # A pixel of either cut.
        assert our["stability_score"] == pytest.approx(
            their["stability_score"], abs=1 / max(mask.sum(), 1), nan_ok=True
        )
    assert flips <= FLIPS * pixels


# Dozens of masks stay, and every filter drops some, as tests say. Grids and batches have 36 points throughout, so that
# few programs are compiled.
BASE = {
    "points_per_side": 12,
    "points_per_batch": 36,
    "pred_iou_thresh": 0.7,
    "stability_score_thresh": 0.6,
    "box_nms_thresh": 0.6,
    "crop_nms_thresh": 0.5,
    "crop_n_layers": 1,
    "crop_n_points_downscale_factor": 2,
    "min_mask_region_area": 30,
}
UNFILTERED = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
WITHOUT_CROPS = {"crop_n_layers": 0, "crop_n_points_downscale_factor": 1}
GRIDS = {"points_per_side": None, "point_grids": list(np.random.default_rng(0).random((2, 36, 2)))}
COFFEE, CHELSEA = ("coffee", 240, 160), ("chelsea", 120, 170)


@pytest.mark.parametrize(
    ("which", "arguments"),
    [
        pytest.param(COFFEE, BASE, id="crops and small regions"),
        pytest.param(CHELSEA, BASE | {"output_mode": "coco_rle"}, id="compressed"),
        pytest.param(
            COFFEE,
            BASE | WITHOUT_CROPS | {"min_mask_region_area": 0, "output_mode": "uncompressed_rle"},
            id="run lengths, the picture alone",
        ),
        pytest.param(
            CHELSEA,
            BASE
            | {"points_per_side": 6, "crop_n_points_downscale_factor": 1}
            | {"crop_n_layers": 2, "crop_overlap_ratio": 0.1},
            id="two layers",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            CHELSEA, BASE | GRIDS | {"stability_score_offset": 0.3}, id="grids of one's own", marks=pytest.mark.slow
        ),
        pytest.param(
            COFFEE,
            BASE | WITHOUT_CROPS | UNFILTERED | {"points_per_side": 6},
            id="no filter",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_records_are_those_of_the_official_generator(which, arguments):
    theirs = toy_reference(**arguments).generate(picture(*which))
    assert len(theirs) >= 24
    assert_same(toy(**arguments).generate(picture(*which)), theirs)


@pytest.mark.parametrize(
    "neutral",
    [
        {"pred_iou_thresh": 0.0},
        {"stability_score_thresh": 0.0},
        {"box_nms_thresh": 1.0},
        {"crop_nms_thresh": 1.0},
        {"min_mask_region_area": 0},
    ],
    ids=lambda neutral: next(iter(neutral)),
)
def test_every_filter_drops_masks(neutral):
    def masks(arguments):
        records = toy(**arguments).generate(picture(*COFFEE))
        return [(tuple(record["point_coords"][0]), record["area"]) for record in records]

    assert set(masks(BASE | neutral)) - set(masks(BASE))


def test_masks_that_a_crop_cuts_off_are_dropped(monkeypatch):
    found = toy(**BASE).generate(picture(*COFFEE))
    monkeypatch.setattr(mask_generator, "EDGE_DISTANCE", -1)
    assert len(toy(**BASE).generate(picture(*COFFEE))) > len(found)


def test_padding_of_the_last_batch_changes_nothing():
    arguments = BASE | WITHOUT_CROPS
    whole = toy(**arguments | {"points_per_batch": 144}).generate(picture(*CHELSEA))
    assert_same(toy(**arguments | {"points_per_batch": 100}).generate(picture(*CHELSEA)), whole)


# The thresholds are quartiles and medians of what these weights predict.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "thresholds", "masks"),
    [
        pytest.param(sam_pair.CONFIG, {"pred_iou_thresh": 0.67, "stability_score_thresh": 0.77}, 108, id="SAM"),
        pytest.param(
            sam_pair.HQ_CONFIG,
            {"pred_iou_thresh": 0.753, "stability_score_thresh": 0.82},
            36,
            id="HQ-SAM",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_sam_with_random_weights_has_the_records_of_its_official_twin(config, thresholds, masks):
    official = torch_sam.build(config)
    torch_sam.randomise(official, 0)
    params = twins.convert(official.state_dict(), config)
    package = segment_anything_hq if config.hq else segment_anything
    # Masks from all over the picture have nearly the same boxes: without the suppression of duplicates.
    arguments = {"points_per_side": 6, "box_nms_thresh": 1.0} | thresholds
    theirs = package.SamAutomaticMaskGenerator(official, **arguments).generate(picture(*COFFEE))
    assert masks / 4 < len(theirs) < masks * 3 / 4
    assert_same(MaskGenerator(assemble(config), params, **arguments).generate(picture(*COFFEE)), theirs)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_a_picture_of_one_pixel_has_masks_of_one_pixel_or_none(layers):
    # The official code makes empty crops of it and fails.
    arguments = UNFILTERED | {"points_per_side": 6, "points_per_batch": 36, "crop_n_layers": layers}
    records = toy(**arguments).generate(np.full((1, 1, 3), 100, np.uint8))
    assert {record["area"] for record in records} == {0, 1}
    assert {(*record["bbox"], *record["crop_box"]) for record in records} == {(0, 0, 0, 0, 0, 0, 1, 1)}


def test_where_nothing_passes_there_are_no_records():
    # The official code fails here: it asks for the areas of no crops.
    assert toy(**BASE | {"pred_iou_thresh": 1.1}).generate(picture(*CHELSEA)) == []


def test_a_mask_that_is_empty_at_both_cuts_is_kept_where_nothing_is_filtered():
    arguments = UNFILTERED | {"points_per_side": 6}
    theirs = toy_reference(level=-2.0, **arguments).generate(picture(*CHELSEA))
    ours = toy(level=-2.0, **arguments).generate(picture(*CHELSEA))
    assert_same(ours, theirs)
    assert all(math.isnan(record["stability_score"]) for record in ours)
    assert toy(level=-2.0, **arguments | {"stability_score_thresh": 0.01}).generate(picture(*CHELSEA)) == []


def test_pictures_of_similar_sizes_share_their_programs(monkeypatch):
    traced = []
    by_rows = mask_generator.by_rows
    monkeypatch.setattr(mask_generator, "by_rows", lambda *arguments: traced.append(None) or by_rows(*arguments))
    mask_generator._measure.clear_cache()
    generator = toy(**BASE | WITHOUT_CROPS)
    generator.generate(picture("chelsea", 200, 130))
    programs = len(traced)
    assert programs > 0
    generator.generate(picture("chelsea", 256, 255))
    assert len(traced) == programs


def test_192_masks_of_12_megapixels_are_measured_in_the_memory_of_half_a_mask():
    # segment_anything holds all their logits at once: 9 GB.
    low_res_masks, wanted = jax.ShapeDtypeStruct((64, 3, 256, 256), np.float32), np.ones((64, 3), bool)
    rows, columns = upscaling_axes((3000, 4000), mask_size=256, frame=Frame(1024))
    program = mask_generator._measure.lower(low_res_masks, wanted, rows, columns, 1.0).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * 3000 * 4000 / 2


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("size_hw", [(333, 500), (1501, 2003), (40, 41)])
def test_crops_are_those_of_the_official_generator(size_hw, layers):
    boxes, numbers = amg.generate_crop_boxes(size_hw, layers, 512 / 1500)
    ours = mask_generator.crop_boxes(size_hw, layers, 512 / 1500)
    assert ours == list(zip(map(tuple, boxes), numbers, strict=True))


def test_crops_without_pixels_are_left_out():
    boxes = [box for box, _ in mask_generator.crop_boxes((1, 3), 2, 0.3)]
    assert all(x0 < x1 and y0 < y1 for x0, y0, x1, y1 in boxes)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_grids_are_those_of_the_official_generator(factor):
    arguments = {"points_per_side": 10, "crop_n_layers": 2, "crop_n_points_downscale_factor": factor}
    theirs = amg.build_all_layer_point_grids(10, 2, factor)
    for ours, their in zip(toy(**arguments).point_grids, theirs, strict=True):
        np.testing.assert_array_equal(ours, their)


def random_boxes(count):
    near, side = np.random.default_rng(0).integers(0, 12, (2, count, 2))  # ties, equal boxes, and some without area
    return np.concatenate([near, near + side], axis=1)


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.6, 0.7, 1.0])
def test_non_maximum_suppression_is_torchvision_s(threshold):
    boxes = random_boxes(200)
    scores = np.random.default_rng(1).integers(0, 9, 200).astype(np.float32)
    theirs = stand_ins.batched_nms(
        torch.from_numpy(boxes).float(), torch.from_numpy(scores), torch.zeros(200), threshold
    )
    assert mask_generator.nms(boxes, scores, threshold) == theirs.tolist()


def test_an_iou_of_six_tenths_is_above_six_tenths():
    # In float32 it is 0.60000002, and torchvision compares it with the threshold in float64.
    boxes = [np.array([0, 0, 10, 10]), np.array([0, 0, 10, 6])]
    assert mask_generator.nms(boxes, np.ones(2, np.float32), 0.6) == [0]


def test_boxes_near_the_edge_of_a_crop_are_those_of_the_official_generator():
    crop, size_hw = (50, 40, 150, 200), (200, 300)
    boxes = np.random.default_rng(0).integers(0, 100, (500, 4))
    theirs = amg.is_box_near_crop_edge(torch.from_numpy(boxes), list(crop), [0, 0, 300, 200])
    ours = mask_generator.cut_off(boxes + np.array([50, 40, 50, 40]), crop, size_hw)
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert 0 < ours.sum() < 500


@pytest.mark.parametrize("density", [0.0, 0.1, 0.4, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("least_area", [1, 5, 30, 10_000])  # the last is more than there is: the largest island stays
def test_small_regions_go_as_in_the_official_generator(density, least_area):
    mask = np.random.default_rng(0).random((40, 50)) < density
    filled, had_holes = amg.remove_small_regions(mask, least_area, "holes")
    theirs, had_islands = amg.remove_small_regions(filled, least_area, "islands")
    ours, had_small_regions = mask_generator.without_small_regions(mask, least_area)
    np.testing.assert_array_equal(ours, theirs)
    assert had_small_regions == (had_holes or had_islands)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points_per_side": None}, "points_per_side and point_grids exclude each other"),
        ({"point_grids": [np.zeros((1, 2))]}, "points_per_side and point_grids exclude each other"),
        ({"points_per_side": 0}, "points_per_side is 0; it must be at least 1"),
        ({"points_per_batch": 0}, "points_per_batch is 0; it must be at least 1"),
        ({"crop_n_layers": -1}, "crop_n_layers is -1; it must be at least 0"),
        ({"min_mask_region_area": -1}, "min_mask_region_area is -1"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor is 0"),
        ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio is 1.0; it must be at least 0 and below 1"),
        ({"output_mode": "png"}, "output_mode is 'png'; it must be one of binary_mask, uncompressed_rle, coco_rle"),
        ({"points_per_side": 3, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, "layer 2 without a point"),
        ({"points_per_side": None, "point_grids": [GRID := np.zeros((1, 2))], "crop_n_layers": 1}, "has 1 grids;"),
        ({"points_per_side": None, "point_grids": [np.zeros((0, 2))]}, r"point_grids\[0\] has shape \(0, 2\)"),
        ({"points_per_side": None, "point_grids": [np.zeros(2)]}, r"point_grids\[0\] has shape \(2,\)"),
        ({"points_per_side": None, "point_grids": [GRID + 1.5]}, r"numbers in 0..1"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        toy(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), []])
def test_another_thing_than_a_picture_is_refused(wrong):
    with pytest.raises(InputError, match="picture has shape"):
        toy().generate(wrong)
