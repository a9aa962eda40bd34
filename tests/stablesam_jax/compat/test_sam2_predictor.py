"""SAM2ImagePredictor, called as sam2's notebook and other programs call it, answers as the official one."""

import copy
import functools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from eval.parity import torch_sam, torch_sam2, twins
from stablesam_jax import build, compat
from stablesam_jax.data.collage import ASSETS
from stablesam_jax.errors import InputError
from stablesam_jax.files.checkpoint import save_model
from stablesam_jax.files.picture_file import read_picture
from tests.reference import small
from tests.reference.tiers import slow

# isort: split
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from sam2.utils import misc

CONFIG = small.SAM2_CONFIG
PICTURE = read_picture(ASSETS / "im" / "coffee.jpg")
HEIGHT, WIDTH = PICTURE.shape[:2]
OTHER = np.ascontiguousarray(PICTURE[:100, ::-1])
BOXES = np.array([[40, 30, 260, 280], [120, 60, 480, 320], [10, 10, 160, 90]])
SIDE = CONFIG.mask_size


@functools.cache
def models():
    """The official model and ours, with the same random weights."""
    official = torch_sam.build(CONFIG)
    torch_sam.randomise(official, seed=0)
    return official, compat.SAM2Base(build.assemble(CONFIG), twins.convert(official.state_dict(), CONFIG))


def predictors():
    """The official predictor and ours."""
    official, ours = models()
    return torch_sam2.predictor(official), compat.SAM2ImagePredictor(ours)


def check(ours, theirs):
    """Equal within the float32 bounds of results/sam2.md, arrays or tensors, or lists of them."""
    assert type(ours) is type(theirs)
    if isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for mine, yours in zip(ours, theirs, strict=True):
            check(mine, yours)
        return
    assert tuple(ours.shape) == tuple(theirs.shape)
    assert ours.dtype == theirs.dtype
    ours, theirs = (np.asarray(each) for each in (ours, theirs))
    if set(np.unique(theirs)) <= {0, 1}:
        assert np.mean(ours != theirs) <= 1e-5
        assert 0 < theirs.mean() < 1
    else:
        assert np.abs(ours - theirs).max() <= max(4e-5 * theirs.std(), 2e-6)  # the latter for predicted IoU


def both(call):
    """What each of the two says to a call."""
    theirs, ours = (call(each) for each in predictors())
    check(ours, theirs)


def notebook_points(predictor):
    predictor.set_image(PICTURE)
    input_point = np.array([[100, 80]])
    input_label = np.array([1])
    assert predictor._features["image_embed"].shape == (1, 256, 4, 4)
    masks, scores, logits = predictor.predict(
        point_coords=input_point,
        point_labels=input_label,
        multimask_output=True,
    )
    sorted_ind = np.argsort(scores)[::-1]
    masks = masks[sorted_ind]
    scores = scores[sorted_ind]
    logits = logits[sorted_ind]

    input_point = np.array([[100, 80], [200, 30]])
    input_label = np.array([1, 0])
    mask_input = logits[np.argmax(scores), :, :]  # Choose the model's best mask
    again = predictor.predict(
        point_coords=input_point,
        point_labels=input_label,
        mask_input=mask_input[None, :, :],
        multimask_output=False,
    )
    return masks, scores, logits, *again


def notebook_boxes(predictor):
    predictor.set_image(PICTURE)
    one = predictor.predict(
        point_coords=None,
        point_labels=None,
        box=BOXES[0][None, :],
        multimask_output=False,
    )
    combined = predictor.predict(
        point_coords=np.array([[100, 80]]),
        point_labels=np.array([0]),
        box=BOXES[0],
        multimask_output=False,
    )
    batched = predictor.predict(
        point_coords=None,
        point_labels=None,
        box=BOXES,
        multimask_output=False,
    )
    assert batched[0].shape == (3, 1, HEIGHT, WIDTH)  # (batch_size) x (num_predicted_masks_per_input) x H x W
    return *one, *combined, *batched


def notebook_batch(predictor):
    predictor.set_image_batch([PICTURE, OTHER])
    of_boxes = predictor.predict_batch(None, None, box_batch=[BOXES, BOXES[:1]], multimask_output=False)
    points = [np.array([[[100, 80]], [[200, 30]]]), np.array([[[40, 30]], [[80, 60]]])]  # Bx1x2
    masks_batch, scores_batch, logits = predictor.predict_batch(
        points, [np.array([[1], [1]])] * 2, box_batch=None, multimask_output=True
    )
    best_masks = []
    for masks, scores in zip(masks_batch, scores_batch, strict=True):
        best_masks.append(masks[range(len(masks)), np.argmax(scores, axis=-1)])
    assert predictor._is_batch
    assert predictor._orig_hw == [(HEIGHT, WIDTH), (100, WIDTH)]
    return *of_boxes, masks_batch, scores_batch, logits, best_masks


