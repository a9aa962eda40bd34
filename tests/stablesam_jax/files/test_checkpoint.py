"""A checkpoint is whole or absent, and a changed byte is seen."""

import dataclasses
import pathlib
import resource
import shutil

import jax
import numpy as np
import optax
import pytest

from stablesam_jax.config import MODELS, PluginConfig, SamConfig, ViTConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files import checkpoint
from stablesam_jax.files.checkpoint import load_model, load_tree, save_model, save_tree

TREE = {
    "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scale": np.array(0.5, np.float32),
    "blocks_0": {"0": np.array([1, 2], np.int32), "mask": np.array([True, False])},
}


@pytest.fixture
def folder(tmp_path):
    save_tree(tmp_path / "saved", TREE, {"step": 3})
    return tmp_path / "saved"


def test_what_is_saved_comes_back_to_the_bit(folder):
    tree, metadata = load_tree(folder)
    assert metadata == {"step": 3}
    assert jax.tree.structure(tree) == jax.tree.structure(TREE)
    for loaded, saved in zip(jax.tree.leaves(tree), jax.tree.leaves(TREE), strict=True):
        assert loaded.dtype == saved.dtype
        np.testing.assert_array_equal(loaded, saved)


def test_an_optimizer_state_comes_back_in_its_own_classes(tmp_path):
    state = optax.adam(1e-3).init({"a": jax.numpy.ones(3)})
    save_tree(tmp_path / "state", state, {})
    loaded, _ = load_tree(tmp_path / "state", jax.eval_shape(lambda: state))
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    assert loaded[0].count == 0


def test_another_tree_is_refused_with_its_differences(folder):
    target = {"kernel": np.zeros((3, 2), np.float32), "scale": np.array(0.5, np.float16), "bias": np.zeros(1)}
    with pytest.raises(InputError) as error:
        load_tree(folder, target)
    message = str(error.value)
    assert "missing: bias" in message
    assert "unexpected: blocks_0/0, blocks_0/mask" in message
    assert "kernel is float32 (2, 3) instead of float32 (3, 2)" in message
    assert "scale is float32 () instead of float16 ()" in message


def test_an_existing_folder_is_left_alone(folder):
    with pytest.raises(InputError, match="exists already"):
        save_tree(folder, {"a": np.ones(2)}, {})
    assert load_tree(folder)[1] == {"step": 3}


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_tree(tmp_path / "file" / "saved", TREE, {})


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(InputError, match=r"saved: cannot be written \(No space left on device\)"):
        save_tree(tmp_path / "saved", TREE, {})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_meanwhile_is_one_line_too(tmp_path, capfd):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"saved: cannot be written \(File too large\)"):
            save_tree(tmp_path / "saved", {"a": np.random.default_rng(0).random((100, 100))}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""  # Orbax would log tracebacks


def test_a_save_that_dies_before_the_rename_leaves_nothing(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        save_tree(tmp_path / "saved", TREE, {})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_save_leaves_behind_disturbs_no_later_one(tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "rename", lambda *_: None)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
    save_tree(tmp_path / "saved", TREE, {})  # as if killed: neither renamed nor cleaned
    monkeypatch.undo()
    with pytest.raises(InputError, match="no such checkpoint"):
        load_tree(tmp_path / "saved")
    save_tree(tmp_path / "saved", TREE, {})
    load_tree(tmp_path / "saved")


def test_each_of_200_flipped_bits_in_a_model_is_refused_by_name(tmp_path):
    folder = tmp_path / "model"
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal((30, 40)).astype(np.float32) for name in "abc"}
    save_model(folder, params, config=MODELS["sam_nano"], source={})
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    flips = [(files[index % len(files)], rng.random(), rng.integers(8)) for index in range(200)]  # none is left out
    for path, share, bit in flips:
        sound = path.read_bytes()
        damaged = bytearray(sound)
        damaged[int(share * len(sound))] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"^{folder}: damaged"):
            load_model(folder)
        path.write_bytes(sound)
    load_model(folder)


def test_a_file_cut_short_or_gone_is_named(folder):
    path = folder / "metadata.json"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1])
    with pytest.raises(InputError, match=r"metadata\.json has changed"):
        load_tree(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"metadata\.json is missing"):
        load_tree(folder)


def test_folders_that_are_no_checkpoint_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint folder"):
        load_tree(tmp_path / "absent")
    with pytest.raises(InputError, match=r"not a checkpoint, it has no manifest\.json"):
        load_tree(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"metadata\.json is not in manifest\.json"):
        load_tree(tmp_path)


def test_a_model_in_half_precision_comes_back_in_float32(tmp_path):
    save_model(
        tmp_path / "m", {"a": np.array([1 / 3], np.float32)}, config=MODELS["sam_nano"], source={}, dtype=np.float16
    )
    config, params, metadata = load_model(tmp_path / "m")
    assert config == MODELS["sam_nano"]
    assert metadata["model"] == "sam_nano"
    assert params["a"].dtype == np.float32
    assert abs(params["a"][0] - 1 / 3) < 2**-13


def test_numbers_beyond_half_precision_are_refused(tmp_path):
    with pytest.raises(InputError, match="too large for float16"):
        save_model(
            tmp_path / "m", {"a": np.array([1e6], np.float32)}, config=MODELS["sam_nano"], source={}, dtype=np.float16
        )
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "changes",
    [{"image_size": 384}, {"dtype": "bfloat16"}, {"plugin": PluginConfig(attentions=(0, 2), router_width=5)}],
)
def test_what_differs_between_models_of_one_name_is_kept(tmp_path, changes):
    config = dataclasses.replace(MODELS["stable_sam_nano"], **changes)
    save_model(tmp_path / "m", TREE, config=config, source={})
    assert load_model(tmp_path / "m")[0] == config


def test_a_model_of_any_sizes_can_be_kept(tmp_path):
    encoder = ViTConfig(width=16, depth=2, heads=2, global_blocks=(1,))
    own = SamConfig(encoder=encoder, image_size=64, embedding_width=32, plugin=PluginConfig(embedding_width=32))
    save_model(tmp_path / "m", TREE, config=own, source={})
    config, _, metadata = load_model(tmp_path / "m")
    assert config == own
    for change in ({"encoder": "nonsense"}, {"config": {}}, {"config": None}):
        folder = tmp_path / f"{change}"
        save_tree(folder, TREE, metadata | change)
        with pytest.raises(InputError, match="made for another own_sam"):
            load_model(folder)


def test_a_model_of_another_name_or_of_other_widths_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="None is unknown"):
        load_model(folder)
    save_model(tmp_path / "sound", TREE, config=MODELS["sam_nano"], source={})
    metadata = load_model(tmp_path / "sound")[2]
    metadata["config"]["encoder"]["stem_width"] = 16
    save_tree(tmp_path / "other", TREE, metadata)
    with pytest.raises(InputError, match=r"made for another sam_nano \(its sizes differ"):
        load_model(tmp_path / "other")


def test_no_file_of_a_checkpoint_names_where_it_was_written(tmp_path):
    checkpoint.save_tree(tmp_path / "folder", {"a": np.arange(3.0)}, {})
    files = [path for path in (tmp_path / "folder").rglob("*") if path.is_file()]
    assert not [path for path in files if str(tmp_path).encode() in path.read_bytes()]
