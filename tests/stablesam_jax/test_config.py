"""The architecture's numbers are the published ones, and those that cannot be built are refused."""

import dataclasses
import json

import numpy as np
import pytest

from convert import official_sam2
from stablesam_jax.config import MODELS, Frame, LiteConfig, PluginConfig, SamConfig, TinyViTConfig, ViTConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model.encoders import hiera

VITS = {name: config for name, config in MODELS.items() if isinstance(config.encoder, ViTConfig)}


def test_the_family_is_nine_models_the_hq_twins_of_five_and_of_each_of_these_its_stable_twin():
    plain = ["sam_vit_b", "sam_vit_l", "sam_vit_h", "mobile_sam", "sam_nano"]
    sam2 = ["sam2_hiera_t", "sam2_hiera_s", "sam2_hiera_b_plus", "sam2_hiera_l"]
    hq = ["hq_sam_vit_b", "hq_sam_vit_l", "hq_sam_vit_h", "hq_sam_vit_tiny", "hq_sam_nano"]
    every = plain + sam2 + hq
    assert list(MODELS) == every + [f"stable_{name}" for name in every]
    for base, twin in zip(plain, hq, strict=True):
        assert MODELS[twin] == dataclasses.replace(MODELS[base], hq=True)
    for name in every:
        assert MODELS[f"stable_{name}"] == dataclasses.replace(MODELS[name], plugin=PluginConfig())


@pytest.mark.parametrize(("name", "configuration"), [("t", "t"), ("s", "s"), ("b_plus", "b+"), ("l", "l")])
def test_the_encoders_of_sam_2_are_those_of_its_configurations(name, configuration):
    config = MODELS[f"sam2_hiera_{name}"]
    official = official_sam2.compose(f"configs/sam2.1/sam2.1_hiera_{configuration}.yaml").model
    _, ours = hiera.official(config)
    defaults = {"stages": (2, 3, 16, 3), "global_att_blocks": (12, 16, 20), "window_spec": (8, 4, 14, 7)}
    theirs = defaults | {"window_pos_embed_bkg_spatial_size": (14, 14)} | dict(official.image_encoder.trunk)
    assert ours == {
        name: value if isinstance(value, int) else tuple(value) for name, value in theirs.items() if name != "_target_"
    }
    assert list(config.encoder.widths[::-1]) == official.image_encoder.neck.backbone_channel_list
    assert config.image_size == official.image_size


def test_the_configurations_of_sam_2_differ_in_the_encoder_alone():
    def rest(name):
        model = official_sam2.compose(f"configs/sam2.1/sam2.1_hiera_{name}.yaml").model
        del model.image_encoder.trunk, model.image_encoder.neck.backbone_channel_list
        return model

    assert rest("t") == rest("s") == rest("b+") == rest("l")


def test_a_sam_2_stretches_pictures_to_its_input():
    assert MODELS["stable_sam2_hiera_t"].frame == Frame(1024, stretched=True)
    assert MODELS["sam_vit_b"].frame == Frame(1024)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_keeps_its_name_at_any_size_and_dtype_and_with_any_plugin(name):
    config = dataclasses.replace(MODELS[name], image_size=320, dtype="bfloat16")
    if config.plugin is not None:
        config = dataclasses.replace(config, plugin=PluginConfig(router_width=7))
    assert config.name == name


def test_a_model_of_other_sizes_is_called_own():
    encoder = dataclasses.replace(MODELS["sam_vit_b"].encoder, depth=13)
    assert dataclasses.replace(MODELS["sam_vit_b"], encoder=encoder).name == "own_sam"


@pytest.mark.parametrize(
    "config",
    [
        *MODELS.values(),
        dataclasses.replace(MODELS["sam_nano"], pixel_mean=(1, 2, 3)),
        dataclasses.replace(MODELS["sam_nano"], plugin=PluginConfig(first_pass=(0.9, 0.1, 0.5, 0.6))),
        dataclasses.replace(
            MODELS["sam_nano"], image_size=np.int64(128), plugin=PluginConfig(strength=np.float32(0.5))
        ),
    ],
)
def test_any_configuration_is_the_same_and_hashable_after_json(config):
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    read = SamConfig.from_json(fields, type(config.encoder).__name__)
    assert read == config
    assert hash(read) == hash(config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViTConfig(width=15, depth=2, heads=2, global_blocks=()), "got 2 heads for 15 channels"),
        (lambda: ViTConfig(width=16, depth=2, heads=2, global_blocks=(2,)), "global_blocks are 0 to 1"),
        (lambda: TinyViTConfig(heads=(2, 4, 5, 9)), "got 9 heads for 320 channels"),
        (lambda: TinyViTConfig(depths=(2, 2)), "are of four stages"),
        (lambda: PluginConfig(attentions=(0, 0)), r"name each of 0, 1 and 2 once; got \(0, 0\)"),
        (lambda: PluginConfig(strength="1"), "strength is a share, from 0 to 1; got '1'"),
        (lambda: SamConfig(encoder=TinyViTConfig(), embedding_width=24), "must be a multiple of 16"),
        (lambda: SamConfig(encoder=TinyViTConfig(), image_size=128.0), "image size 128.0: must be a whole number"),
        (lambda: SamConfig(encoder=TinyViTConfig(), image_size="128"), "image size '128': must be a whole number"),
        (
            lambda: SamConfig(encoder=TinyViTConfig(), plugin=PluginConfig(embedding_width=128)),
            "features are 256 channels wide, the plugin's 128",
        ),
    ],
)
def test_sizes_that_no_model_can_have_are_refused_at_construction(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "global_blocks"),
    [  # segment_anything/build_sam.py
        ("sam_vit_b", 768, 12, 12, (2, 5, 8, 11)),
        ("sam_vit_l", 1024, 24, 16, (5, 11, 17, 23)),
        ("sam_vit_h", 1280, 32, 16, (7, 15, 23, 31)),
    ],
)
def test_the_encoders_of_sam_are_the_official_ones(name, width, depth, heads, global_blocks):
    config = MODELS[name]
    encoder = ViTConfig(width=width, depth=depth, heads=heads, global_blocks=global_blocks)
    assert config == SamConfig(encoder=encoder)
    assert (encoder.window_size, encoder.patch_size) == (14, 16)
    assert (config.image_size, config.embedding_width) == (1024, 256)
    assert config.pixel_mean == (123.675, 116.28, 103.53)
    assert config.pixel_std == (58.395, 57.12, 57.375)


