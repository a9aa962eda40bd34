"""A sealed file is whole or absent, and a changed byte is seen."""

import errno
import os
import pathlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from stablesam_jax.errors import InputError
from stablesam_jax.files import sealed_file

TENSORS = {
    "kernel": np.arange(6, dtype=np.float32).reshape(3, 2).T,  # not contiguous
    "scale": np.float32(1),
    "features": np.ones((2, 2), ml_dtypes.bfloat16),
}


def read(path):
    return sealed_file.read(path, kind="recipe", keys=("text",))


@pytest.fixture
def file(tmp_path):
    sealed_file.write(tmp_path / "a.safetensors", TENSORS, {"text": "salt"})
    return tmp_path / "a.safetensors"


def test_what_is_written_comes_back_to_the_bit(file):
    tensors, header = read(file)
    assert header == {"text": "salt"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(tensors[name], tensor)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_no_byte_can_change_unseen(file):
    sound = file.read_bytes()
    for position in range(len(sound)):
        for bit in (1, 128):
            damaged = bytearray(sound)
            damaged[position] ^= bit
            file.write_bytes(damaged)
            with pytest.raises(InputError):
                read(file)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_file_cut_short_is_refused(file, kept):
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match="cut short"):
        read(file)


def test_an_existing_file_is_left_alone(file):
    with pytest.raises(InputError, match="exists already"):
        sealed_file.write(file, TENSORS, {"text": "sugar"})
    assert read(file)[1] == {"text": "salt"}


def test_a_write_that_dies_before_the_rename_leaves_nothing(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        sealed_file.write(tmp_path / "a.safetensors", TENSORS, {})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def fill(path, data):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", fill)
    with pytest.raises(InputError, match=r"a\.safetensors: cannot be written \(No space left on device\)"):
        sealed_file.write(tmp_path / "a.safetensors", TENSORS, {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        sealed_file.write(tmp_path / "file" / "a.safetensors", TENSORS, {})


def test_a_folder_that_is_missing_is_created(tmp_path):
    sealed_file.write(tmp_path / "absent" / "a.safetensors", TENSORS, {"text": ""})
    assert (tmp_path / "absent" / "a.safetensors").exists()


def test_other_files_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="no such recipe file"):
        read(tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match="is a folder, and no recipe file"):
        read(tmp_path)
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no recipe of this package, its header has no 'text'"):
        read(tmp_path / "other.safetensors")
    sealed_file.write(tmp_path / "more.safetensors", TENSORS, {"text": "salt", "more": "sugar"})
    with pytest.raises(InputError, match="damaged"):
        read(tmp_path / "more.safetensors")
