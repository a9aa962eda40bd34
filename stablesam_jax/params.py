"""Parameter trees: paths, counts, patterns, and the split into trained and frozen."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from stablesam_jax.errors import InputError

Params = dict[str, Any]  # nested dictionaries with arrays as leaves


def flatten(params: Params) -> dict[str, jax.Array]:
    """Leaves by path, as in `mask_decoder/transformer/layers_1/norm2/scale`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def unflatten(leaves: dict[str, Any]) -> Params:
    """Inverse of `flatten`."""
    tree: Params = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def count(params: Params) -> int:
    """Number of parameters: the sum of the leaves' sizes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def digest(params: Params) -> str:
    """SHA-256 over paths, dtypes, shapes and bytes of all leaves, in the order of their paths."""
    result = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        result.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        result.update(np.ascontiguousarray(leaf).tobytes())
    return result.hexdigest()


def split(params: Params, trainable: Sequence[str]) -> tuple[Params, Params]:
    """Splits a tree into the leaves whose whole path matches one of the patterns, and the rest.

    Args:
        params: parameter tree.
        trainable: regular expressions over whole paths, such as `plugin/.*`.

    Returns:
        trained and frozen tree; `merge` is the inverse.

    Raises:
        InputError: a pattern that matches no leaf, or is none.
    """
    leaves = flatten(params)
    for pattern in trainable:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"{pattern!r}: is no regular expression ({error}).") from None
        if not any(re.fullmatch(pattern, path) for path in leaves):
            tops = ", ".join(params)
            raise InputError(f"{pattern!r}: matches no parameter; paths begin with {tops}.")
    chosen = {path for path in leaves if any(re.fullmatch(pattern, path) for pattern in trainable)}
    trained = unflatten({path: leaf for path, leaf in leaves.items() if path in chosen})
    frozen = unflatten({path: leaf for path, leaf in leaves.items() if path not in chosen})
    return trained, frozen


def merge(first: Params, second: Params) -> Params:
    """One tree with the leaves of both, which must be disjoint."""
    return unflatten(flatten(first) | flatten(second))
