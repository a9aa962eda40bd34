"""Conversion between tensors of PyTorch files and leaves of our tree, as one table for both directions.

The files are those of the official packages, and of stablesam_torch for sam_nano.

Modules have the official names, so paths need one rule: `/` becomes `.`, and a number after an underscore at the end of
a component becomes an index (`blocks_3` -> `blocks.3`; `conv1` and `neck/0` are unchanged). The table has the name of
the last component, the permutation of axes, and the dtype in the file.

SAM 2 names some of its modules otherwise. Its tree has the names of SAM for them, and `SAM2_NAMES` those of its files.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import DTypeLike

from stablesam_jax.errors import InputError
from stablesam_jax.params import Params, flatten, unflatten

SHOWN_FAULTS = 8  # tensors with non-finite values that a message names; in a diverged model all tensors have some

Axes = tuple[int, ...] | None  # a permutation of axes, torch -> flax, or None to keep them

KEEP: Axes = None
DENSE: Axes = (1, 0)  # (out, in) -> (in, out)
CONV: Axes = (2, 3, 1, 0)  # (out, in, height, width) -> (height, width, in, out)
DEPTHWISE: Axes = (2, 3, 0, 1)  # (channels, 1, height, width) -> (height, width, channels); the axis of length 1 goes
# (in, out, height, width) -> (height, width, in, out). Not flipped, since kernel and stride are 2: output pixel
# (2h + i, 2w + j) is input (h, w) times weight (i, j).
UPSCALE: Axes = (2, 3, 0, 1)
MAP: Axes = (0, 2, 3, 1)  # (1, channels, height, width) -> (1, height, width, channels)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row: leaves of our tree, and name, axes and dtype of their tensors in the file."""

    target: str  # regular expression, matched against the whole path of a leaf
    source: str  # last component of the tensor's name; {leaf} stands for that of the leaf
    axes: Axes  # torch -> flax, as for np.transpose; flax -> torch is its inverse
    dtype: DTypeLike = np.float32  # of the tensor; our leaves are float32, and the conversion must be exact


RULES = (
    Rule(r".*/scale", "weight", KEEP),
    Rule(r".*/bias", "bias", KEEP),
    Rule(r".*/bn/(mean|var)", "running_{leaf}", KEEP),
    Rule(r".*/bn/num_batches_tracked", "{leaf}", KEEP, np.int64),
    Rule(r".*/(qkv|attn/proj|[qkv]_proj|out_proj|lin[12]|fc[12]|head|layers_[0-2])/kernel", "weight", DENSE),
    Rule(r"image_encoder/trunk/blocks_\d+/proj/kernel", "weight", DENSE),
    Rule(r"image_encoder/(patch_embed/proj|neck/[02]|.*(seq_[02]|conv[13])/c)/kernel", "weight", CONV),
    Rule(r"image_encoder/(trunk/patch_embed/proj|neck/convs_[0-3]/conv)/kernel", "weight", CONV),
    Rule(r"image_encoder/.*(conv2|local_conv)/c/kernel", "weight", DEPTHWISE),
    Rule(r"image_encoder/backbone/.*(stem|expand|project)/kernel", "weight", CONV),
    Rule(r"image_encoder/neck/(finest|fine|middle|coarse|output)/kernel", "weight", CONV),
    Rule(r"image_encoder/backbone/.*depthwise/kernel", "weight", DEPTHWISE),
    Rule(r"prompt_encoder/mask_downscaling_[036]/kernel", "weight", CONV),
    Rule(r"mask_decoder/(embedding_maskfeature_[03]|conv_s[01])/kernel", "weight", CONV),
    Rule(r"mask_decoder/(output_upscaling|compress_vit_feat|embedding_encoder)_[03]/kernel", "weight", UPSCALE),
    Rule(r"prompt_encoder/(point_embeddings_[0-3]|not_a_point_embed|no_mask_embed)", "{leaf}.weight", KEEP),
    Rule(r"mask_decoder/(iou_token|mask_tokens|hf_token|obj_score_token)", "{leaf}.weight", KEEP),
    Rule(r".*/(rel_pos_[hw]|attention_biases|positional_encoding_gaussian_matrix)", "{leaf}", KEEP),
    Rule(r"image_encoder/(pos_embed|no_mem_embed)", "{leaf}", KEEP),
    Rule(r"image_encoder/trunk/(pos_embed|pos_embed_window)", "{leaf}", MAP),
)

# In the names of a SAM 2 each left side, found once at most, becomes the right side.
SAM2_NAMES = (
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"^image_encoder\.no_mem_embed$", "no_mem_embed"),
    (r"\.mlp\.lin1\.", ".mlp.layers.0."),
    (r"\.mlp\.lin2\.", ".mlp.layers.1."),
)

# Modules and parameters of SAM 2 that only videos use.
VIDEO_MODULES = (
    *("memory_attention", "memory_encoder", "mask_downsample", "obj_ptr_proj", "obj_ptr_tpos_proj"),
    *("maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial"),
)
# Tensors in some files that no leaf corresponds to: name, why they are not needed.
DROPPED = (
    (r"pixel_(mean|std)", "the configuration holds them"),
    (r"image_encoder\..*\.attention_bias_idxs", "they follow from the size of the window"),
    (rf"({'|'.join(VIDEO_MODULES)})(\..*)?", "they are SAM 2's memory of videos, and no picture needs them"),
)


