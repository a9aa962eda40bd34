"""The plugin for PyTorch is ours on the official models: logits, gradients, and what else its users rely on.

Its variants, without a model around them, are compared in test_plugin.py.
"""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert.flax_to_torch import plugin_state
from eval.parity import torch_sam  # torch_sam first: segment_anything may need its stand-ins
from stablesam_jax.build import assemble, shapes
from stablesam_jax.config import FirstPass, PluginConfig
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.params import flatten, unflatten
from stablesam_torch import plugin as torch_plugin
from stablesam_torch import plugin_config
from tests.reference.pictures import ramp
from tests.reference.sam_pair import (
    CONFIG,
    HQ_CONFIG,
    SAM2_CONFIG,
    SEEN,
    TOLERANCE,
    difference,
    float64_pair,
    normal,
    quick_jit,
)
from tests.stablesam_jax.model.test_sam import draw, official_logits

from segment_anything import SamPredictor  # isort: skip

WIDTH = CONFIG.embedding_width
GRADIENT_TOLERANCE = 1e-11  # sums over maps and prompts; float64 rounding is 2e-14 here
WHOLE = {
    "sam": dataclasses.replace(CONFIG, plugin=PluginConfig(embedding_width=WIDTH)),
    "hq-sam, all attentions, positions resampled": dataclasses.replace(
        HQ_CONFIG, plugin=PluginConfig(embedding_width=WIDTH, attentions=(0, 1, 2), positions="resampled")
    ),
    "sam 2": dataclasses.replace(SAM2_CONFIG, plugin=PluginConfig()),
    "sam 2, mean of its mask tokens": dataclasses.replace(SAM2_CONFIG, plugin=PluginConfig(router_token="mean")),
}


@functools.cache
def drawn(config):
    """A plugin with values that affect masks in every leaf."""
    rng = np.random.default_rng(5)

    def draw_leaf(path, shape):
        deviation = 1 / np.prod(shape[:-1]) ** 0.5 if path.endswith("kernel") else 0.2
        return path.endswith("scale") + deviation * rng.standard_normal(shape)

    leaves = flatten(shapes(assemble(config))["plugin"])
    return unflatten({path: draw_leaf(path, leaf.shape) for path, leaf in leaves.items()})


def state_of(config, **metadata):
    return plugin_state(drawn(config), config.plugin, metadata)