@pytest.mark.parametrize("call", [notebook_points, *slow(notebook_boxes, notebook_batch)])
def test_the_calls_of_the_official_notebook(call):
    both(call)


@pytest.mark.slow
def test_the_demo_of_grounded_sam_2():
    """grounded_sam2_local_demo.py and _hf_model_demo.py, from the boxes of the detector to the masks."""

    def call(sam2_predictor):
        image = Image.fromarray(PICTURE)
        sam2_predictor.set_image(np.array(image.convert("RGB")))
        h, w = PICTURE.shape[:2]
        boxes = torch.tensor([[0.3, 0.4, 0.4, 0.5], [0.6, 0.5, 0.5, 0.6]])
        boxes = boxes * torch.Tensor([w, h, w, h])
        input_boxes = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1).numpy()
        with torch.autocast(device_type="cpu", dtype=torch.bfloat16, enabled=False):
            masks, scores, logits = sam2_predictor.predict(
                point_coords=None,
                point_labels=None,
                box=input_boxes,
                multimask_output=False,
            )
        if masks.ndim == 4:
            masks = masks.squeeze(1)
        return masks, scores, logits, masks.astype(bool)

    both(call)


@pytest.mark.slow
def test_logits_and_coordinates_as_shares_and_tensors():
    def call(predictor):
        predictor.set_image(Image.fromarray(PICTURE))
        shares = torch.tensor([[[0.4, 0.5], [0.8, 0.2]]] * 2), torch.tensor([[1, 0], [1, -1]])
        boxes = BOXES[:2] / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
        mask = np.sin(np.arange(SIDE * SIDE, dtype=np.float32)).reshape(1, SIDE, SIDE)
        options = {"return_logits": True, "normalize_coords": False}
        return *predictor.predict(*shares, boxes, mask, **options), *predictor.predict(mask_input=mask, **options)

    both(call)


@pytest.mark.slow
def test_another_threshold_moves_the_masks():
    def call(predictor):
        predictor.mask_threshold = 0.3
        predictor.set_image(PICTURE)
        return predictor.predict(box=BOXES[1])

    both(call)


def test_features_are_read_reset_and_assigned():
    def call(predictor):
        predictor.set_image_batch([OTHER, PICTURE])
        features, sizes = predictor._features, predictor._orig_hw
        embedding = predictor.get_image_embedding()
        predictor.reset_predictor()
        assert (predictor._is_image_set, predictor._is_batch) == (False, False)
        assert predictor._features is predictor._orig_hw is None
        predictor._orig_hw = sizes[1:]
        predictor._features = {
            "image_embed": features["image_embed"][1:],
            "high_res_feats": [one[1:] for one in features["high_res_feats"]],
        }
        predictor._is_image_set = True
        return embedding, features["high_res_feats"], predictor.predict(box=BOXES[1], return_logits=True)

    both(call)


@pytest.fixture
def regions_of_a_gpu(monkeypatch):
    """8-connected regions and their areas, which sam2 computes on a GPU alone."""

    def regions(masks):
        labels, areas = np.zeros(masks.shape, np.int32), np.zeros(masks.shape, np.int32)
        for index in range(len(masks)):
            labels[index, 0], _ = ndimage.label(masks[index, 0], np.ones((3, 3)))
            areas[index] = np.where(labels[index], np.bincount(labels[index].ravel())[labels[index]], 0)
        return torch.from_numpy(labels), torch.from_numpy(areas)

    monkeypatch.setattr(misc, "get_connected_components", regions)


@pytest.mark.usefixtures("regions_of_a_gpu")
def test_small_holes_are_filled_and_small_specks_removed():
    theirs, ours = predictors()
    theirs._transforms.max_hole_area, theirs._transforms.max_sprinkle_area = 6.0, 9.0
    cleaned = compat.SAM2ImagePredictor(ours.model, max_hole_area=6.0, max_sprinkle_area=9.0)
    found = []
    for predictor in (cleaned, theirs, ours):
        predictor.set_image(PICTURE)
        found.append(predictor.predict(box=BOXES, return_logits=True))
    check(*found[:2])
    assert np.abs(found[0][0] - found[2][0]).max() > 5
    np.testing.assert_array_equal(found[0][2], found[2][2])  # the low-resolution logits are as before


