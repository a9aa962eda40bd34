"""The cache of features: what is read is whole and of that picture and encoder, whoever else reads, writes or dies."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesam_jax.errors import InputError
from stablesam_jax.files import feature_cache, sealed_file
from stablesam_jax.files.feature_cache import EntryFolder, FeatureCache
from tests.reference import crowd

SIZE = 32
LIMIT = 2**20
PICTURES = np.random.default_rng(0).integers(0, 256, (10, SIZE, SIZE, 3), np.uint8)


@jax.jit
def encode(pictures):
    cells = pictures.astype(jnp.float32).reshape(-1, 4, SIZE // 4, 4, SIZE // 4, 3).mean(axis=(2, 4))
    return {"grid": cells * jnp.float32(1 / 7), "early": [cells.mean(axis=(1, 2))]}  # float16 must round


def open_cache(folder, encode=encode, **identity):
    return FeatureCache(folder, identity=identity, encode=encode, size=SIZE, limit=LIMIT)


@pytest.fixture
def cache(tmp_path):
    return open_cache(tmp_path)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != feature_cache.LOCK)


def never(pictures):
    assert isinstance(pictures, jax.core.Tracer)  # shapes may be asked for, values not
    return encode(pictures)


def assert_features(features, pictures):
    wanted = encode(pictures)
    assert jax.tree.structure(features) == jax.tree.structure(wanted)
    for kept, leaf in zip(jax.tree.leaves(features), jax.tree.leaves(wanted), strict=True):
        assert (kept.dtype, type(kept)) == (np.float16, np.ndarray)
        assert np.array_equal(kept, np.asarray(leaf).astype(np.float16))
        assert not np.array_equal(kept, leaf)


# features


def test_features_are_those_of_the_encoder_rounded_whether_encoded_or_read(cache):
    assert_features(cache(PICTURES[:4]), PICTURES[:4])
    assert_features(cache(PICTURES[2:7]), PICTURES[2:7])
    assert (cache.found, cache.encoded) == (2, 7)
    again = open_cache(cache.entries.folder, never)
    assert_features(again(PICTURES[:7]), PICTURES[:7])
    assert (again.found, again.encoded) == (7, 0)


def test_an_entry_is_one_sealed_file_in_a_folder_of_its_first_letters(cache):
    cache(PICTURES[:3])
    for path in files(cache.entries.folder):
        assert path.relative_to(cache.entries.folder).as_posix() == f"{path.name[:2]}/{path.name}"
        tensors, header = sealed_file.read(path, kind="", keys=("key",))
        assert header["key"] == path.stem
        assert {name: (leaf.dtype, leaf.shape) for name, leaf in tensors.items()} == {
            "grid": (np.float16, (4, 4, 3)),
            "early/0": (np.float16, (3,)),
        }


def test_the_encoder_sees_one_picture_at_a_time_so_that_no_other_moves_its_bits(tmp_path):
    seen = []

    def watched(pictures):
        seen.append(pictures.shape)
        return encode(pictures)

    cache = open_cache(tmp_path, watched)
    seen.clear()
    for count in (1, 2, 5, 10):
        assert_features(cache(PICTURES[:count]), PICTURES[:count])
    assert seen == [(1, SIZE, SIZE, 3)] * 10


def test_a_picture_that_is_twice_in_a_batch_is_encoded_once(cache):
    twice = PICTURES[[1, 0, 1, 1]]
    assert_features(cache(twice), twice)
    assert (cache.encoded, len(files(cache.entries.folder))) == (2, 2)


def test_another_pixel_or_another_encoder_is_another_entry(tmp_path):
    changed = PICTURES[:1].copy()
    changed[0, 5, 5, 1] ^= 1
    for cache in (open_cache(tmp_path, weights="a", size=1), open_cache(tmp_path, weights="b", size=1)):
        for pictures in (PICTURES[:1], changed):
            assert_features(cache(pictures), pictures)
        assert cache.encoded == 2
    assert len(files(tmp_path)) == 4
    reordered = open_cache(tmp_path, never, size=1, weights="a")
    reordered(changed)


def test_one_value_that_differs_anywhere_makes_another_entry(cache):
    changed = np.repeat(PICTURES[:1], 2 * SIZE, axis=0)
    for index in range(SIZE):  # along both diagonals: every row, every column, every channel, both parities
        changed[index, index, index, index % 3] ^= 1
        changed[SIZE + index, index, SIZE - 1 - index, index % 3] ^= 1
    assert_features(cache(PICTURES[:1]), PICTURES[:1])
    assert_features(cache(changed), changed)
    assert (cache.encoded, cache.found) == (1 + 2 * SIZE, 0)


def test_a_picture_is_known_however_it_lies_in_memory(cache):
    flipped = PICTURES[:2, :, ::-1]
    cache(np.ascontiguousarray(flipped))
    cache(flipped)
    assert (cache.found, cache.encoded) == (2, 2)


def test_numbers_beyond_float16_are_refused(tmp_path):
    cache = open_cache(tmp_path, jax.jit(lambda pictures: pictures.astype(jnp.float32) * 300))
    with pytest.raises(InputError, match="beyond float16; leave out the cache"):
        cache(PICTURES[:1])
    assert not files(tmp_path)


# damage


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def replace_by_another(path):
    shutil.copy(next(file for file in files(path.parents[1]) if file != path), path)


def rewrite(**tensors):
    def damage(path):
        path.unlink()
        sealed_file.write(path, tensors, {"key": path.stem})

    return damage


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "cut short"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-6]), "cut short"),
    "text": (lambda path: path.write_text("features"), "not a safetensors file"),
    "bit": (flip_a_bit, "damaged, its SHA-256 differs"),
    "another picture": (replace_by_another, "is a copy of the entry"),
    "other arrays": (rewrite(grid=np.zeros((4, 4, 3), np.float16)), "missing: early/0"),
    "another type": (rewrite(**{"grid": np.zeros((4, 4, 3)), "early/0": np.zeros(3, np.float16)}), "is float64"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_entry_is_said_once_and_made_anew(cache, damage, capsys):
    cache(PICTURES[:2])
    path = files(cache.entries.folder)[0]
    spoil, words = DAMAGES[damage]
    spoil(path)
    assert_features(cache(PICTURES[:2]), PICTURES[:2])
    error = capsys.readouterr().err
    assert error.startswith(f"removed, to be encoded again: {path}: ")
    assert words in error
    assert error.count("\n") == 1
    assert cache.encoded == 3
    assert_features(open_cache(cache.entries.folder, never)(PICTURES[:2]), PICTURES[:2])
    assert not capsys.readouterr().err


# the disk


def test_a_full_disk_is_said_once_and_nothing_else_is_lost(cache, capsys, monkeypatch):
    cache(PICTURES[:2])

    def fill(path, data):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", fill)
    for _ in range(2):
        assert_features(cache(PICTURES), PICTURES)
    error = capsys.readouterr().err
    assert error.startswith("features are not cached from here on: ")
    assert "cannot be written (No space left on device). Make room" in error
    assert error.count("\n") == 1
    assert cache.fault in error
    assert (cache.found, cache.encoded) == (4, 2 + 8 + 8)
    assert len(files(cache.entries.folder)) == 2


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/cache: cannot be created"):
        open_cache(tmp_path / "file" / "cache")


# the limit


def open_entries(folder, limit=100 * crowd.ENTRY_SIZE):
    return EntryFolder(folder, arrays=crowd.ARRAYS, limit=limit)


def add(entries, numbers):
    for number in numbers:
        entries.make_room(crowd.ENTRY_SIZE)
        entries.write(crowd.key(number), crowd.entry(number))


def known(entries, numbers):
    return [number for number in numbers if entries.read(crowd.key(number)) is not None]


def age(folder):
    """Makes every file a minute older."""
    for path in files(folder):
        status = path.stat()
        os.utime(path, (status.st_atime, status.st_mtime - 60))


def test_what_was_used_longest_ago_goes_first_and_reading_counts_as_use(tmp_path):
    entries = open_entries(tmp_path)
    add(entries, range(80))
    age(tmp_path)
    assert known(entries, range(10)) == list(range(10))
    add(entries, range(100, 130))
    last = open_entries(tmp_path)
    assert last.size < 100 * crowd.ENTRY_SIZE
    assert known(last, range(10)) == list(range(10))
    assert known(last, range(100, 130)) == list(range(100, 130))
    left = known(last, range(10, 80))
    assert left == list(range(80 - len(left), 80))
    assert 0 < len(left) < 70


def test_nothing_is_removed_by_reading_under_a_lower_limit(tmp_path):
    add(open_entries(tmp_path), range(50))
    lower = open_entries(tmp_path, limit=20 * crowd.ENTRY_SIZE)
    assert len(known(lower, range(50))) == 50
    add(lower, [50])
    assert len(known(lower, range(51))) <= 20


def test_the_capacity_is_kept_whatever_else_the_folder_holds(tmp_path):
    wide = jax.jit(lambda pictures: pictures / jnp.uint8(7))
    many = np.random.default_rng(1).integers(0, 256, (200, SIZE, SIZE, 3), np.uint8)
    open_cache(tmp_path, wide, name="other")(many)
    assert len(files(tmp_path)) < 200
    cache = open_cache(tmp_path, wide, name="own")
    assert cache.capacity * cache.entry_size > 0.8 * LIMIT
    many = many[: cache.capacity]
    for _ in range(2):
        cache(many)
    assert (cache.found, cache.encoded) == (cache.capacity, cache.capacity)


def test_a_limit_that_holds_next_to_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="1e-06 GiB hold too few entries; allow"):
        FeatureCache(tmp_path, identity={}, encode=encode, size=SIZE, limit=1074)


def test_what_a_dead_writer_left_is_removed_when_it_is_old(tmp_path):
    add(open_entries(tmp_path), range(3))
    old, young, foreign = (
        tmp_path / "ab" / name for name in (f".{'a' * 64}.safetensors.1.tmp", f".{'b' * 64}.safetensors.2.tmp", "notes")
    )
    old.parent.mkdir()
    for path in (old, young, foreign):
        path.write_bytes(b"x" * 1000)
    hour_ago = time.time() - feature_cache.ABANDONED - 1
    for path in (old, foreign):
        os.utime(path, (hour_ago, hour_ago))
    entries = open_entries(tmp_path)
    assert not old.exists()
    assert foreign.exists()
    assert (
        entries.size == sum(path.stat().st_size for path in files(tmp_path)) - 1000
    )  # what is not ours is not counted


# many processes


def run_crowd(folder, *, writers, kills, limit):
    command = [sys.executable, "-m", "tests.reference.crowd", str(folder), *map(str, (writers, kills, limit))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "removed" not in done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_two_writers_never_exceed_the_limit(tmp_path):
    limit = 64 * crowd.ENTRY_SIZE  # all that they write would take 150
    found = run_crowd(tmp_path, writers=2, kills=6, limit=limit)
    assert 0.6 * limit < found["largest"] <= limit
    assert found["reads"] > 20
    assert found["wrong"] == 0


@pytest.mark.slow
def test_writers_that_are_killed_leave_no_wrong_entry_and_the_folder_heals(tmp_path, capsys):
    limit = 400 * crowd.ENTRY_SIZE
    found = run_crowd(tmp_path, writers=3, kills=20, limit=limit)
    assert found["started"] == 23
    assert found["wrong"] == 0
    assert found["reads"] > 20
    hour_ago = time.time() - feature_cache.ABANDONED - 1
    for path in tmp_path.rglob("*.tmp"):
        os.utime(path, (hour_ago, hour_ago))
    entries = open_entries(tmp_path, limit)
    assert not list(tmp_path.rglob("*.tmp"))
    add(entries, range(crowd.ENTRIES))
    for number in range(crowd.ENTRIES):
        assert np.array_equal(entries.read(crowd.key(number))["features"], crowd.entry(number)["features"])
    assert not capsys.readouterr().err