def rule_of(path: str) -> Rule:
    """The row that matches a leaf.

    Raises:
        InputError: no row matches.
        ValueError: two rows match: a bug in the table.
    """
    rules = [rule for rule in RULES if re.fullmatch(rule.target, path)]
    if not rules:
        raise InputError(f"{path}: no tensor of the official models or of stablesam_torch corresponds to it.")
    (rule,) = rules
    return rule


def source_name(path: str) -> str:
    """`image_encoder/blocks_3/norm1/scale` -> `image_encoder.blocks.3.norm1.weight`."""
    parents, _, leaf = path.rpartition("/")
    name = f"{parents}/{rule_of(path).source.format(leaf=leaf)}"
    return re.sub(r"_(\d+)(?=[/.]|$)", r".\1", name).replace("/", ".")


def source_names(params: Params) -> dict[str, str]:
    """Path -> name in a state dict, of every leaf of a model, whose encoder tells a SAM 2."""
    names = {path: source_name(path) for path in flatten(params)}
    if "trunk" in params.get("image_encoder", {}):
        for ours, theirs in SAM2_NAMES:
            names = {path: re.sub(ours, theirs, name) for path, name in names.items()}
    return names


def source_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a state dict of a leaf with shape `shape`."""
    axes = rule_of(path).axes
    if axes is None:
        return shape
    padded = _padded(shape, axes)
    return tuple(padded[axis] for axis in np.argsort(axes))


def dropped(names: Iterable[str]) -> list[str]:
    """One remark for each row of DROPPED that matches names of a state dict."""
    counts = collections.Counter(reason for name in names if (reason := _why_dropped(name)))
    return [f"{count} tensors dropped: {reason}" for reason, count in counts.items()]


def to_flax(state: Mapping[str, np.ndarray], target: Params) -> Params:
    """Converts a state dict to a tree. Every leaf must be filled once, every tensor must be used once.

    Args:
        state: tensors by official name; those of DROPPED are ignored.
        target: tree whose leaves have `shape` and `dtype` (jax.ShapeDtypeStruct).

    Returns:
        tree of numpy arrays with the values of the state dict, as views: arrays that map a file take no memory yet.

    Raises:
        InputError: one line with every tensor that is missing, unexpected, or of wrong shape, dtype or values.
    """
    names = source_names(target)
    expected_names = set(names.values())
    faults: dict[str, list[str]] = {
        "missing": [name for name in names.values() if name not in state],
        "unexpected": [name for name in state if name not in expected_names and not _why_dropped(name)],
        "wrong shape": [],
        "wrong type": [],
        "not exact in float32": [],
        "not finite": [],
    }
    leaves = {}
    for path, leaf in flatten(target).items():
        name, rule = names[path], rule_of(path)
        if name not in state:
            continue
        array = np.asarray(state[name])
        expected = source_shape(path, leaf.shape)
        if array.shape != expected:
            faults["wrong shape"].append(f"{name} {array.shape} instead of {expected}")
        elif array.dtype != rule.dtype:
            faults["wrong type"].append(f"{name} {array.dtype} instead of {np.dtype(rule.dtype)}")
        elif not np.isfinite(array).all():
            faults["not finite"].append(f"{name} in {np.sum(~np.isfinite(array))} of {array.size}")
        elif not _is_exact(array, leaf.dtype):
            faults["not exact in float32"].append(name)
        else:
            transposed = array if rule.axes is None else array.transpose(rule.axes)
            leaves[path] = transposed.reshape(leaf.shape).astype(leaf.dtype, copy=False)
    if any(faults.values()):
        text = "; ".join(f"{kind} ({len(found)}): {_listed(kind, found)}" for kind, found in faults.items() if found)
        raise InputError(f"The tensors do not fit the model: {text}. Give a complete, sound checkpoint.")
    return unflatten(leaves)


def to_torch(params: Params) -> dict[str, np.ndarray]:
    """Converts a tree to a state dict with official names: the inverse of `to_flax`.

    Returns:
        tensors by name, in the dtypes of the official files; views of the leaves where possible.

    Raises:
        InputError: a leaf that the official models do not have, or with values that its official dtype cannot hold.
    """
    state, names = {}, source_names(params)
    for path, leaf in flatten(params).items():
        rule = rule_of(path)
        array = np.asarray(leaf)
        if rule.axes is not None:
            array = array.reshape(_padded(array.shape, rule.axes)).transpose(np.argsort(rule.axes))
        if not _is_exact(array, rule.dtype):
            raise InputError(
                f"{path}: has values that {np.dtype(rule.dtype)}, its dtype in official files, cannot hold."
            )
        state[names[path]] = array.astype(rule.dtype, copy=False)
    return state


def _padded(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Appends the axes of length 1 that a leaf lacks."""
    return shape + (1,) * (len(axes) - len(shape))


def _why_dropped(name: str) -> str | None:
    return next((reason for pattern, reason in DROPPED if re.fullmatch(pattern, name)), None)


def _is_exact(array: np.ndarray, dtype: DTypeLike) -> bool:
    """Whether a cast to a dtype keeps every value."""
    if array.dtype == dtype:
        return True
    with np.errstate(invalid="ignore"):  # NaN to int
        return bool((array.astype(dtype).astype(array.dtype) == array).all())


def _listed(kind: str, found: list[str]) -> str:
    if kind != "not finite" or len(found) <= SHOWN_FAULTS:
        return ", ".join(found)
    return ", ".join(found[:SHOWN_FAULTS]) + f" and {len(found) - SHOWN_FAULTS} more"