def test_an_unstable_single_mask_stays_without_postprocessing():
    official = copy.deepcopy(models()[0])
    with torch.no_grad():
        for values in official.sam_mask_decoder.output_hypernetworks_mlps[0].layers[-1].parameters():
            values *= 0.01  # so that many logits are about 0
    sam, params = models()[1].sam, twins.convert(official.state_dict(), CONFIG)
    theirs, found = torch_sam2.predictor(official), []
    for dynamic in (False, True):
        official.sam_mask_decoder.dynamic_multimask_via_stability = dynamic
        ours = compat.SAM2ImagePredictor(compat.SAM2Base(sam, params, dynamic))
        for predictor in (ours, theirs):
            predictor.set_image(PICTURE)
            found.append(predictor.predict(box=BOXES[0], multimask_output=False))
        check(*found[-2:])
    assert np.abs(found[0][2]).max() < 1 < np.abs(found[2][2]).max()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@pytest.mark.usefixtures("regions_of_a_gpu")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"multimask_output": False},
        {"use_m2m": True, "min_mask_region_area": 6.0, "mask_threshold": 0.4, "points_per_batch": 7},
    ],
    ids=["three-masks", "one-mask", "refined"],
)
def test_the_mask_generator_finds_the_official_masks(options):
    official, ours = models()
    # Boxes around masks of random weights are all alike: with less than 1 one mask would remain.
    options |= {"points_per_side": 4, "pred_iou_thresh": 0.4, "stability_score_thresh": 0.45, "box_nms_thresh": 1.0}
    theirs = SAM2AutomaticMaskGenerator(official, **options)
    theirs.predictor._bb_feat_sizes = torch_sam2.predictor(official)._bb_feat_sizes
    found, expected = compat.SAM2AutomaticMaskGenerator(ours, **options).generate(PICTURE), theirs.generate(PICTURE)
    assert 3 < len(found) == len(expected)
    for mine, yours in zip(found, expected, strict=True):
        assert mine.keys() == yours.keys()
        assert np.mean(mine["segmentation"] != yours["segmentation"]) <= 1e-4
        assert mine["point_coords"] == yours["point_coords"]
        assert mine["bbox"] == pytest.approx(yours["bbox"], abs=1)
        assert mine["predicted_iou"] == pytest.approx(yours["predicted_iou"], abs=2e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_the_mask_generator_has_sam2s_defaults():
    official, ours = models()
    mine, yours = compat.SAM2AutomaticMaskGenerator(ours), SAM2AutomaticMaskGenerator(official)
    for name in (
        "points_per_batch",
        "pred_iou_thresh",
        "stability_score_thresh",
        "stability_score_offset",
        "box_nms_thresh",
        "crop_n_layers",
        "crop_nms_thresh",
        "crop_overlap_ratio",
        "crop_n_points_downscale_factor",
        "mask_threshold",
        "min_mask_region_area",
        "multimask_output",
        "output_mode",
        "use_m2m",
    ):
        assert getattr(mine, name) == getattr(yours, name), name
    np.testing.assert_array_equal(mine.point_grids[0], yours.point_grids[0])


def test_what_the_official_class_would_misread_is_refused_in_one_line():
    _, ours = predictors()
    with pytest.raises(RuntimeError, match="no picture is set; call set_image first"):
        ours.predict(box=BOXES[0])
    with pytest.raises(RuntimeError, match="no picture is set"):
        ours.get_image_embedding()
    with pytest.raises(InputError, match=r"expected \(H, W, 3\) uint8 in RGB"):
        ours.set_image(Image.fromarray(PICTURE).convert("L"))
    ours.set_image(PICTURE)
    for arguments, message in (
        ({}, "no prompt is given"),
        ({"point_coords": [[3, 4]]}, "point_coords is given without point_labels"),
        ({"box": BOXES[:, :3]}, "box has shape"),
        ({"box": BOXES, "point_coords": [[3, 4]], "point_labels": [1]}, "not for the same prompts"),
        ({"box": BOXES[0][[2, 3, 0, 1]]}, "is inverted"),
    ):
        with pytest.raises(InputError, match=message):
            ours.predict(**arguments)
    with pytest.raises(InputError, match="predict_batch is for pictures of set_image_batch"):
        ours.predict_batch(box_batch=[BOXES])
    ours.set_image_batch([PICTURE, OTHER])
    with pytest.raises(InputError, match="2 pictures are set; give each argument for as many"):
        ours.predict_batch(box_batch=[BOXES])
    with pytest.raises(InputError, match="give at least one picture"):
        ours.set_image_batch([])
    assert not ours._is_image_set
    ours._is_image_set = True
    with pytest.raises(InputError, match="assigned without _features and _orig_hw"):
        ours.predict(box=BOXES[0])
    for features in ({"image_embed": np.zeros((1, 256, 4, 4))}, [np.zeros((1, 256, 4, 4))]):
        with pytest.raises(InputError, match="has no image_embed and high_res_feats"):
            ours._features = features
    with pytest.raises(InputError, match="those of this model are"):
        ours._features = {"image_embed": np.zeros((1, 256, 5, 5)), "high_res_feats": [np.zeros((1, 32, 16, 16))] * 2}
    with pytest.raises(InputError, match="sam_model is of type Sam; give SAM2Base"):
        compat.SAM2ImagePredictor(small.sam2()[0])


def test_no_boxes_have_no_masks_and_threads_have_their_own_pictures():
    _, ours = predictors()
    ours.set_image(PICTURE)
    masks, iou, low_res = ours.predict(box=np.zeros((0, 4)), multimask_output=False)
    assert (masks.shape, iou.shape, low_res.shape) == ((0, 1, HEIGHT, WIDTH), (0, 1), (0, 1, SIDE, SIDE))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ours.set_image, OTHER).result()
        assert ours._orig_hw == [(HEIGHT, WIDTH)]
        shared = compat.SAM2ImagePredictor(compat.SAM2Base(*small.sam2(), shared_picture=True))
        shared.set_image(PICTURE)
        pool.submit(shared.set_image, OTHER).result()
    assert shared._orig_hw == [OTHER.shape[:2]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sam, params = small.sam2()
    path = tmp_path_factory.mktemp("models") / "small"
    save_model(path, params, config=sam.config, source={})
    return path


@pytest.mark.slow
def test_a_folder_is_a_pretrained_model(folder):
    ours = compat.SAM2ImagePredictor.from_pretrained(str(folder), mask_threshold=0.5)
    assert ours.mask_threshold == 0.5
    assert ours.model.image_size == CONFIG.image_size
    assert ours.model.to("cuda").eval().sam.config == CONFIG
    assert ours.device == ours.model.device == torch.device("cpu")
    options = {"device": "cuda", "mode": "eval", "hydra_overrides_extra": [], "apply_postprocessing": False}
    generator = compat.SAM2AutomaticMaskGenerator.from_pretrained(folder, points_per_side=2, **options)
    assert generator.sam.config == CONFIG
    for predictor in (generator.predictor, compat.SAM2ImagePredictor.from_pretrained(folder, **options)):
        assert not predictor.model.dynamic_multimask_via_stability
    with pytest.raises(InputError, match="mode and hydra_overrides_extra cannot be changed here"):
        compat.SAM2ImagePredictor.from_pretrained(folder, mode="train")
    with pytest.raises(InputError, match="sam_nano: is not a SAM 2"):
        compat.SAM2ImagePredictor.from_pretrained("sam_nano")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("configs/sam2.1/sam2.1_hiera_b+.yaml", "FOLDER"), "holds another model than sam2_hiera_b_plus"),
        (("sam2_hiera_t.yaml", "FOLDER"), "holds another model than sam2_hiera_t"),
        (("stable_sam2_hiera_l", "FOLDER"), "holds another model than sam2_hiera_l"),
        (("sam2_hiera_s",), "ckpt_path is missing"),
        (("sam_vit_b", "FOLDER"), "sam_vit_b: is no SAM 2; name one as configs"),
        (("sam2_hiera_s", "FOLDER", "cuda", "train"), "cannot be changed here; leave them out"),
    ],
)
def test_build_sam2_knows_the_names_of_configurations(folder, arguments, message):
    with pytest.raises(InputError, match=message):
        compat.build_sam2(*(folder if one == "FOLDER" else one for one in arguments))


def test_build_sam2_builds_the_model_of_a_configuration(folder, monkeypatch):
    monkeypatch.setitem(compat.sam2.MODELS, "sam2_hiera_t", CONFIG)
    model = compat.build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", folder, device="cuda", apply_postprocessing=False)
    assert model.sam.config == CONFIG
    assert not model.dynamic_multimask_via_stability
    assert not model.shared_picture
    assert compat.build_sam2(None, folder, shared_picture=True).shared_picture


@pytest.mark.slow
def test_without_pytorch_tensors_are_arrays(folder):
    code = f"""
import numpy as np, sys
from stablesam_jax.compat import SAM2ImagePredictor
predictor = SAM2ImagePredictor.from_pretrained({str(folder)!r})
predictor.set_image(np.zeros((40, 60, 3), np.uint8))
assert type(predictor.get_image_embedding()) is np.ndarray
predictor._features = predictor._features
assert predictor.predict(box=np.array([5, 5, 30, 30]))[0].shape == (3, 40, 60)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
