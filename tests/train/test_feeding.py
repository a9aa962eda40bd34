"""Batches are made ahead in order, errors come at their place, a cache that is too small serves what it has."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesam_jax.data.pipeline import BatchConfig, ViewConfig, Views, batches
from stablesam_jax.data.readers import PairsFolder
from stablesam_jax.errors import InputError
from stablesam_jax.files.feature_cache import FEWEST_ENTRIES, FeatureCache
from tests.reference import small
from train.feeding import ahead, feed, kept_in_cache

SIZE = 16


def test_items_come_in_order_and_few_are_made_in_advance():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    stream = ahead(items(), depth=2)
    assert [next(stream) for _ in range(5)] == list(range(5))
    time.sleep(0.2)
    assert len(made) <= 5 + 2 + 1
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "feeding"]


def test_an_error_is_raised_where_its_item_would_have_been():
    def items():
        yield 1
        raise InputError("the picture is gone.")

    stream = ahead(items())
    assert next(stream) == 1
    with pytest.raises(InputError, match="the picture is gone"):
        next(stream)


def test_all_items_come_before_the_end():
    assert list(ahead(iter(range(7)), depth=3)) == list(range(7))
    assert list(ahead(iter(()))) == []


@pytest.fixture
def views(tmp_path):
    pictures = PairsFolder(small.save_pairs(tmp_path / "pairs", 40))
    return Views(pictures, ViewConfig(size=SIZE, scale_range=(0.8, 1.2), views=3, seed=0))


def test_the_first_views_of_all_pictures_are_kept_then_the_second(views):
    of_first, of_second = (np.arange(40) * 3 + view for view in (0, 1))
    assert kept_in_cache(of_first, views, 50).all()
    assert kept_in_cache(of_second, views, 50).tolist() == [True] * 10 + [False] * 30
    assert not kept_in_cache(of_second, views, 40).any()


@jax.jit
def encode(pictures):
    return {"grid": pictures.astype(jnp.float32).reshape(-1, 4, SIZE // 4, 4, SIZE // 4, 3).mean(axis=(2, 4))}


def test_a_cache_for_half_of_the_views_serves_them_in_every_pass(views, tmp_path):
    cache = FeatureCache(tmp_path / "cache", identity={}, encode=encode, size=SIZE, limit=90 * (2 * 4 * 4 * 3 + 1024))
    assert FEWEST_ENTRIES < cache.capacity < len(views)
    config = BatchConfig(pictures=8, prompts_per_picture=1, kinds={"gt-box": 1.0}, mask_size=8, seed=0)
    stream = batches(views, config)
    turns = len(views) // 8  # a pass over all views, three epochs
    first = [next(stream) for _ in range(turns)]
    fed = feed(iter([dict(batch) for batch in first]), views, cache, lambda batch: batch)
    wanted = [np.asarray(encode(batch["picture"])["grid"]).astype(np.float16) for batch in first]
    assert all(np.array_equal(batch["features"]["grid"], grid) for batch, grid in zip(fed, wanted, strict=True))
    different = {
        picture.tobytes() for batch in first for picture in batch["picture"]
    }  # of so few pixels some are equal
    assert cache.encoded == len(different)
    before = cache.found
    again = feed(iter(first), views, cache, lambda batch: batch)
    assert sum(len(batch["targets"]) for batch in again) == len(views)
    assert cache.found - before >= cache.capacity  # least recently used entries would never be found again
