"""A file of weights is read, or refused in one line before its code runs or its sizes are believed."""

import errno
import json
import os
import pathlib
import pickle
import struct
import tracemalloc
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


def test_wrappings_and_prefixes_inside_one_another_are_taken_off(file):
    torch.save({"state_dict": {"model": {f"model.module.{name}": t for name, t in STATE.items()}}}, file)
    state, remarks = read_state(file)
    assert_is_state(state)
    assert remarks[-1] == "prefix 'model.module.' dropped"


def test_of_a_training_framework_s_file_the_model_is_taken_and_what_else_it_holds_is_named(file):
    model = {"image_encoder.a": torch.ones(2), "mask_decoder.b": torch.zeros(1), "pixel_mean": torch.ones(3)}
    others = {"criterion.weight": torch.ones(3), "model.head.weight": torch.ones(1)}
    torch.save({"epoch": 1, "state_dict": {f"model.{name}": tensor for name, tensor in model.items()} | others}, file)
    state, remarks = read_state(file)
    assert state.keys() == model.keys()
    assert remarks[1:] == [
        "prefix 'model.' dropped",
        "left out, of no module of SAM: criterion.weight, model.head.weight (2 tensors)",
    ]
    torch.save(model | {"criterion.weight": torch.ones(3)}, file)
    state, remarks = read_state(file)
    assert state.keys() == model.keys()
    assert remarks == ["left out, of no module of SAM: criterion.weight (1 tensors)"]


def test_of_two_models_none_is_guessed(file):
    torch.save({"student.image_encoder.a": torch.ones(2), "teacher.image_encoder.a": torch.ones(2)}, file)
    with pytest.raises(
        InputError, match=r"holds 2 models, under 'student\.', 'teacher\.'\. Save the state dict of one"
    ):
        read_state(file)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_stands_for_the_file_in_it(tmp_path, name):
    (safetensors_torch.save_file if "safe" in name else torch.save)(STATE, tmp_path / name)
    assert_is_state(read_state(tmp_path)[0])
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match="no such file"):
        read_state(tmp_path)


def test_a_prefix_that_one_name_lacks_stays(file):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, file)
    assert read_state(file)[0].keys() == {"module.a", "b"}


def test_a_dictionary_inside_itself_is_not_followed_for_ever(file):
    endless = {}
    endless["model"] = endless
    torch.save(endless, file)
    with pytest.raises(InputError, match=r"holds 'model' \(dict\) beside tensors"):
        read_state(file)


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


@pytest.mark.slow
def test_a_megabyte_that_opens_to_a_gigabyte_is_not_opened(file, tmp_path):
    torch.save(STATE, tmp_path / "sound.pth")
    with zipfile.ZipFile(tmp_path / "sound.pth") as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            with target.open(member, "w") as entry:
                entry.write(source.read(member))
                for _ in range(16 if member.endswith("data/0") else 0):
                    entry.write(bytes(2**26))
        assert sum(member.file_size for member in target.infolist()) > 2**30
    assert file.stat().st_size < 2**20 + 2**17
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="compressed members"):
            read_state(file)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("modern", [True, False])
def test_a_small_file_that_declares_a_huge_tensor_is_refused(file, modern):
    torch.save({"a": torch.ones(1).expand(2**40)}, file, _use_new_zipfile_serialization=modern)
    with pytest.raises(InputError, match="declares a size of 1,099,511,627,776 where"):
        read_state(file)


@pytest.mark.parametrize("modern", [True, False])
def test_a_huge_tensor_hidden_in_its_sides_is_refused(file, modern):
    # No number in the file is larger than the file itself, but their product is.
    bomb = {"a": torch.ones(1).expand(2**20, 2**20), "filler": torch.ones(2**19)}
    torch.save(bomb, file, _use_new_zipfile_serialization=modern)
    with pytest.raises(InputError, match=r"would take 4,398,\d+,\d+,\d+ bytes, more than the file has"):
        read_state(file)


def entry(shape, begin, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12),  # overlapping
        ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, 8),  # the same bytes twice
        ({"a": entry([2], 8, 16)}, 16),  # a hole
        ({"a": entry([4], 0, 8)}, 8),  # more numbers than bytes
        ({"a": entry([2**40], 0, 2**42)}, 8),  # beyond the end
        ({"a": entry([2**32, 2**32], 0, 0)}, 0),  # a product that overflows to 0
    ],
)
def test_safetensors_whose_header_lies_are_refused(tmp_path, header, data):
    text = json.dumps(header).encode()
    file = tmp_path / "weights.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    with pytest.raises(InputError, match=r"weights\.safetensors: damaged or cut short"):
        read_state(file)


@pytest.mark.parametrize("length", [0, 1, 50, 10**6, 2**63, 2**64 - 1])
def test_safetensors_whose_header_has_another_length_are_refused(tmp_path, length):
    file = tmp_path / "weights.safetensors"
    safetensors_torch.save_file(STATE, file)
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    with pytest.raises(InputError, match=r"weights\.safetensors: damaged or cut short"):
        read_state(file)


def test_a_type_that_numpy_lacks_is_told(tmp_path):
    file = tmp_path / "weights.safetensors"
    safetensors_torch.save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, file)
    with pytest.raises(InputError, match=r"Float8_e4m3fn\. Save it in float32"):
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
        ({"a\nb": torch.ones(2)}, r"holds 'a\\nb' \(Tensor\) beside tensors"),
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


def test_a_file_that_may_not_be_read_is_not_called_damaged(file, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    torch.save(STATE, file)
    monkeypatch.setattr(pathlib.Path, "open", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        read_state(file)


def test_the_digest_is_that_of_the_file(tmp_path):
    path = pathlib.Path(tmp_path / "abc")
    path.write_bytes(b"abc")
    assert sha256(path).startswith("ba7816bf8f01cfea414140de5dae2223")
