"""sam_nano for PyTorch is ours in logits and in gradients of the plugin, and SamPredictor drives it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert.flax_to_torch import plugin_state
from convert.rules import to_torch
from eval.parity import torch_sam
from stablesam_jax import Predictor
from stablesam_jax.build import assemble, load_model
from stablesam_jax.config import MODELS, PluginConfig
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.params import flatten
from stablesam_torch import nano as torch_nano
from stablesam_torch import nano_encoder
from stablesam_torch.nano import NanoSam
from stablesam_torch.plugin import stabilise
from tests.reference import small
from tests.reference.pictures import ramp
from tests.reference.sam_pair import difference, normal, quick_jit

CONFIG = small.CONFIG
TOLERANCE = 1e-9  # of logits, relative to the largest; float64 rounding is 2e-15
GRADIENT_TOLERANCE = 1e-8
# Points with their token that is no point; a box; a point and a box.
LABELS = np.array([[1, 0, -1], [2, 3, -1], [1, 2, 3]], np.int32)
VALID = np.array([[True] * 3, [True, True, False], [True] * 3])


def drawn_plugin(config):
    """Values that affect masks in every leaf of the plugin."""
    rng = np.random.default_rng(5)
    _, params = small.system(hq=False, plugin=config)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1 * rng.standard_normal(leaf.shape), params["plugin"])


def twin(params, size=CONFIG.image_size, plugin=None, config=None):
    """NanoSam with our parameters."""
    sam = NanoSam(size)
    sam.load_state_dict({name: torch.tensor(array) for name, array in to_torch(params).items()}, strict=True)
    return (stabilise(sam, plugin_state(plugin, config, {})) if plugin is not None else sam).eval()


def test_the_sizes_are_those_of_our_configuration():
    ours = MODELS["sam_nano"]
    assert tuple(dataclasses.astuple(stage) for stage in ours.encoder.stages) == nano_encoder.STAGES
    assert (ours.encoder.stem_width, ours.encoder.taps) == (nano_encoder.STEM_WIDTH, nano_encoder.TAPS)
    assert (ours.encoder.patch_size, ours.embedding_width) == (torch_nano.PATCH_SIZE, nano_encoder.WIDTH)
    assert ours.pixel_mean == (torch_nano.PIXEL_MEAN,) * 3
    assert ours.pixel_std == (torch_nano.PIXEL_STD,) * 3
    assert NanoSam().image_encoder.img_size == ours.image_size


def test_every_activation_from_picture_to_logits_is_ours_in_float64():
    sam, params = small.nano()
    picture = normal(1, CONFIG.image_size, CONFIG.image_size, 3)
    model = twin(params).double()
    coords = np.random.default_rng(1).uniform(0, CONFIG.image_size, (3, 3, 2))
    masks = 8 * normal(3, CONFIG.mask_size, CONFIG.mask_size)
    with jax.enable_x64(True), torch.no_grad():
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float64), params)
        apply = quick_jit(sam.apply, static_argnames=("method", "masks"))
        embedding = apply({"params": wide}, picture, method="encode")
        features = model.image_encoder(torch.from_numpy(picture).permute(0, 3, 1, 2))
        assert difference(embedding.features, features.permute(0, 2, 3, 1)) < TOLERANCE
        prompts = Prompts(coords[None], LABELS[None], VALID[None], masks[None], jnp.array([[False, False, True]]))
        ours = apply({"params": wide}, embedding, prompts, method="decode", masks="all")
        for index, (points, has_box) in enumerate([(2, False), (0, True), (1, True)]):
            corners = coords[index, 1:] if points else coords[index, :2]
            sparse, dense = model.prompt_encoder(
                points=(torch.from_numpy(coords[index, None, :points]), torch.tensor(LABELS[index, None, :points]))
                if points
                else None,
                boxes=torch.from_numpy(corners.reshape(1, 4)) if has_box else None,
                masks=torch.from_numpy(masks[index, None, None]) if index == 2 else None,
            )
            logits, iou = model.mask_decoder.predict_masks(features, model.prompt_encoder.get_dense_pe(), sparse, dense)
            assert difference(ours.low_res_masks[0, index], logits[0]) < TOLERANCE
            assert difference(ours.iou_predictions[0, index], iou[0]) < TOLERANCE


def test_corners_of_a_box_may_be_given_as_points_with_labels_2_and_3():
    encoder = NanoSam(64).prompt_encoder
    box = torch.tensor([[3.0, 4, 40, 50]])
    as_box, _ = encoder(None, box, None)
    assert torch.equal(as_box, encoder.embed_tokens(box.reshape(1, 2, 2), torch.tensor([[2, 3]])))


@pytest.mark.slow
@pytest.mark.parametrize("config", [PluginConfig(first_pass=(1.0, 0.0, 1.0, 1.0)), PluginConfig()])
def test_a_stable_sam_nano_has_our_gradient_of_every_plugin_parameter_in_float64(config):
    _, params = small.nano()
    stable = assemble(dataclasses.replace(CONFIG, plugin=config))
    plugin = drawn_plugin(config)
    coords = np.array([[[[8.0, 9], [50, 44]]], [[[20, 12], [31, 60]]]]).swapaxes(0, 1)  # two boxes
    prompts = Prompts(coords, jnp.full((1, 2, 2), 2, jnp.int32).at[..., 1].set(3), jnp.ones((1, 2, 2), bool))
    cotangent = normal(2, 4, CONFIG.mask_size, CONFIG.mask_size, seed=9)
    features = normal(1, CONFIG.grid_size, CONFIG.grid_size, CONFIG.embedding_width, seed=3)
    with jax.enable_x64(True):
        wide, own = (jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float64), tree) for tree in (params, plugin))

        def loss(plugin):
            variables = {"params": wide | {"plugin": plugin}}
            masks = stable.apply(variables, ImageEmbedding(features), prompts, method="decode", masks="all")
            return jnp.sum(masks.low_res_masks[0] * cotangent), masks.low_res_masks[0]

        (_, ours), gradients = quick_jit(jax.value_and_grad(loss, has_aux=True))(own)
    model = twin(params, plugin=plugin, config=config).double()
    load = {name.replace("/", "."): torch.as_tensor(leaf) for name, leaf in flatten(plugin).items()}
    for name, parameter in model.plugin.named_parameters():
        parameter.data = load[name]  # all digits of float64, which files do not hold
    sparse, dense = model.prompt_encoder(None, torch.from_numpy(coords).reshape(2, 4), None)
    logits, _ = model.mask_decoder.predict_masks(
        torch.from_numpy(features).permute(0, 3, 1, 2), model.prompt_encoder.get_dense_pe(), sparse, dense
    )
    assert difference(ours, logits.detach()) < TOLERANCE
    (logits * torch.from_numpy(cotangent)).sum().backward()
    for path, gradient in flatten(gradients).items():
        theirs = model.plugin.get_parameter(path.replace("/", ".")).grad
        assert theirs.abs().max() > 0, path
        assert difference(gradient, theirs) < GRADIENT_TOLERANCE, path


@functools.cache
def shipped():
    return load_model("sam_nano+stable_sam_nano")


@pytest.mark.slow
def test_sam_predictor_on_the_shipped_model_with_its_plugin_has_the_masks_of_our_predictor():
    sam, params = shipped()
    base = {name: leaf for name, leaf in params.items() if name != "plugin"}
    model = twin(base, size=512, plugin=params["plugin"], config=sam.config.plugin)
    theirs, ours = torch_sam.SamPredictor(model), Predictor(sam, params)
    picture = ramp(333, 500)
    theirs.set_image(picture)
    ours.set_image(picture)
    for prompt in (
        {"box": np.array([60.0, 40, 330, 260])},
        {"point_coords": np.array([[250.0, 120], [20, 30]]), "point_labels": np.array([1, 0])},
    ):
        for multimask in (False, True):
            expected, iou, logits = ours.predict(**prompt, multimask_output=multimask)
            masks, their_iou, their_logits = theirs.predict(**prompt, multimask_output=multimask)
            scale = their_logits.std()
            assert np.abs(logits - their_logits).max() < 2.5e-5 * scale
            assert np.sqrt(np.square(logits - their_logits).mean()) < 4e-6 * scale
            np.testing.assert_allclose(iou, their_iou, rtol=0, atol=2e-6)
            assert np.mean(masks != expected) <= 1e-5


def test_the_batched_form_of_sam_has_the_masks_of_the_predictor():
    _, params = small.nano()
    model = twin(params)
    predictor = torch_sam.SamPredictor(model)
    picture = ramp(30, 40)
    predictor.set_image(picture)
    box = np.array([8.0, 5, 30, 22])
    masks, iou, low_res = predictor.predict(box=box, multimask_output=True)
    resized = torch.from_numpy(predictor.transform.apply_image(picture)).permute(2, 0, 1)
    boxes = torch.from_numpy(predictor.transform.apply_boxes(box[None], (30, 40))).float()
    (record,) = model([{"image": resized, "original_size": (30, 40), "boxes": boxes}], multimask_output=True)
    np.testing.assert_array_equal(record["masks"][0], masks)
    np.testing.assert_array_equal(record["low_res_logits"][0], low_res)
    np.testing.assert_array_equal(record["iou_predictions"][0], iou)
    assert 0.02 < masks.mean() < 0.98


def test_a_side_that_the_encoder_cannot_halve_is_refused():
    with pytest.raises(ValueError, match="image_size 500: must be a positive multiple of 32"):
        NanoSam(500)


def test_half_precision_keeps_the_pixel_of_a_point():
    encoder = NanoSam(512).prompt_encoder
    here, there = (torch.tensor([[[x, 300.0]]]) for x in (300.0, 301.0))
    label = torch.ones(1, 1, dtype=torch.int64)
    expected = encoder.embed_tokens(here, label)
    encoder.half()
    found = encoder.embed_tokens(here, label)
    assert found.dtype == torch.float16
    assert (found - expected).abs().max() < 0.01
    assert (encoder.embed_tokens(there, label) - found).abs().max() > 0.01
