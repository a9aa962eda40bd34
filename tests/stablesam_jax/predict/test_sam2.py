"""Predictor on a SAM 2 predicts what SAM2ImagePredictor predicts, and what works on a SAM works on it."""

import dataclasses

import jax
import numpy as np
import pytest

from eval.parity import torch_sam, torch_sam2, twins
from eval.parity.__main__ import draw_prompts
from stablesam_jax.build import assemble
from stablesam_jax.compat import Sam
from stablesam_jax.config import PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model.sam2 import LOGIT_LIMIT
from stablesam_jax.predict.mask_generator import MaskGenerator
from stablesam_jax.predict.predictor import Predictor
from tests.reference import small

PICTURE = np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)


def arguments(prompt):
    """Those that both predictors take."""
    has_points = len(prompt.labels) > 0
    return {
        "point_coords": prompt.points if has_points else None,
        "point_labels": prompt.labels if has_points else None,
        "box": prompt.box,
        "mask_input": None if prompt.mask is None else prompt.mask[None],
    }


@pytest.mark.slow
def test_every_form_of_prompt_gives_the_official_masks_scores_and_logits():
    config = small.SAM2_CONFIG
    official = torch_sam.build(config)
    torch_sam.randomise(official, seed=0)
    for network in official.sam_mask_decoder.output_hypernetworks_mlps:
        for tensor in network.layers[2].state_dict().values():
            tensor *= 4  # some logits are beyond the limit then
    theirs = torch_sam2.predictor(official)
    theirs.set_image(PICTURE)
    ours = Predictor(assemble(config), twins.convert(official.state_dict(), config))
    ours.set_image(PICTURE)
    limited = 0
    for prompt in draw_prompts(0, PICTURE.shape[:2], config.mask_size):
        for multi in (False, True):
            masks, iou, low_res = theirs.predict(**arguments(prompt), multimask_output=multi)
            our_masks, our_iou, our_low_res = ours.predict(**arguments(prompt), multimask_output=multi)
            np.testing.assert_array_equal(our_masks, masks.astype(bool))
            np.testing.assert_allclose(our_iou, iou, rtol=0, atol=2e-6)
            np.testing.assert_allclose(our_low_res, low_res, rtol=0, atol=1e-3)
            limited += int((np.abs(low_res) == LOGIT_LIMIT).sum())
    assert limited > 0


@pytest.fixture(scope="module")
def predictor():
    with small.quick_compilation():
        found = Predictor(*small.sam2())
        found.set_image(PICTURE)
        yield found


@pytest.mark.slow
def test_a_picture_is_saved_and_read_with_its_finer_maps(predictor, tmp_path):
    picture = predictor.encode(PICTURE)
    picture.save(tmp_path / "picture.safetensors")
    masks, _, _ = predictor.predict(box=[20, 30, 100, 80], picture=picture)
    predictor.load_embedding(tmp_path / "picture.safetensors")
    np.testing.assert_array_equal(predictor.predict(box=[20, 30, 100, 80])[0], masks)


@pytest.mark.slow
@pytest.mark.usefixtures("predictor")
def test_the_mask_generator_covers_the_picture():
    options = {"points_per_side": 4, "pred_iou_thresh": 0, "stability_score_thresh": 0}
    records = MaskGenerator(*small.sam2(), **options).generate(PICTURE)
    assert records
    assert all(record["segmentation"].shape == (90, 150) for record in records)


@pytest.mark.slow
def test_the_worst_box_stays_near_the_given_one(predictor):
    worst = predictor.worst_box([20, 30, 100, 80])
    assert worst.mask.shape == (90, 150)
    assert 0 <= worst.iou <= worst.iou_before
    assert np.abs(np.array(worst.box) - [20, 30, 100, 80]).max() < 60


@pytest.mark.slow
def test_a_plugin_without_effect_changes_no_mask_and_one_with_effect_does(predictor):
    sam, params = small.stable_sam2()
    assert sam.config.plugin == PluginConfig()
    fresh = Predictor(sam, params)
    fresh.set_image(PICTURE)
    box = [20, 30, 100, 80]
    with small.quick_compilation():
        before = predictor.predict(box=box, return_logits=True)[0]
        np.testing.assert_allclose(fresh.predict(box=box, return_logits=True)[0], before, rtol=0, atol=1e-4)
        moved = jax.tree.map(lambda leaf: leaf + 0.1, params["plugin"])
        stable = Predictor(sam, params | {"plugin": moved})
        assert (
            np.abs(stable.predict(box=box, return_logits=True, picture=fresh.encode(PICTURE))[0] - before).max() > 0.01
        )


def test_classes_of_segment_anything_refuse_a_sam_2():
    with pytest.raises(InputError, match="segment_anything's classes do not fit a SAM 2; use Predictor"):
        Sam(*small.sam2())


def test_a_plugin_of_another_width_is_refused():
    with pytest.raises(InputError, match="features are 256 channels wide, the plugin's 128"):
        dataclasses.replace(small.SAM2_CONFIG, plugin=PluginConfig(embedding_width=128))
