"""Trees of parameters: paths, counts, and the split into what is trained and what is frozen."""

import jax
import numpy as np
import pytest

from stablesam_jax.params import count, flatten, merge, split, unflatten

TREE = {
    "plugin": {"scale": np.ones(())},
    "mask_decoder": {"layers_0": {"kernel": np.ones((2, 3))}, "token": np.ones(4)},
}


def test_paths_join_the_names():
    assert set(flatten(TREE)) == {"plugin/scale", "mask_decoder/layers_0/kernel", "mask_decoder/token"}


def test_flattening_is_undone():
    assert jax.tree.structure(unflatten(flatten(TREE))) == jax.tree.structure(TREE)


def test_count_counts_numbers():
    assert count(TREE) == 1 + 6 + 4


def test_split_and_merge_lose_nothing():
    trained, frozen = split(TREE, ["plugin/.*", ".*/kernel"])
    assert set(flatten(trained)) == {"plugin/scale", "mask_decoder/layers_0/kernel"}
    assert set(flatten(frozen)) == {"mask_decoder/token"}
    assert jax.tree.structure(merge(trained, frozen)) == jax.tree.structure(TREE)


def test_a_pattern_is_for_the_whole_path():
    with pytest.raises(ValueError, match=r"kernel.*matches no parameter.*plugin, mask_decoder"):
        split(TREE, ["kernel"])
    with pytest.raises(ValueError, match=r"'plugin/\('.*is no regular expression"):
        split(TREE, ["plugin/("])