def logits_and_gradients(config):
    """Compiled: plugin, all parameters, embedding, prompts, cotangent -> all logits, plugin gradients."""

    def run(plugin, params, embedding, prompts, cotangent):
        def loss(plugin):
            masks = assemble(config).apply(
                {"params": params | {"plugin": plugin}}, embedding, prompts, method="decode", masks="all"
            )
            every = [masks.low_res_masks] if masks.hq_masks is None else [masks.low_res_masks, masks.hq_masks]
            logits = jnp.concatenate(every, axis=2)
            return jnp.sum(logits * cotangent), logits

        (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(plugin)
        return logits, gradients

    return quick_jit(run)


@pytest.mark.slow
@pytest.mark.parametrize("config", WHOLE.values(), ids=WHOLE)
def test_a_whole_stable_sam_has_our_logits_and_our_gradient_of_every_plugin_parameter(config):
    pictures, prompts = draw(config)
    picture, prompts = pictures[:1], jax.tree.map(lambda leaf: leaf[:1], prompts)
    cotangent = normal(1, 3, 5 if config.hq else 4, config.mask_size, config.mask_size, seed=9)
    encode = quick_jit(assemble(config).apply, static_argnames="method")
    with float64_pair(config) as pair:
        embedding = encode({"params": pair.params}, picture, method="encode")
        plugin = jax.tree.map(jnp.asarray, drawn(config))
        logits, gradients = logits_and_gradients(config)(plugin, pair.params, embedding, prompts, cotangent)
        base, _ = official_logits(pair.official, picture[0], prompts, (0, 0))
        stable = torch_plugin.stabilise(pair.official, state_of(config))
        for index in np.ndindex(1, 3):
            theirs, _ = official_logits(stable, picture[0], prompts, index)
            assert difference(logits[index][None], theirs.detach()) < TOLERANCE
            (theirs * torch.from_numpy(cotangent[index])).sum().backward()
    assert difference(logits[0, 0][None], base) > 0.1  # the plugin is not trivial
    for path, gradient in flatten(gradients).items():
        theirs = stable.plugin.get_parameter(path.replace("/", ".")).grad
        assert theirs.abs().max() > 0, path
        assert difference(gradient, theirs) < GRADIENT_TOLERANCE, path


def with_first_pass(*limits):
    return dataclasses.replace(CONFIG, plugin=dataclasses.replace(WHOLE["sam"].plugin, first_pass=limits))


@pytest.mark.slow
@pytest.mark.parametrize("limits", [0.4, 0.0, 1.0])
def test_a_first_pass_gives_our_masks_from_boxes_and_from_points(limits):
    config = dataclasses.replace(
        CONFIG, plugin=dataclasses.replace(WHOLE["sam"].plugin, first_pass=(limits, limits / 2, 0.1, limits))
    )
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.uniform(0, config.image_size, (4, 2, 2)), axis=1)
    with float64_pair(CONFIG) as pair:
        params = pair.params | {"plugin": jax.tree.map(jnp.asarray, drawn(config))}
        picture = draw(CONFIG)[0][:1]
        apply = quick_jit(assemble(config).apply, static_argnames="method")
        embedding = apply({"params": params}, picture, method="encode")
        stable = torch_plugin.stabilise(pair.official, state_of(config))
        features = torch.from_numpy(np.array(embedding.features)).permute(0, 3, 1, 2)
        for kind in ("boxes", "points"):
            labels = np.tile([[2, 3]] if kind == "boxes" else [[1, 0]], (4, 1)).astype(np.int32)
            prompts = Prompts(jnp.asarray(boxes)[None], jnp.asarray(labels)[None], jnp.ones((1, 4, 2), bool))
            ours = apply({"params": params}, embedding, prompts, method="decode")
            coords = torch.from_numpy(boxes)
            given = {"boxes": coords.reshape(4, 4), "points": None}
            if kind == "points":
                given = {"boxes": None, "points": (coords, torch.from_numpy(labels))}
            sparse, dense = stable.prompt_encoder(**given, masks=None)
            if kind == "points":  # official code adds a token of padding, which ours does not attend to
                sparse = sparse[:, :2]
            image_pe = stable.prompt_encoder.get_dense_pe()
            theirs, _ = stable.mask_decoder(features, image_pe, sparse, dense, multimask_output=False)
            assert difference(ours.low_res_masks[0], theirs.detach()) < TOLERANCE


def test_the_limits_of_a_first_pass_have_the_same_names_and_order():
    assert plugin_config.FirstPass._fields == FirstPass._fields


def test_a_first_pass_refuses_to_act_without_the_boxes_of_its_prompts(sam):
    stable = torch_plugin.stabilise(sam, state_of(with_first_pass(0.8, 0.4, 0.2, 0.4)))
    features = torch.zeros(1, WIDTH, CONFIG.grid_size, CONFIG.grid_size)
    arguments = (features, stable.prompt_encoder.get_dense_pe(), torch.zeros(2, 2, WIDTH), torch.zeros_like(features))
    with pytest.raises(RuntimeError, match="needs the prompts' boxes: call the prompt encoder first, or set_boxes"):
        stable.mask_decoder(*arguments, multimask_output=True)
    stable.plugin.set_boxes(torch.tensor([True, False]), torch.zeros(2, 4))
    stable.mask_decoder(*arguments, multimask_output=True)
    stable.prompt_encoder(points=None, boxes=torch.zeros(3, 4), masks=None)
    with pytest.raises(RuntimeError, match="needs the prompts' boxes"):  # of 3 prompts, where 2 are decoded
        stable.mask_decoder(*arguments, multimask_output=True)