@pytest.mark.parametrize("name", VITS)
def test_a_quarter_of_the_way_each_a_block_sees_the_whole_grid_the_last_one_too(name):
    encoder = VITS[name].encoder
    assert encoder.global_blocks[-1] == encoder.depth - 1
    assert len(encoder.global_blocks) == 4
    assert encoder.width % encoder.heads == 0


@pytest.mark.parametrize("name", VITS)
def test_sams_grid_has_64_cells_and_its_masks_256_pixels(name):
    assert (VITS[name].grid_size, VITS[name].mask_size) == (64, 256)


def test_nano_is_sam_at_half_the_size():
    config = MODELS["sam_nano"]
    assert isinstance(config.encoder, LiteConfig)
    assert (config.image_size, config.grid_size, config.mask_size) == (512, 32, 128)
    assert config.embedding_width == MODELS["sam_vit_b"].embedding_width  # the same plugin fits


def test_lite0_has_16_blocks_and_its_taps_the_strides_4_8_16_and_32():
    config = LiteConfig()
    assert sum(stage.repeats for stage in config.stages) == 16
    strides, stride = [], 2  # the stem's
    for stage in config.stages:
        stride *= stage.stride
        strides.append(stride)
    assert [strides[tap] for tap in config.taps] == [4, 8, 16, 32]
    assert [config.stages[tap].width for tap in config.taps] == [24, 40, 112, 320]
    assert strides[config.taps[2]] == config.patch_size


@pytest.mark.parametrize("image_size", [1023, 8, 100])
def test_a_picture_that_patches_do_not_tile_is_refused(image_size):
    with pytest.raises(InputError, match=rf"image size {image_size}: must be a positive multiple of 16 pixels"):
        dataclasses.replace(MODELS["sam_vit_b"], image_size=image_size)


def test_other_sizes_scale_the_grid():
    config = dataclasses.replace(MODELS["sam_nano"], image_size=320)
    assert (config.grid_size, config.mask_size) == (20, 80)


def test_the_plugin_is_by_default_that_of_the_papers_figure_3_but_for_its_place():
    config = PluginConfig()
    assert config.attentions == (0, 2)
    assert config.amplitude == "project"
    assert config.offset_kernel == 5
    assert (config.resample, config.groups, config.router) == ("deform", 1, True)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"groups": 3}, "groups must divide 256 channels; got 3"),
        ({"groups": 0}, "groups must divide 256 channels; got 0"),
        ({"offset_kernel": 4}, "offset_kernel must be odd"),
        ({"max_offset_cells": -1.0}, "max_offset_cells must be a number of cells, 0 or more; got -1.0"),
        ({"max_offset_cells": float("nan")}, "got nan"),
        ({"resample": "cbam", "positions": "resampled"}, "'cbam' samples nothing: positions must be 'grid'"),
        ({"amplitude": "twice"}, "amplitude is one of project, gate, none; got 'twice'"),
    ],
)
def test_a_plugin_that_cannot_be_is_refused_with_the_reason(fields, fault):
    with pytest.raises(ValueError, match=fault):
        PluginConfig(**fields)


@pytest.mark.parametrize("attentions", [(0,), (0, 1), (2,), (0, 1, 2)])
def test_the_plugin_may_sit_at_any_attention(attentions):
    assert PluginConfig(attentions=attentions).attentions == attentions


@pytest.mark.parametrize("attentions", [(), (3,), (-1,), (0, 5)])
def test_a_plugin_at_no_attention_is_refused(attentions):
    with pytest.raises(ValueError, match=r"attentions name some of 0, 1 \(decoder layers\) and 2 \(final\); got \("):
        PluginConfig(attentions=attentions)


@pytest.mark.parametrize("config", [PluginConfig(), MODELS["sam_nano"], MODELS["sam_vit_b"].encoder, LiteConfig()])
def test_a_configuration_does_not_change_and_can_be_a_key(config):
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, None)
    assert {config: 1}[dataclasses.replace(config)] == 1


def test_what_is_given_as_a_list_is_a_tuple():
    limits = [0.5, 0.4, 0.3, 0.9]
    given = PluginConfig(attentions=[1], first_pass=limits)
    assert given == PluginConfig(attentions=(1,), first_pass=tuple(limits))
    assert hash(given) == hash(PluginConfig(attentions=(1,), first_pass=tuple(limits)))
    vit_b = {"width": 768, "depth": 12, "heads": 12}
    assert SamConfig(encoder=ViTConfig(**vit_b, global_blocks=[2, 5, 8, 11])).name == "sam_vit_b"
