"""The cache of features: what is marked done is whole, and nothing stale, cut short or of another encoder is read."""

import collections
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesam_jax.data import embeddings
from stablesam_jax.data.collage import ASSETS
from stablesam_jax.data.embeddings import FeatureCache
from stablesam_jax.data.pipeline import ViewConfig, Views
from stablesam_jax.data.readers import PairsFolder, Selection
from stablesam_jax.errors import InputError

SIZE = 32
FACTOR = jnp.float32(1 / 7)  # float16 must round


@jax.jit
def encode(pictures):
    cells = pictures.astype(jnp.float32).reshape(-1, 4, SIZE // 4, 4, SIZE // 4, 3).mean(axis=(2, 4))
    return {"grid": cells * FACTOR, "early": [cells.mean(axis=(1, 2))]}


@pytest.fixture(scope="module")
def views():
    pictures = Selection(PairsFolder(ASSETS), [1, 3, 4])
    return Views(pictures, ViewConfig(size=SIZE, scale_range=(0.8, 1.2), views=3, seed=0))  # 9 views


def open_cache(folder, views, encoder="a"):
    return FeatureCache(folder, views, identity={"encoder": encoder}, encode=encode)


def filled(folder, views, batch_size=4):
    cache = open_cache(folder, views)
    collections.deque(cache.fill(batch_size), maxlen=0)
    return cache


def expected(views, indices):
    return encode(np.stack([views[int(index)][0] for index in indices]))


def assert_whole(cache, views):
    every = np.arange(len(views))
    assert cache.done.all()
    for kept, leaf in zip(jax.tree.leaves(cache[every]), jax.tree.leaves(expected(views, every)), strict=True):
        assert np.array_equal(kept, np.asarray(leaf).astype(np.float16).astype(np.float32))


def test_features_are_those_of_the_encoder_rounded_to_float16(tmp_path, views):
    cache = filled(tmp_path, views)
    assert_whole(cache, views)
    indices = np.array([7, 0, 7, 4])
    features, wanted = cache[indices], expected(views, indices)
    assert features["grid"].shape == (4, 4, 4, 3)
    assert features["early"][0].shape == (4, 3)
    for kept, leaf in zip(jax.tree.leaves(features), jax.tree.leaves(wanted), strict=True):
        assert kept.dtype == np.float32
        assert type(kept) is np.ndarray
        assert kept == pytest.approx(np.asarray(leaf), rel=2**-11)
        assert not np.array_equal(kept, leaf)


@pytest.mark.parametrize("batch_size", [1, 4, 9, 20])
def test_filling_counts_up_to_the_last_partial_batch(tmp_path, views, batch_size):
    cache = open_cache(tmp_path, views)
    counts = list(cache.fill(batch_size))
    assert counts == [min(done, 9) for done in range(batch_size, 9 + batch_size, batch_size)]
    assert_whole(cache, views)


def test_the_encoder_sees_one_shape_only(tmp_path, views):
    shapes = set()

    def watched(pictures):
        shapes.add(pictures.shape)
        return encode(pictures)

    cache = FeatureCache(tmp_path, views, identity={}, encode=watched)
    shapes.clear()
    collections.deque(cache.fill(4), maxlen=0)
    assert shapes == {(4, SIZE, SIZE, 3)}


def test_filling_that_was_stopped_goes_on_where_it_stopped(tmp_path, views):
    stopped = open_cache(tmp_path, views).fill(2)
    assert [next(stopped), next(stopped)] == [2, 4]
    stopped.close()
    cache = open_cache(tmp_path, views)
    assert cache.done.tolist() == [True] * 4 + [False] * 5
    for kept, leaf in zip(
        jax.tree.leaves(cache[np.arange(4)]), jax.tree.leaves(expected(views, range(4))), strict=True
    ):
        assert kept == pytest.approx(np.asarray(leaf), rel=2**-11)
    assert list(cache.fill(2)) == [6, 8, 9]
    assert_whole(cache, views)


def test_a_view_is_marked_only_after_its_features_are_written(tmp_path, views):
    cache = open_cache(tmp_path, views)
    last = cache.arrays[-1]

    class Full:
        """A disk that fails at the last leaf of the second batch."""

        def __setitem__(self, chosen, values):
            if 2 in chosen:
                raise OSError("no space left on device")
            last[chosen] = values

        def flush(self):
            last.flush()

    cache.arrays[-1] = Full()
    with pytest.raises(OSError, match="no space"):
        list(cache.fill(2))
    again = open_cache(tmp_path, views)
    assert again.done.tolist() == [True] * 2 + [False] * 7
    collections.deque(again.fill(2), maxlen=0)
    assert_whole(again, views)


def test_a_full_cache_encodes_nothing(tmp_path, views):
    filled(tmp_path, views)

    def never(pictures):
        assert isinstance(pictures, jax.core.Tracer)  # shapes may be asked for, values not
        return encode(pictures)

    cache = FeatureCache(tmp_path, views, identity={"encoder": "a"}, encode=never)
    assert list(cache.fill(4)) == []
    assert_whole(cache, views)


def test_views_that_are_not_encoded_are_not_read_as_zeros(tmp_path, views):
    cache = open_cache(tmp_path, views)
    next(cache.fill(2))
    assert cache[np.array([0, 1])]["grid"].any()
    with pytest.raises(ValueError, match=r"some of the views \[1 2\] are not encoded"):
        cache[np.array([1, 2])]


def test_another_identity_is_another_folder(tmp_path, views):
    first, second = filled(tmp_path, views), open_cache(tmp_path, views, encoder="b")
    assert first.folder != second.folder
    assert not second.done.any()
    assert_whole(open_cache(tmp_path, views), views)


def test_the_order_of_an_identitys_entries_does_not_matter(tmp_path, views):
    folders = [
        FeatureCache(tmp_path, views, identity=identity, encode=encode).folder
        for identity in (
            {"encoder": "a", "views": {"seed": 0, "views": 3}},
            {"views": {"views": 3, "seed": 0}, "encoder": "a"},
        )
    ]
    assert folders[0] == folders[1]


def cut(path):
    path.write_bytes(path.read_bytes()[:-6])


def spoil_header(path):
    path.write_bytes(b"\x00" * 128 + path.read_bytes()[128:])


def reshape(path):
    np.save(path, np.zeros(5, np.load(path).dtype))


def retype(path):
    np.save(path, np.load(path).astype(np.float32))


DAMAGES = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": cut,
    "header": spoil_header,
    "text": lambda path: path.write_text("features"),
    "other shape": reshape,
    "other type": retype,
}


