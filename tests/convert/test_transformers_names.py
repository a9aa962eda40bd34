"""Names of SamModel and SamHQModel become the official ones, each tensor its own."""

import dataclasses
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from convert import sam_to_flax
from convert.rules import source_name, to_flax
from convert.transformers_names import official_names
from stablesam_jax.build import assemble, load_model, shapes
from stablesam_jax.config import MODELS
from stablesam_jax.errors import InputError
from stablesam_jax.params import flatten
from tests.reference import official

HQ = dataclasses.replace(official.VIT, hq=True)
# Names and shapes in the state dict of transformers' SamHQModel (5.24) at the sizes of official.VIT. Those of its
# SamModel are the same without what is of HQ-SAM.
NAMES = {
    name: tuple(map(int, shape))
    for name, *shape in map(
        str.split, pathlib.Path(__file__).with_name("sam_hq_model_names.txt").read_text().splitlines()
    )
}
OF_HQ = ("hq_", "compress_vit", "encoder_conv", "encoder_norm", "mask_conv", "mask_norm")
SHARED = "shared_image_embedding.positional_embedding"
MLP = "mask_decoder.output_hypernetworks_mlps"
COPY = "prompt_encoder.shared_embedding.positional_embedding"


def state(*, hq):
    """Random tensors under the library's names."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in NAMES.items()}
    tensors[COPY] = tensors[SHARED]
    parts = tuple(f"mask_decoder.{part}" for part in OF_HQ)
    return {name: tensor for name, tensor in tensors.items() if hq or not name.startswith(parts)}


@pytest.mark.parametrize(("config", "hq"), [(official.VIT, False), (HQ, True)], ids=["SamModel", "SamHQModel"])
def test_every_tensor_has_its_place_and_every_place_its_tensor(config, hq):
    renamed = official_names(state(hq=hq))
    target = shapes(assemble(config))
    to_flax(renamed, target)  # raises for a tensor that is missing, left over or of another shape
    assert renamed.keys() == {source_name(path) for path in flatten(target)}
    assert len({array.tobytes() for array in renamed.values()}) == len(renamed)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vision_encoder.layers.1.layer_norm2.bias", "image_encoder.blocks.1.norm2.bias"),
        ("vision_encoder.layers.0.mlp.lin1.weight", "image_encoder.blocks.0.mlp.lin1.weight"),
        ("vision_encoder.neck.layer_norm1.weight", "image_encoder.neck.1.weight"),
        ("vision_encoder.neck.layer_norm2.weight", "image_encoder.neck.3.weight"),
        ("prompt_encoder.point_embed.2.weight", "prompt_encoder.point_embeddings.2.weight"),
        ("prompt_encoder.mask_embed.layer_norm1.bias", "prompt_encoder.mask_downscaling.1.bias"),
        ("mask_decoder.transformer.layers.1.layer_norm4.bias", "mask_decoder.transformer.layers.1.norm4.bias"),
        ("mask_decoder.transformer.layer_norm_final_attn.bias", "mask_decoder.transformer.norm_final_attn.bias"),
        ("mask_decoder.iou_prediction_head.proj_in.bias", "mask_decoder.iou_prediction_head.layers.0.bias"),
        ("mask_decoder.iou_prediction_head.layers.0.bias", "mask_decoder.iou_prediction_head.layers.1.bias"),
        (f"{MLP}.3.layers.0.bias", f"{MLP}.3.layers.1.bias"),
        ("mask_decoder.hq_mask_mlp.proj_out.bias", "mask_decoder.hf_mlp.layers.2.bias"),
        ("mask_decoder.mask_norm.bias", "mask_decoder.embedding_maskfeature.1.bias"),
        ("mask_decoder.encoder_norm.bias", "mask_decoder.embedding_encoder.1.bias"),
    ],
)  # fmt: skip
def test_tensors_of_one_shape_are_not_exchanged(name, expected):
    tensors = state(hq=True)
    assert official_names(tensors)[expected] is tensors[name]


def test_the_positional_embedding_may_be_there_once_and_must_be_one(tmp_path):
    tensors = state(hq=False)
    whole = official_names(tensors)
    for name in (SHARED, COPY):
        once = official_names({key: value for key, value in tensors.items() if key != name})
        assert once.keys() == whole.keys()
    with pytest.raises(InputError, match=f"{SHARED} and {COPY} differ"):
        official_names(tensors | {COPY: tensors[COPY] + 1})


def test_a_folder_of_the_library_is_converted(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "hq_small_vit", HQ)
    (tmp_path / "theirs").mkdir()
    safetensors.numpy.save_file(state(hq=True), tmp_path / "theirs" / "model.safetensors")
    sam_to_flax.main(["--checkpoint", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")])
    assert "remark     names of the library transformers" in capsys.readouterr().out
    sam, params = load_model(tmp_path / "ours")
    assert sam.config == HQ
    token = state(hq=True)["mask_decoder.hq_token.weight"]
    np.testing.assert_array_equal(params["mask_decoder"]["hf_token"], token)
