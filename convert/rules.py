"""How a tensor of the official files becomes a leaf of our tree, and back: one table.

Modules bear the official names, so paths need one rule: `/` becomes `.`, and a number after an underscore at the end of
a component becomes an index (`blocks_3` -> `blocks.3`, but `conv1` and `neck/0` keep theirs). The table says the rest:
what the last component is called, how its axes turn, and its type in the file.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import DTypeLike

from stablesam_jax.errors import InputError
from stablesam_jax.params import Params, flatten, unflatten

SHOWN_FAULTS = 8  # tensors with numbers that are not finite; in a diverged model it is all of them

Axes = tuple[int, ...] | None  # a permutation of axes, torch -> flax, or None to keep them

KEEP: Axes = None
DENSE: Axes = (1, 0)  # (out, in) -> (in, out)
CONV: Axes = (2, 3, 1, 0)  # (out, in, height, width) -> (height, width, in, out)
DEPTHWISE: Axes = (2, 3, 0, 1)  # (channels, 1, height, width) -> (height, width, channels), without the 1 at the end
# (in, out, height, width) -> (height, width, in, out), not flipped: output pixel (2h + i, 2w + j) takes weight (i, j).
UPSCALE: Axes = (2, 3, 0, 1)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row: which leaves of the target, what their source is called, how its axes turn, its type."""

    target: str  # regular expression that the whole path of the leaf matches
    source: str  # last component of the source's name; {leaf} stands for that of the target
    axes: Axes  # torch -> flax, as for np.transpose; flax -> torch is its inverse
    dtype: DTypeLike = np.float32  # in the file; our leaves are float32, which must hold every number exactly


RULES = (
    Rule(r".*/scale", "weight", KEEP),
    Rule(r".*/bias", "bias", KEEP),
    Rule(r".*/bn/(mean|var)", "running_{leaf}", KEEP),
    Rule(r".*/bn/num_batches_tracked", "{leaf}", KEEP, np.int64),
    Rule(r".*/(qkv|attn/proj|[qkv]_proj|out_proj|lin[12]|fc[12]|head|layers_[0-2])/kernel", "weight", DENSE),
    Rule(r"image_encoder/(patch_embed/proj|neck/[02]|.*(seq_[02]|conv[13])/c)/kernel", "weight", CONV),
    Rule(r"image_encoder/.*(conv2|local_conv)/c/kernel", "weight", DEPTHWISE),
    Rule(r"prompt_encoder/mask_downscaling_[036]/kernel", "weight", CONV),
    Rule(r"mask_decoder/embedding_maskfeature_[03]/kernel", "weight", CONV),
    Rule(r"mask_decoder/(output_upscaling|compress_vit_feat|embedding_encoder)_[03]/kernel", "weight", UPSCALE),
    Rule(r"prompt_encoder/(point_embeddings_[0-3]|not_a_point_embed|no_mask_embed)", "{leaf}.weight", KEEP),
    Rule(r"mask_decoder/(iou_token|mask_tokens|hf_token)", "{leaf}.weight", KEEP),
    Rule(r".*/(pos_embed|rel_pos_[hw]|attention_biases|positional_encoding_gaussian_matrix)", "{leaf}", KEEP),
)

# Tensors that some files carry along, though the official classes do not store them: name, why we do without.
DROPPED = (
    (r"pixel_(mean|std)", "the configuration holds them"),
    (r"image_encoder\..*\.attention_bias_idxs", "they follow from the size of the window"),
)


def rule_of(path: str) -> Rule:
    """The one row for a leaf.

    Raises:
        InputError: no row matches, as for the encoder of sam_nano, which has no official twin.
        ValueError: two rows match, a fault of the table.
    """
    rules = [rule for rule in RULES if re.fullmatch(rule.target, path)]
    if not rules:
        raise InputError(f"{path}: no tensor of the official models corresponds to it. Give a SAM with ViT or TinyViT.")
    (rule,) = rules
    return rule