def test_prompts_with_and_without_a_box_are_decoded_together(sam):
    stable = torch_plugin.stabilise(sam, state_of(with_first_pass(1.0, 0.0, 1.0, 0.0)))
    decoder, rng = stable.mask_decoder, torch.Generator().manual_seed(0)
    features = torch.randn(1, WIDTH, CONFIG.grid_size, CONFIG.grid_size, generator=rng)
    boxes = torch.tensor([[9.0, 9, 99, 99], [9.0, 9, 99, 99]])
    sparse, dense = stable.prompt_encoder(points=None, boxes=boxes, masks=None)
    arguments = (features, stable.prompt_encoder.get_dense_pe(), sparse, dense)
    with torch.no_grad():
        both, _ = decoder(*arguments, multimask_output=False)
        stable.plugin.set_boxes(torch.tensor([True, False]), boxes)  # its predicted IoU is above 0
        mixed, _ = decoder(*arguments, multimask_output=False)
        stable.plugin._alone = True
        alone, _ = type(decoder).predict_masks(decoder, *arguments)
    assert torch.equal(mixed[0], both[0])
    torch.testing.assert_close(mixed[1], alone[1, :1])
    assert (both[1] - mixed[1]).abs().max() > 0.1


@pytest.fixture
def sam():
    """A small SAM in float32."""
    official = torch_sam.build(CONFIG)
    torch_sam.randomise(official, seed=0)
    return official


STATE = state_of(WHOLE["sam"], base="sam_vit_b")


def predicted(sam):
    predictor = SamPredictor(sam)
    predictor.set_image(ramp(30, 40))
    return predictor.predict(box=np.array([8, 5, 30, 22]))[2]


def test_sam_predictor_works_on_top_and_has_other_masks_than_without(sam):
    before = predicted(sam)
    assert torch_plugin.stabilise(sam, STATE) is sam
    assert np.abs(predicted(sam) - before).max() > 1


def test_a_plugin_that_is_the_identity_changes_nothing(sam):
    state = {name: torch.zeros_like(leaf) for name, leaf in STATE.items() if name != "_extra_state"}
    state |= {"dsp.project.kernel": torch.eye(WIDTH), "drp.scale": torch.ones(())}
    before = predicted(sam)
    torch_plugin.stabilise(sam, STATE | state)
    # grid_sample takes positions in -1..1, where cells of the map lose two digits.
    np.testing.assert_allclose(predicted(sam), before, rtol=0, atol=1e-4)


def test_the_copy_of_a_model_has_a_plugin_of_its_own(sam):
    torch_plugin.stabilise(sam, STATE)
    before = predicted(sam)
    other = copy.deepcopy(sam)
    with torch.no_grad():
        other.plugin.drp.scale.zero_()
    assert np.abs(predicted(other) - before).max() > 1
    np.testing.assert_array_equal(predicted(sam), before)


def test_the_plugin_follows_its_models_device_and_dtype_and_keeps_offsets_precise_in_half_precision(sam):
    torch_plugin.stabilise(sam, STATE).to(torch.bfloat16)
    keys = torch.from_numpy(normal(1, 20, 20, WIDTH)).bfloat16()
    amplitudes, offsets = sam.plugin.dsp(keys)
    assert (amplitudes.dtype, offsets.dtype) == (torch.bfloat16, torch.float32)
    mixed, _ = sam.plugin(keys, keys, torch.ones(1, 6, WIDTH, dtype=torch.bfloat16))
    assert mixed.dtype == torch.bfloat16


def test_states_are_files_that_run_no_code_and_are_the_plugin_to_the_bit(sam, tmp_path):
    torch.save(STATE, tmp_path / "plugin.pth")
    torch_plugin.stabilise(sam, torch_plugin.load_plugin_state(tmp_path / "plugin.pth"))
    torch.save(sam.plugin.state_dict(), tmp_path / "again.pth")
    again = torch_plugin.load_plugin_state(tmp_path / "again.pth")
    assert torch.equal(again.pop("_extra_state"), STATE["_extra_state"])
    assert {f"plugin.{name}" for name in again} == {name for name, _ in sam.named_parameters() if "plugin" in name}
    for path, leaf in flatten(drawn(WHOLE["sam"])).items():
        np.testing.assert_array_equal(again[path.replace("/", ".")], leaf.astype(np.float32))


