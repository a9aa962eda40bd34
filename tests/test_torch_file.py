"""A file of weights is read, or refused in one line before its code runs or its sizes are believed."""

import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from convert.torch_file import read_state, sha256  # noqa: E402
from stablesam_jax.errors import InputError  # noqa: E402

STATE = {"a.weight": torch.arange(600.0).reshape(20, 30), "a.bias": torch.tensor([1.5])}


class Program:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.pth"


def assert_is_state(state):
    assert state.keys() == STATE.keys()
    for name, array in state.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, STATE[name].numpy())


@pytest.mark.parametrize("modern", [True, False])
def test_both_formats_of_torch_are_read(file, modern):
    torch.save(STATE, file, _use_new_zipfile_serialization=modern)
    state, remarks = read_state(file)
    assert_is_state(state)
    assert remarks == []


def test_the_state_dict_of_a_module_is_read(file):
    module = torch.nn.Linear(3, 2)
    torch.save(module.state_dict(), file)
    np.testing.assert_array_equal(read_state(file)[0]["weight"], module.weight.detach().numpy())


def test_safetensors_are_read(tmp_path):
    safetensors_torch.save_file(STATE, tmp_path / "weights.safetensors")
    assert_is_state(read_state(tmp_path / "weights.safetensors")[0])


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict"])
def test_wrappings_and_prefixes_are_taken_off_and_said(file, wrapper):
    torch.save({wrapper: {f"module.{name}": tensor for name, tensor in STATE.items()}, "epoch": 3}, file)
    state, remarks = read_state(file)
    assert_is_state(state)
    assert remarks == [f"taken from the entry '{wrapper}'", "prefix 'module.' dropped"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_half_precision_is_widened_and_said(tmp_path, dtype, suffix):
    file = tmp_path / f"weights.{suffix}"
    half = {"a": torch.tensor([1 / 3], dtype=dtype), "b": torch.ones(2)}
    (torch.save if suffix == "pth" else safetensors_torch.save_file)(half, file)
    state, remarks = read_state(file)
    assert state["a"].dtype == np.float32
    assert state["a"][0] == half["a"].float()[0]
    assert remarks == ["1 tensors widened from half precision to float32"]


def test_a_transposed_tensor_is_read_in_its_order(file):
    torch.save({"a": STATE["a.weight"].T}, file)
    np.testing.assert_array_equal(read_state(file)[0]["a"], STATE["a.weight"].numpy().T)


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(file, modern, share):
    torch.save(STATE, file, _use_new_zipfile_serialization=modern)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="cut short"):
        read_state(file)


def test_safetensors_cut_short_are_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    safetensors_torch.save_file(STATE, file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged or cut short"):
        read_state(file)


def test_a_flipped_bit_in_a_weight_is_refused(file):
    torch.save(STATE, file)
    content = bytearray(file.read_bytes())
    content[content.index(STATE["a.weight"].numpy().tobytes()) + 1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="fails its checksum"):
        read_state(file)


@pytest.mark.parametrize("modern", [True, False])
def test_a_pickle_that_runs_a_program_does_not_run(file, modern):
    made = file.with_name("made")
    torch.save({"a": Program(made)}, file, _use_new_zipfile_serialization=modern)
    with pytest.raises(InputError, match=r"reading it would run (posix|nt)\.system, so it is not read"):
        read_state(file)
    assert not made.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_does_not_run_either(file, protocol):
    made = file.with_name("made")
    file.write_bytes(pickle.dumps(Program(made), protocol))
    with pytest.raises(InputError, match=r"not (a file )?of torch\.save"):
        read_state(file)
    assert not made.exists()


def test_a_pickled_module_is_not_read(file):
    torch.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(InputError, match=r"would run torch\.nn\.modules\.linear\.Linear"):
        read_state(file)


def test_compressed_members_are_refused(file, tmp_path):
    torch.save(STATE, tmp_path / "sound.pth")
    with zipfile.ZipFile(tmp_path / "sound.pth") as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))
    with pytest.raises(InputError, match="compressed members"):
        read_state(file)


@pytest.mark.parametrize("modern", [True, False])
def test_a_small_file_that_declares_a_huge_tensor_is_refused(file, modern):
    torch.save({"a": torch.ones(1).expand(10**12)}, file, _use_new_zipfile_serialization=modern)
    with pytest.raises(InputError, match="declares a size of 1,000,000,000,000 where"):
        read_state(file)


def test_many_tensors_on_one_storage_are_refused(file):
    shared = torch.ones(1000)
    torch.save({f"a{index}": shared for index in range(1000)}, file)
    with pytest.raises(InputError, match=r"would take 4,000,000 bytes, more than the file has"):
        read_state(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        (torch.ones(2), "holds a Tensor, not a state dict"),
        ({}, "holds an empty dictionary"),
        ({"epoch": 3, "a": torch.ones(2)}, r"holds 'epoch' \(int\) beside tensors"),
        ({7: torch.ones(2)}, r"holds 7 \(Tensor\) beside tensors"),
    ],
)
def test_what_is_no_state_dict_is_told(file, content, message):
    torch.save(content, file)
    with pytest.raises(InputError, match=message):
        read_state(file)


def test_other_files_are_told_apart(tmp_path, file):
    with pytest.raises(InputError, match="no such file"):
        read_state(tmp_path)
    file.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match=r"not a file of torch\.save"):
        read_state(file)
    file.write_bytes(b"")
    with pytest.raises(InputError, match=r"not a file of torch\.save"):
        read_state(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("picture.jpg", b"")
    with pytest.raises(InputError, match=r"a zip archive, but not of torch\.save"):
        read_state(file)


def test_the_digest_is_that_of_the_file(tmp_path):
    path = pathlib.Path(tmp_path / "abc")
    path.write_bytes(b"abc")
    assert sha256(path).startswith("ba7816bf8f01cfea414140de5dae2223")