def source_name(path: str) -> str:
    """`image_encoder/blocks_3/norm1/scale` -> `image_encoder.blocks.3.norm1.weight`."""
    parents, _, leaf = path.rpartition("/")
    name = f"{parents}/{rule_of(path).source.format(leaf=leaf)}"
    return re.sub(r"_(\d+)(?=[/.]|$)", r".\1", name).replace("/", ".")


def source_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a leaf of this shape has in a state dict."""
    axes = rule_of(path).axes
    if axes is None:
        return shape
    padded = _padded(shape, axes)
    return tuple(padded[axis] for axis in np.argsort(axes))


def dropped(names: Iterable[str]) -> list[str]:
    """One remark for each row of DROPPED that names of a state dict match."""
    counts = collections.Counter(reason for name in names if (reason := _why_dropped(name)))
    return [f"{count} tensors dropped: {reason}" for reason, count in counts.items()]


def to_flax(state: Mapping[str, np.ndarray], target: Params) -> Params:
    """Fills a tree from a state dict; every leaf is filled once, every tensor is used once.

    Args:
        state: tensors by their official name; those of DROPPED are passed over.
        target: tree whose leaves have `shape` and `dtype` (jax.ShapeDtypeStruct).

    Returns:
        tree of numpy arrays, number for number those of the state dict, and views of them: where these are views of a
        file, a model of any size takes no memory yet.

    Raises:
        InputError: one line with every missing, unexpected, wrongly shaped, wrongly typed and unusable tensor.
    """
    names = {path: source_name(path) for path in flatten(target)}
    known = set(names.values())
    faults: dict[str, list[str]] = {
        "missing": [name for name in names.values() if name not in state],
        "unexpected": [name for name in state if name not in known and not _why_dropped(name)],
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
            turned = array if rule.axes is None else array.transpose(rule.axes)
            leaves[path] = turned.reshape(leaf.shape).astype(leaf.dtype, copy=False)
    if any(faults.values()):
        text = "; ".join(f"{kind} ({len(found)}): {_listed(kind, found)}" for kind, found in faults.items() if found)
        raise InputError(f"The tensors do not fit the model: {text}. Give a complete, sound checkpoint.")
    return unflatten(leaves)


def to_torch(params: Params) -> dict[str, np.ndarray]:
    """The table read backwards: a tree to a state dict with official names, number for number.

    Returns:
        tensors by name, in the types of the official files; views of the leaves where they can be.

    Raises:
        InputError: a leaf that the official models do not have, or whose numbers do not fit its type there.
    """
    state = {}
    for path, leaf in flatten(params).items():
        rule = rule_of(path)
        array = np.asarray(leaf)
        if rule.axes is not None:
            array = array.reshape(_padded(array.shape, rule.axes)).transpose(np.argsort(rule.axes))
        if not _is_exact(array, rule.dtype):
            raise InputError(f"{path}: holds numbers that {np.dtype(rule.dtype)} cannot, as official files have it.")
        state[source_name(path)] = array.astype(rule.dtype, copy=False)
    return state


def _padded(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Our shape with the axes of length 1 that we do without."""
    return shape + (1,) * (len(axes) - len(shape))


def _why_dropped(name: str) -> str | None:
    return next((reason for pattern, reason in DROPPED if re.fullmatch(pattern, name)), None)


def _is_exact(array: np.ndarray, dtype: DTypeLike) -> bool:
    """Whether an array survives the way to a type and back."""
    if array.dtype == dtype:
        return True
    with np.errstate(invalid="ignore"):  # NaN to int
        return bool((array.astype(dtype).astype(array.dtype) == array).all())


def _listed(kind: str, found: list[str]) -> str:
    if kind != "not finite" or len(found) <= SHOWN_FAULTS:
        return ", ".join(found)
    return ", ".join(found[:SHOWN_FAULTS]) + f" and {len(found) - SHOWN_FAULTS} more"
