"""An embedding comes back as it was saved, to the model that made it or its twin with a plugin, and to no other."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesam_jax.config import MODELS, PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files import sealed_file
from stablesam_jax.files.embedding_file import HEADER, identity, load_embedding, save_embedding
from stablesam_jax.model.sam import ImageEmbedding

SAM = dataclasses.replace(MODELS["sam_nano"], image_size=64)
HQ_SAM = dataclasses.replace(SAM, hq=True)
PARAMS = {
    "image_encoder": {"stem": {"kernel": np.arange(6, dtype=np.float32)}},
    "mask_decoder": {
        "compress_vit_feat_0": {"kernel": np.ones(2, np.float32)},
        "embedding_encoder_3": {"bias": np.ones(2, np.float32)},
        "hf_token": np.ones(3, np.float32),
    },
}
EMBEDDING = ImageEmbedding(jnp.ones((1, 4, 4, 8)), hq_features=jnp.full((1, 16, 16, 2), 0.1, jnp.bfloat16))


def changed(*path):
    tree = json.loads(json.dumps(jax.tree.map(np.ndarray.tolist, PARAMS)))
    tree = jax.tree.map(np.float32, tree, is_leaf=lambda node: isinstance(node, list))
    *parents, name = path
    node = tree
    for parent in parents:
        node = node[parent]
    node[name] = node[name] + np.float32(1)
    return tree


def save(path, config=HQ_SAM, params=PARAMS):
    save_embedding(path, EMBEDDING, original_size=(30, 40), picture="its digest", maker=identity(config, params))
    return path


def load(path, config=HQ_SAM, params=PARAMS, expected=EMBEDDING):
    return load_embedding(path, expected=expected, maker=identity(config, params))


def test_an_embedding_comes_back_to_the_bit(tmp_path):
    embedding, size, picture = load(save(tmp_path / "a.safetensors"))
    assert size == (30, 40)
    assert picture == "its digest"
    assert embedding.early is None
    assert embedding.hq_features.dtype == jnp.bfloat16
    for ours, theirs in zip(jax.tree.leaves(embedding), jax.tree.leaves(EMBEDDING), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_it_serves_every_plugin_and_every_decoder_on_the_same_encoder(tmp_path):
    path = save(tmp_path / "a.safetensors")
    load(path, dataclasses.replace(HQ_SAM, plugin=PluginConfig()), PARAMS | {"plugin": {"w": np.ones(1)}})
    load(path, params=changed("mask_decoder", "hf_token"))


@pytest.mark.parametrize(
    "path",
    [
        ("image_encoder", "stem", "kernel"),
        ("mask_decoder", "compress_vit_feat_0", "kernel"),
        ("mask_decoder", "embedding_encoder_3", "bias"),
    ],
    ids="/".join,
)
def test_other_weights_of_the_encoder_are_refused(tmp_path, path):
    file = save(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"made by hq_sam_nano at 64 pixels in float32, with other weights\. Load"):
        load(file, params=changed(*path))


def test_what_only_hq_sam_uses_does_not_decide_a_plain_embedding(tmp_path):
    file = save(tmp_path / "a.safetensors", SAM)
    load(file, SAM, changed("mask_decoder", "compress_vit_feat_0", "kernel"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 128}, "not hq_sam_nano at 128 pixels in float32"),
        ({"dtype": "bfloat16"}, "not hq_sam_nano at 64 pixels in bfloat16"),
        ({"hq": False}, "not sam_nano at 64 pixels in float32"),
        ({"pixel_mean": (1.0, 2.0, 3.0)}, "not own_sam at 64 pixels"),
        (vars(MODELS["hq_sam_vit_b"]) | {"image_size": 64}, "not hq_sam_vit_b at 64 pixels in float32"),
    ],
    ids=["size", "dtype", "hq", "mean", "vit"],
)
def test_another_model_is_refused_by_name(tmp_path, change, words):
    file = save(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=f"a.safetensors: made by hq_sam_nano at 64 pixels in float32, {words}"):
        load(file, dataclasses.replace(HQ_SAM, **change))


def test_of_two_models_without_a_name_the_field_is_named(tmp_path):
    file = save(tmp_path / "a.safetensors", dataclasses.replace(HQ_SAM, pixel_std=(1.0, 1.0, 1.0)))
    with pytest.raises(InputError, match=r"made by own_sam at .*, of another configuration \(pixel_std\)"):
        load(file, dataclasses.replace(HQ_SAM, pixel_std=(2.0, 2.0, 2.0)))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda about: about.pop("picture"), "picture"),
        (lambda about: about["config"].pop("pixel_std"), r"config\.pixel_std"),
        (lambda about: about["config"]["encoder"].update(depth=3), r"config\.encoder\.depth"),
        (lambda about: [about.pop(name) for name in ("model", "weights")], "model, weights"),
    ],
    ids=["no-picture", "no-field", "a-field-more", "no-model"],
)
def test_a_file_of_another_version_is_said_to_be_one(tmp_path, change, names):
    about = {"version": "0.0.7", "original_size": [30, 40], "picture": "", **identity(HQ_SAM, PARAMS)}
    change(about)
    sealed_file.write(tmp_path / "old.safetensors", {"features": np.ones(3)}, {HEADER: json.dumps(about)})
    words = rf"old.safetensors: another version of this package wrote it \(0\.0\.7; .* in its header: {names}\. Encode"
    with pytest.raises(InputError, match=words):
        load(tmp_path / "old.safetensors")


def test_arrays_of_another_shape_are_refused(tmp_path):
    file = save(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"different: features is float32 \(1, 4, 4, 8\) instead of"):
        load(file, expected=ImageEmbedding(jnp.ones((1, 5, 5, 8)), hq_features=EMBEDDING.hq_features))
    with pytest.raises(InputError, match="unexpected: hq_features"):
        load(file, expected=ImageEmbedding(EMBEDDING.features))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such embedding file"):
        load(tmp_path / "absent.safetensors")
    sealed_file.write(tmp_path / "other.safetensors", {"features": np.ones(3)}, {"config": "{}"})
    with pytest.raises(InputError, match=f"no embedding of this package, its header has no '{HEADER}'"):
        load(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="exists already"):
        save(tmp_path / "other.safetensors")
