"""Reads a file of PyTorch weights as numpy arrays, without running its code or trusting the sizes it declares.

A .pth file is a pickle beside raw bytes of tensors. In a malicious file the pickle runs a program, and a compressed zip
member or a tensor with stride 0 fills the memory; a flipped bit changes a weight. All of this is checked before a
tensor is allocated.
"""

import hashlib
import mmap
import pathlib
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import IO, Any, cast

import numpy as np
import safetensors
import safetensors.torch
import torch

from convert.rules import VIDEO_MODULES
from stablesam_jax.errors import InputError

State = dict[str, np.ndarray]

# Callables in the pickle of a state dict. A pickle with any other is refused.
ALLOWED_CALLS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch(\.storage)? \w+Storage"
)
OTHER_CALLS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
# torch.save before 1.6 wrote pickles one after another; the first holds the magic number, the second the protocol.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

# What zipfile, pickletools and torch.load raise on malformed bytes.
UNREADABLE = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    OSError,
    EOFError,
    RuntimeError,
    AssertionError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
)

WRAPPERS = ("model", "state_dict", "model_state_dict")
NESTING = 4  # nested wrappers that are opened; bounded, because a pickled dictionary may contain itself
# Modules of a SAM, here and in the library transformers, and of a SAM 2. What comes before the encoder's name is the
# prefix of all.
ENCODER = re.compile(r"(.*?)(image_encoder|vision_encoder)\.")
MODULES = {
    *("image_encoder", "prompt_encoder", "mask_decoder", "pixel_mean", "pixel_std"),
    *("vision_encoder", "shared_image_embedding"),
    *("sam_prompt_encoder", "sam_mask_decoder", "no_mem_embed", *VIDEO_MODULES),
}
PREFIXES = ("module.", "model.", "sam.", "sam_model.", "net.", "_orig_mod.")  # where there is no encoder
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # that transformers and training scripts write into a folder