@pytest.mark.parametrize("name", ["done.npy", "features_0.npy", "features_1.npy"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_anew_with_all_that_depends_on_it(tmp_path, views, name, damage):
    path = filled(tmp_path, views).folder / name
    DAMAGES[damage](path)
    cache = open_cache(tmp_path, views)
    assert not cache.done.any()
    collections.deque(cache.fill(4), maxlen=0)
    assert_whole(cache, views)


def test_more_views_do_not_fit_the_files_of_fewer(tmp_path, views):
    filled(tmp_path, views)
    more = Views(views.pictures, ViewConfig(size=SIZE, scale_range=(0.8, 1.2), views=4, seed=0))
    cache = open_cache(tmp_path, more)  # an identity that forgets to say how many
    assert cache.done.shape == (12,)
    assert not cache.done.any()


def test_a_disk_without_room_is_refused_before_anything_is_encoded(tmp_path, views, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=100))
    with pytest.raises(InputError) as caught:
        open_cache(tmp_path, views)
    assert str(caught.value).startswith(
        f"{tmp_path}: the features of 9 views need 0.0 GiB more, 0.0 GiB are free; make"
    )
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_full_disk_does_not_keep_a_full_cache_from_being_read(tmp_path, views, monkeypatch, compressed):
    filled(tmp_path, views)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=0))
    if compressed:  # the disk holds fewer blocks than the files have bytes
        monkeypatch.setattr(embeddings._Array, "missing_bytes", lambda array: 1)
    assert_whole(open_cache(tmp_path, views), views)
