"""How a tensor of segment_anything becomes a leaf of our tree, and back: one table.

Modules bear the official names, so paths need one rule: `/` becomes `.`, and a number at the end of a component becomes
an index (`blocks_3` -> `blocks.3`). The table says the rest: what the last component is called and how its axes turn.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from stablesam_jax.errors import InputError
from stablesam_jax.params import Params, flatten, unflatten

Axes = tuple[int, ...] | None  # a permutation of axes, or None to keep them

KEEP: Axes = None
DENSE: Axes = (1, 0)  # (out, in) -> (in, out)
CONV: Axes = (2, 3, 1, 0)  # (out, in, height, width) -> (height, width, in, out)
# (in, out, height, width) -> (height, width, in, out), not flipped: output pixel (2h + i, 2w + j) takes weight (i, j).
UPSCALE: Axes = (2, 3, 0, 1)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row: which leaves of the target, what their source is called, how its axes turn."""

    target: str  # regular expression that the whole path of the leaf matches
    source: str  # last component of the source's name; {leaf} stands for that of the target
    axes: Axes  # torch -> flax, as for np.transpose; flax -> torch is its inverse


RULES = (
    Rule(r".*/scale", "weight", KEEP),
    Rule(r".*/bias", "bias", KEEP),
    Rule(r".*/(qkv|attn/proj|[qkv]_proj|out_proj|lin[12]|layers_[0-2])/kernel", "weight", DENSE),
    Rule(r"image_encoder/(patch_embed/proj|neck/[02])/kernel", "weight", CONV),
    Rule(r"prompt_encoder/mask_downscaling_[036]/kernel", "weight", CONV),
    Rule(r"mask_decoder/output_upscaling_[03]/kernel", "weight", UPSCALE),
    Rule(r"prompt_encoder/(point_embeddings_[0-3]|not_a_point_embed|no_mask_embed)", "{leaf}.weight", KEEP),
    Rule(r"mask_decoder/(iou_token|mask_tokens)", "{leaf}.weight", KEEP),
    Rule(r".*/(pos_embed|rel_pos_[hw]|positional_encoding_gaussian_matrix)", "{leaf}", KEEP),
)


def rule_of(path: str) -> Rule:
    """The one row for a leaf.

    Raises:
        InputError: no row matches, as for the encoder of sam_nano, which has no official twin.
        ValueError: two rows match, a fault of the table.
    """
    rules = [rule for rule in RULES if re.fullmatch(rule.target, path)]
    if not rules:
        raise InputError(f"{path}: no tensor of segment_anything corresponds to it; only SAM ViT-B, L and H convert.")
    (rule,) = rules
    return rule


def source_name(path: str) -> str:
    """`image_encoder/blocks_3/norm1/scale` -> `image_encoder.blocks.3.norm1.weight`."""
    parents, _, leaf = path.rpartition("/")
    name = f"{parents}/{rule_of(path).source.format(leaf=leaf)}"
    return re.sub(r"_(\d+)(?=[/.]|$)", r".\1", name).replace("/", ".")


def to_flax(state: Mapping[str, np.ndarray], target: Params) -> Params:
    """Fills a tree from a state dict; every leaf is filled once, every tensor is used once.

    Args:
        state: tensors by their official name.
        target: tree whose leaves have `shape` and `dtype` (jax.ShapeDtypeStruct).

    Returns:
        tree of contiguous numpy arrays, bit for bit those of the state dict.

    Raises:
        InputError: one line with every missing, unexpected, wrongly shaped and wrongly typed tensor.
    """
    names = {path: source_name(path) for path in flatten(target)}
    missing = [name for name in names.values() if name not in state]
    unexpected = [name for name in state if name not in set(names.values())]
    wrong_shape, wrong_dtype, leaves = [], [], {}
    for path, leaf in flatten(target).items():
        name = names[path]
        if name not in state:
            continue
        array = np.asarray(state[name])
        axes = rule_of(path).axes
        expected = leaf.shape if axes is None else tuple(leaf.shape[axis] for axis in np.argsort(axes))
        if array.shape != expected:
            wrong_shape.append(f"{name} {array.shape} instead of {expected}")
        elif array.dtype != leaf.dtype:
            wrong_dtype.append(f"{name} {array.dtype} instead of {leaf.dtype}")
        else:
            leaves[path] = _turn(array, axes)
    faults = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong_shape, "wrong type": wrong_dtype}
    if any(faults.values()):
        text = "; ".join(f"{kind} ({len(found)}): {', '.join(found)}" for kind, found in faults.items() if found)
        raise InputError(f"The tensors do not fit the model: {text}. Give a complete checkpoint of segment_anything.")
    return unflatten(leaves)


def to_torch(params: Params) -> dict[str, np.ndarray]:
    """The table read backwards: a tree to a state dict with official names, bit for bit.

    Raises:
        InputError: a leaf that segment_anything does not have.
    """
    state = {}
    for path, leaf in flatten(params).items():
        axes = rule_of(path).axes
        back = None if axes is None else tuple(np.argsort(axes).tolist())
        state[source_name(path)] = _turn(np.asarray(leaf), back)
    return state


def _turn(array: np.ndarray, axes: Axes) -> np.ndarray:
    # np.transpose takes None for "reverse all axes", which is not what it means here.
    return np.ascontiguousarray(array if axes is None else array.transpose(axes))