def test_files_of_earlier_versions_hold_the_configuration_as_a_dictionary(sam):
    torch_plugin.stabilise(sam, STATE | {"_extra_state": plugin_config.unpacked(STATE["_extra_state"])})
    assert torch.equal(sam.plugin.state_dict()["_extra_state"], STATE["_extra_state"])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the grid's side is a constant of the trace
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_stable_decoder_is_traced_with_its_plugin_from_a_state_of_tensors_alone(sam):
    torch_plugin.stabilise(sam, STATE)
    assert all(isinstance(value, torch.Tensor) for value in sam.state_dict().values())  # exporters require it
    grid, width = CONFIG.grid_size, CONFIG.embedding_width
    embedding, pe, dense = (torch.from_numpy(normal(1, width, grid, grid)).float() for _ in range(3))
    sparse = torch.from_numpy(normal(2, 3, width)).float()

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sam = sam

        def forward(self, embedding, pe, sparse, dense):
            return sam.mask_decoder.predict_masks(embedding, pe, sparse, dense)

    arguments = (embedding, pe, sparse, dense)
    with torch.no_grad():
        traced = torch.jit.trace(Decoder(), arguments, check_trace=False)
        for found, expected in zip(traced(*arguments), Decoder()(*arguments), strict=True):
            torch.testing.assert_close(found, expected)
    assert "grid_sampler" in str(traced.inlined_graph)


def spoil_offsets(plugin):
    plugin.dsp.offset.kernel.copy_(plugin.dsp.offset.kernel.flip(-1).clone())


def spoil_amplitudes(plugin):
    plugin.dsp.project.kernel.copy_(plugin.dsp.project.kernel.T.clone())


def spoil_depthwise(plugin):
    plugin.dsp.depthwise.kernel.copy_(plugin.dsp.depthwise.kernel.transpose(0, 1).clone())


def spoil_alpha(plugin):
    plugin.drp.logits.kernel.copy_(plugin.drp.logits.kernel.flip(-1).clone())


@pytest.mark.parametrize("spoil", [spoil_offsets, spoil_amplitudes, spoil_depthwise, spoil_alpha])
def test_a_wrong_axis_would_be_detected(sam, spoil):
    torch_plugin.stabilise(sam, STATE)
    before = predicted(sam)
    with torch.no_grad():
        spoil(sam.plugin)
    assert np.abs(predicted(sam) - before).max() > SEEN * np.abs(before).max()


def test_what_cannot_be_is_refused_with_the_reason(sam):
    def refusal(state):
        with pytest.raises(ValueError, match=r".") as caught:
            torch_plugin.stabilise(sam, state)
        return str(caught.value)

    extra = plugin_config.unpacked(STATE["_extra_state"])
    assert "no state of a plugin" in refusal(sam.state_dict())
    assert "does not support this plugin" in refusal(
        STATE | {"_extra_state": plugin_config.packed(extra["config"] | {"colour": 1}, {})}
    )
    assert "holds no plugin's configuration" in refusal(
        STATE | {"_extra_state": torch.frombuffer(bytearray(b"[]"), dtype=torch.uint8)}
    )
    wide = dataclasses.replace(WHOLE["sam"], embedding_width=32, plugin=PluginConfig(embedding_width=32))
    assert "The plugin is 32 channels wide, the mask decoder 64" in refusal(state_of(wide))
    with pytest.raises(RuntimeError, match=r"drp\.scale"):
        torch_plugin.stabilise(sam, {name: value for name, value in STATE.items() if name != "drp.scale"})
    assert not hasattr(sam, "plugin")
    torch_plugin.stabilise(sam, STATE)
    assert "has a plugin already" in refusal(STATE)
