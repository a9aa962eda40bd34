"""Official weights become a checkpoint folder, exactly and whole, or one line says why not."""

import dataclasses
import errno
import os
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

from convert.rules import rule_of, source_name
from convert.sam_to_flax import main, recognise
from eval.parity import torch_sam
from stablesam_jax.build import load_model
from stablesam_jax.config import MODELS, ViTConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files.checkpoint import load_tree
from stablesam_jax.params import flatten
from tests.reference import official
from tests.reference.tiers import slow

CONVERTIBLE = [name for name, config in MODELS.items() if config.plugin is None and "nano" not in name]
CONVERTIBLE.remove("sam2_hiera_l")  # takes seconds to build


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Input, output and the weights of a small ViT; every small model is in MODELS."""
    for name, config in official.SMALL.items():
        monkeypatch.setitem(MODELS, name, config)
    return tmp_path / "small.pth", tmp_path / "small", official.state_dict(official.VIT)


def run(checkpoint, output, *options):
    main(["--checkpoint", str(checkpoint), "--output", str(output), *options])


def refusal(capsys, checkpoint, output, *options):
    """The one line that the command prints."""
    before = sorted(checkpoint.parent.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run(checkpoint, output, *options)
    assert sorted(checkpoint.parent.rglob("*")) == before
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def official_shapes(config):
    with torch.device("meta" if isinstance(config.encoder, ViTConfig) else "cpu"):  # TinyViT computes while it is built
        return {name: tuple(tensor.shape) for name, tensor in torch_sam.build(config).state_dict().items()}


@pytest.mark.parametrize("model", [*CONVERTIBLE, *slow("sam2_hiera_l")])
def test_every_model_is_recognised_from_its_weights(model):
    assert recognise(official_shapes(MODELS[model])) == MODELS[model]


@pytest.mark.parametrize("size", [224, 512])
def test_the_input_size_is_that_of_the_absolute_positions(size):
    config = dataclasses.replace(MODELS["sam_vit_b"], image_size=size)
    assert recognise(official_shapes(config)) == config


@pytest.mark.parametrize("model", ["small_vit", "hq_small_tiny_vit"])
def test_a_conversion_keeps_every_bit_and_says_what_it_did(small, capsys, model):
    file, output, _ = small
    state = official.state_dict(MODELS[model])
    torch.save(state, file)
    run(file, output)
    printed = capsys.readouterr().out
    assert f"model      {model}\n" in printed
    assert f"tensors    {len(state)}\n" in printed
    assert f"parameters {sum(tensor.numel() for tensor in state.values()):,}\n" in printed
    sha = printed.partition("SHA-256 ")[2][:64]
    sam, params = load_model(output)
    assert sam.config == MODELS[model]
    for path, leaf in flatten(params).items():
        axes = rule_of(path).axes
        source = state[source_name(path)].numpy()
        turned = source if axes is None else source.transpose(axes)
        np.testing.assert_array_equal(leaf, turned.reshape(leaf.shape).astype(np.float32))
    assert load_tree(output)[1]["source"] == {"file": "small.pth", "sha256": sha, "remarks": []}


def test_a_sam_2_converts_without_its_weights_for_videos(small, capsys):
    file, output, _ = small
    state = official.state_dict(official.SAM2)
    torch.save({"model": state}, file)  # as the official files
    run(file, output)
    printed = capsys.readouterr().out
    assert "model      small_sam2\n" in printed
    assert "remark     taken from the entry 'model'\n" in printed
    assert "remark     160 tensors dropped: they are SAM 2's memory of videos, and no picture needs them\n" in printed
    sam, params = load_model(output)
    assert sam.config == official.SAM2
    embedding = state["image_encoder.trunk.pos_embed"].numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(params["image_encoder"]["trunk"]["pos_embed"], embedding)
    np.testing.assert_array_equal(params["image_encoder"]["no_mem_embed"], state["no_mem_embed"].numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("no_mem_embed"), "missing (1): no_mem_embed"),
        (lambda state: state.pop("sam_mask_decoder.conv_s0.bias"), "missing (1): sam_mask_decoder.conv_s0.bias"),
        (
            lambda state: state.update({"image_encoder.trunk.blocks.0.extra": torch.ones(1)}),
            "unexpected (1): image_encoder.trunk.blocks.0.extra",
        ),
        (
            lambda state: state.pop("image_encoder.trunk.blocks.1.proj.weight"),
            "3 + 1 + 1 blocks and 64 output channels, unlike any supported model",
        ),
    ],
)
def test_a_sam_2_that_does_not_fit_is_one_line(small, capsys, change, message):
    file, output, _ = small
    state = official.state_dict(official.SAM2)
    change(state)
    torch.save({"model": state}, file)
    assert message in refusal(capsys, file, output)


def test_weights_for_another_input_size_convert_at_that_size(small, capsys):
    file, output, _ = small
    torch.save(official.state_dict(dataclasses.replace(official.VIT, image_size=64)), file)
    run(file, output)
    assert "remark     for an input of 64 pixels" in capsys.readouterr().out
    sam, params = load_model(output)
    assert sam.config.image_size == 64
    assert params["image_encoder"]["pos_embed"].shape == (1, 4, 4, 16)


def test_half_precision_is_widened_and_said(small, capsys):
    file, output, state = small
    torch.save({name: tensor.half() for name, tensor in state.items()}, file)
    run(file, output)
    assert f"remark     {len(state)} tensors widened from half precision to float32" in capsys.readouterr().out
    token = load_model(output)[1]["mask_decoder"]["iou_token"]
    np.testing.assert_array_equal(token, state["mask_decoder.iou_token.weight"].half().float().numpy())


def test_safetensors_wrappings_and_constants_are_taken_as_they_come(small, capsys):
    file, output, state = small
    constants = {
        name: torch.tensor(getattr(official.VIT, name)).reshape(3, 1, 1) for name in ("pixel_mean", "pixel_std")
    }
    safetensors.torch.save_file(
        {f"module.{n}": t for n, t in (state | constants).items()}, file.with_suffix(".safetensors")
    )
    run(file.with_suffix(".safetensors"), output)
    printed = capsys.readouterr().out
    assert "remark     prefix 'module.' dropped" in printed
    assert "remark     2 tensors dropped: the configuration holds them" in printed
    token = load_model(output)[1]["mask_decoder"]["iou_token"]
    np.testing.assert_array_equal(token, state["mask_decoder.iou_token.weight"].numpy())


def test_the_name_of_the_model_may_be_given_and_is_checked(small, capsys):
    file, output, state = small
    torch.save(state, file)
    assert "This is small_vit, not hq_small_vit." in refusal(capsys, file, output, "--model", "hq_small_vit")
    assert "--model vit_b: unknown; choose from sam_vit_b," in refusal(capsys, file, output, "--model", "vit_b")
    run(file, output, "--model", "small_vit")
    assert output.exists()


def _without_a_tensor(state):
    del state["mask_decoder.iou_token.weight"]


def _with_one_more(state):
    state["mask_decoder.extra.weight"] = torch.ones(2)


def _with_a_wrong_shape(state):
    state["image_encoder.neck.1.bias"] = torch.ones(1, 4)


def _in_double_precision(state):
    state["image_encoder.neck.1.bias"] = torch.ones(32, dtype=torch.float64)


def _with_a_weight_that_is_no_number(state):
    state["image_encoder.neck.1.bias"][3] = torch.nan


def _without_the_hq_token(state):
    hq = official.state_dict(official.SMALL["hq_small_vit"])
    state |= {name: tensor for name, tensor in hq.items() if name not in state and "hf_token" not in name}


def _normalised_otherwise(state):
    state["pixel_mean"] = torch.tensor([0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_a_tensor, "missing (1): mask_decoder.iou_token.weight"),
        (_with_one_more, "unexpected (1): mask_decoder.extra.weight"),
        (_with_a_wrong_shape, "image_encoder.neck.1.bias (1, 4) instead of (32,)"),
        (_in_double_precision, "image_encoder.neck.1.bias float64 instead of float32"),
        (_with_a_weight_that_is_no_number, "not finite (1): image_encoder.neck.1.bias in 1 of 32"),
        (_without_the_hq_token, "missing (1): mask_decoder.hf_token.weight"),
        (_normalised_otherwise, "Its pixel_mean is 0.5, 0.5, 0.5 instead of (123.675, 116.28, 103.53)"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_written(small, capsys, change, message):
    file, output, state = small
    change(state)
    torch.save(state, file)
    assert message in refusal(capsys, file, output)


def test_a_file_that_is_cut_short_is_one_line(small, capsys):
    file, output, state = small
    torch.save(state, file)
    file.write_bytes(file.read_bytes()[:100_000])
    assert "damaged or cut short" in refusal(capsys, file, output)


def test_an_existing_output_is_left_alone(small, capsys):
    file, output, state = small
    torch.save(state, file)
    output.mkdir()
    assert "exists already" in refusal(capsys, file, output)


def test_a_missing_file_is_one_line(small, capsys):
    file, output, _ = small
    assert "no such file" in refusal(capsys, file, output)


def test_a_full_disk_is_one_line(small, capsys, monkeypatch):
    file, output, state = small
    torch.save(state, file)
    usage = shutil.disk_usage(file)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    assert f"{output}: cannot be written (No space left on device)" in refusal(capsys, file, output)


def test_a_read_only_disk_is_one_line(small, capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    file, output, state = small
    torch.save(state, file)
    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    assert f"{output}: cannot be written (Read-only file system)" in refusal(capsys, file, output)


def test_a_conversion_that_dies_before_the_rename_leaves_nothing(small, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    file, output, state = small
    torch.save(state, file)
    monkeypatch.setattr(pathlib.Path, "rename", die)
    with pytest.raises(SystemExit) as end:
        run(file, output)
    assert end.value.code == 130
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("name", "unsupported"),
    [
        ("sam_mask_decoder.hf_token.weight", "HQ-SAM 2"),
        ("detector.backbone.vision_backbone.trunk.patch_embed.proj.weight", "SAM 3"),
        ("mask_decoder.final_output_upscaling_layers.0.0.weight", "EfficientSAM"),
        ("image_encoder.backbone.stages.0.op_list.0.main.conv.weight", "EfficientViT-SAM"),
        ("image_encoder.features.0.0.c.weight", "a SAM with RepViT, as EdgeSAM"),
        ("vision_encoder.backbone.blocks.0.attn.qkv.weight", "SAM 2 or 3 as the library transformers stores it"),
    ],
)
def test_other_models_are_called_by_their_name(name, unsupported):
    with pytest.raises(InputError, match=f"This is {unsupported}, which cannot be converted"):
        recognise({name: (1,), "mask_decoder.iou_token.weight": (1, 256)})


@pytest.mark.parametrize(
    ("model", "tensors", "unsupported"),
    [
        ("hq_sam_vit_b", 145, r"HQ-SAM's mask decoder alone, as epoch_K\.pth"),
        ("sam_vit_b", 120, r"\*_maskdecoder\.pth"),
    ],
)
def test_the_decoder_files_of_hq_sams_training_are_told(model, tensors, unsupported):
    whole = official_shapes(MODELS[model])
    decoder = {
        name.removeprefix("mask_decoder."): shape for name, shape in whole.items() if name.startswith("mask_decoder.")
    }
    assert len(decoder) == tensors
    with pytest.raises(InputError, match=unsupported):
        recognise(decoder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["conv1.weight"], "no image encoder of a SAM"),
        ([f"image_encoder.blocks.{index}.norm1.weight" for index in range(16)], "16 blocks and 99 output channels"),
        (
            [f"image_encoder.layers.{stage}.blocks.0.attn.qkv.weight" for stage in range(4)],
            r"1 \+ 1 \+ 1 \+ 1 blocks and 99 output channels",
        ),
    ],
)
def test_an_unknown_encoder_is_described(names, message):
    with pytest.raises(InputError, match=message):
        recognise(dict.fromkeys(names, (1,)) | {"image_encoder.neck.0.weight": (256, 99, 1, 1)})