def read_state(path: pathlib.Path) -> tuple[State, list[str]]:
    """Reads a state dict.

    Args:
        path: a .pth or .pt file of torch.save, a .safetensors file, or a folder that holds a file of `FOLDER_FILES`.

    Returns:
        tensors by name, float16 and bfloat16 widened to float32, and remarks on what was unwrapped or widened. Arrays
        of a .pth file that are not widened are memory-mapped.

    Raises:
        InputError: the file is absent, damaged, would run code or fill the memory, or holds no state dict.
    """
    path = file_of(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file. Give a .pth, .pt or .safetensors file.")
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Ask for access to it.") from None
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    tensors, remarks = _unwrap(path, content)
    declared = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if declared > path.stat().st_size:
        raise InputError(f"{path}: its tensors would take {declared:,} bytes, more than the file has. Do not trust it.")
    half = [name for name, tensor in tensors.items() if tensor.dtype in (torch.float16, torch.bfloat16)]
    if half:
        remarks.append(f"{len(half)} tensors widened from half precision to float32")
    tensors |= {name: tensors[name].float() for name in half}
    try:
        return {name: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()}, remarks
    except TypeError as error:  # a dtype that numpy lacks, such as 8-bit floats
        raise InputError(f"{path}: {error}. Save it in float32.") from None


def file_of(path: pathlib.Path) -> pathlib.Path:
    """The file of weights in a folder; of a file, itself."""
    return next((path / name for name in FOLDER_FILES if (path / name).is_file()), path) if path.is_dir() else path


def sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file, as published beside official weights."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: pathlib.Path) -> Any:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise _damaged(path, str(error)) from None


def _read_pickle(path: pathlib.Path) -> Any:
    try:
        is_zip = zipfile.is_zipfile(path)
        (_check_zip if is_zip else _check_legacy)(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except InputError:
        raise
    except UNREADABLE as error:
        raise _damaged(path, str(error)) from None


def _check_zip(path: pathlib.Path) -> None:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise InputError(f"{path}: holds compressed members, which torch.save never writes. Do not trust it.")
        if sum(member.file_size for member in members) > size:
            raise InputError(f"{path}: its members are larger than the file. Do not trust it.")
        broken = archive.testzip()
        if broken is not None:
            raise _damaged(path, f"{broken} fails its checksum")
        pickles = [member for member in members if member.filename.endswith("data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"{path}: a zip archive, but not of torch.save. Give a .pth, .pt or .safetensors file.")
        _check_calls(path, pickletools.genops(archive.read(pickles[0])), size)


def _check_legacy(path: pathlib.Path) -> None:
    with path.open("rb") as file:
        head = file.read(4)
        if head.startswith(b"PK"):
            raise _damaged(path, "a zip archive without its end")
        if not head.startswith(b"\x80"):
            raise InputError(f"{path}: not a file of torch.save. Give a .pth, .pt or .safetensors file.")
        # Mapped, because file.read(n) allocates n bytes, which a string in the pickle declares; a map is bounded.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            content = cast(IO[bytes], mapped)
            if LEGACY_MAGIC not in [argument for _, argument, _ in pickletools.genops(content)]:
                raise InputError(f"{path}: a pickle, but not of torch.save. Give a .pth, .pt or .safetensors file.")
            # Four pickles follow the magic number: protocol, system (which has the protocol too), object, keys.
            for limit in (LEGACY_PROTOCOL, LEGACY_PROTOCOL, len(mapped), len(mapped)):
                _check_calls(path, pickletools.genops(content), limit)


def _check_calls(path: pathlib.Path, operations: Any, limit: int) -> None:
    """Scans a pickle without running it: refuses callables that are not allowed, and integers above the limit."""
    for operation, argument, _ in operations:
        if (operation.name == "GLOBAL" and not ALLOWED_CALLS.fullmatch(argument)) or operation.name in OTHER_CALLS:
            call = argument.replace(" ", ".") if operation.name == "GLOBAL" else f"a {operation.name} instruction"
            raise InputError(
                f"{path}: reading it would run {call}, so it is not read. Ask for a state dict, "
                "torch.save(model.state_dict(), FILE)."
            )
        if isinstance(argument, int) and argument > limit:
            raise InputError(
                f"{path}: declares a size of {argument:,} where {limit:,} is possible: cut short or malicious. "
                "Get it again from a source that you trust."
            )


def _unwrap(path: pathlib.Path, content: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Finds the tensors inside wrapper entries and name prefixes that training scripts add."""
    remarks = []
    for _ in range(NESTING):
        for wrapper in WRAPPERS:
            if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                remarks.append(f"taken from the entry {wrapper!r}")
    if not isinstance(content, Mapping) or not content:
        kind = "an empty dictionary" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise InputError(f"{path}: holds {kind}, not a state dict. Write it by torch.save(model.state_dict(), FILE).")
    strangers = ((key, value) for key, value in content.items() if not _is_entry(key, value))
    others = [f"{_shown_key(key)} ({type(value).__name__})" for key, value in strangers]
    if others:
        some = ", ".join(others[:5]) + (" …" if len(others) > 5 else "")
        raise InputError(f"{path}: holds {some} beside tensors. Write it by torch.save(model.state_dict(), FILE).")
    return _of_the_model(path, dict(content), remarks), remarks


def _shown_key(key: Any) -> str:
    return repr(key) if isinstance(key, str | int) else f"a {type(key).__name__} as a key"


def _of_the_model(path: pathlib.Path, tensors: dict[str, torch.Tensor], remarks: list[str]) -> dict[str, torch.Tensor]:
    """Removes the prefix of the model's modules, and leaves out tensors of others, such as a loss function's."""
    prefixes = sorted({found[1] for name in tensors if (found := ENCODER.match(name))})
    if len(prefixes) > 1:
        raise InputError(
            f"{path}: holds {len(prefixes)} models, under {', '.join(map(repr, prefixes))}. Save the state dict of one."
        )
    prefix = prefixes[0] if prefixes else _shared_prefix(tensors)
    if prefix:
        remarks.append(f"prefix {prefix!r} dropped")
    inner = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    own = {name: tensor for name, tensor in inner.items() if not prefixes or name.partition(".")[0] in MODULES}
    if len(own) < len(tensors):
        others = [name for name in tensors if not name.startswith(prefix) or name.removeprefix(prefix) not in own]
        some = ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
        remarks.append(f"left out, of no module of SAM: {some} ({len(others)} tensors)")
    return own


def _shared_prefix(names: Iterable[str]) -> str:
    """The longest chain of `PREFIXES` that all names begin with."""
    prefix = ""
    while more := [word for word in PREFIXES if all(name.startswith(prefix + word) for name in names)]:
        prefix += more[0]
    return prefix


def _is_entry(key: Any, value: Any) -> bool:
    return isinstance(key, str) and key.isprintable() and isinstance(value, torch.Tensor)


def _damaged(path: pathlib.Path, reason: str) -> InputError:
    return InputError(f"{path}: damaged or cut short ({' '.join(reason.split())[:200]}). Download or copy it again.")
