"""The cache is filled ahead: for all views that a run asks for, to be continued, and what float16 costs is measured."""

import contextlib
import dataclasses
import errno
import io
import os
import pathlib
import re
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesam_jax.data.pipeline import ViewConfig, Views
from stablesam_jax.data.readers import PairsFolder
from stablesam_jax.errors import InputError
from stablesam_jax.files.feature_cache import FeatureCache
from tests.reference import small
from train import embed as embed_module
from train import main as train_main
from train.presets import MASK_TOKEN, NECK_AND_DECODER, TrainConfig
from train.step import Measured, encoder_halves

PICTURES, VIEWS = 10, 2


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    return TrainConfig(
        model=str(small.save_nano(folder / "base")),
        image_size=small.SIZE,
        data_dir=(small.save_pairs(folder / "pairs", PICTURES),),
        output=folder / "run",
        scale_range=(0.8, 1.2),
        cache=folder / "cache",
        views=VIEWS,
        epochs=float(VIEWS),
        held_out=2,
        plugin=None,
        trainable=MASK_TOKEN,
    )


def embed(config, *, measured=False):
    """What it prints; the measurement at the end compiles a decoder."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as output,
        small.quick_compilation(),
        pytest.MonkeyPatch.context() as patch,
    ):
        if not measured:
            patch.setattr(embed_module, "rounding", lambda *_, **__: (0.0, 0))
        embed_module.embed(config)
    return output.getvalue()


@pytest.fixture(scope="module")
def filled(config):
    return embed(config, measured=True)


def entries(config):
    return list(config.cache.rglob("*.safetensors"))


@pytest.mark.slow
def test_every_view_of_every_training_picture_is_encoded_and_the_run_is_not_touched(config, filled):
    assert len(entries(config)) == (PICTURES - 2) * VIEWS
    assert not config.output.exists()
    progress, measured = filled.splitlines()
    assert re.fullmatch(r"16/16 views, 16 encoded  [\d.]+ views/s  0:00 left  0\.00 GiB on disk", progress)
    assert re.fullmatch(r"float16: \d\.\d{4} % of the mask pixels differ on 16 views with true boxes", measured)


@pytest.mark.slow
def test_the_run_itself_finds_every_view(config, filled, monkeypatch):
    seen = []

    def update(state, frozen, batch, seed):
        seen.append(batch["features"].features)
        assert "picture" not in batch
        return state, Measured(loss=jnp.zeros(2), iou=jnp.zeros(2))

    monkeypatch.setattr(train_main.parallel.PmapEngine, "run_on_all", lambda *_, **__: update)
    monkeypatch.setattr(train_main, "report", lambda *_: None)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        train_main.train(dataclasses.replace(config, batch_size=4, steps=4))
    assert "features: 16 read, 0 encoded; " in output.getvalue()
    assert [(leaf.shape, leaf.dtype) for leaf in seen] == [((2, 2, 4, 4, 256), np.float16)] * 4


@pytest.mark.slow
def test_a_run_of_one_epoch_needs_one_view_of_each_picture(config, filled):
    assert "8/8 views, 0 encoded" in embed(dataclasses.replace(config, epochs=1.0, batch_size=3))


@pytest.mark.slow
def test_what_trains_the_neck_has_entries_of_its_own(config, filled, tmp_path):
    pretraining = dataclasses.replace(config, cache=tmp_path, views=1, objective="pretrain", trainable=NECK_AND_DECODER)
    assert "8/8 views, 8 encoded" in embed(pretraining)
    assert not {path.name for path in entries(pretraining)} & {path.name for path in entries(config)}


@pytest.mark.slow
def test_it_stops_when_asked_and_continues(config, tmp_path, monkeypatch):
    stopped = dataclasses.replace(config, cache=tmp_path, views=2 * VIEWS, epochs=2.0 * VIEWS)
    call = FeatureCache.__call__

    def call_and_stop(self, pictures):
        os.kill(os.getpid(), signal.SIGINT)
        return call(self, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureCache, "__call__", call_and_stop)
        assert embed(stopped) == "stopped after 16 views; the same command continues\n"
    assert len(entries(stopped)) == 16
    encoded = re.match(r"32/32 views, (\d+) encoded", embed(stopped))
    assert encoded is not None
    assert 0 < int(encoded[1]) == len(entries(stopped)) - 16  # at most 16: equal views are one entry


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cache": None}, "--cache: name the folder to fill"),
        ({"cache_limit": 1e-3}, r"--cache-limit 0\.001: holds \d+ views for certain, of 16,000 that take 0\.137 GiB"),
        ({"steps": 0}, "--steps 0: must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(config, change, words, tmp_path):
    with pytest.raises(InputError, match=words):
        embed(dataclasses.replace(config, **({"cache": tmp_path / "cache", "views": 2000, "epochs": 2000.0} | change)))


@pytest.mark.slow
def test_a_full_disk_ends_it_with_one_line_and_status_1(config, tmp_path, monkeypatch, capsys):
    def fill(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", fill)
    monkeypatch.setattr(sys, "argv", ["train.embed"])
    monkeypatch.setattr(embed_module, "parse_run", lambda *_: dataclasses.replace(config, cache=tmp_path))
    with pytest.raises(SystemExit) as end, small.quick_compilation():
        embed_module.main()
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"features are not cached from here on: .*cannot be written \(No space left on device\)\. Make room.*\n", error
    )


# what float16 costs


@dataclasses.dataclass
class Fake:
    """A cache that returns the encoder's features, rounded to multiples of `step`."""

    encode: object
    step: float

    def __call__(self, pictures):
        return jax.tree.map(
            lambda leaf: np.round(np.asarray(leaf) / self.step) * np.float32(self.step), self.encode(pictures)
        )


@pytest.mark.slow
def test_only_pixels_that_rounding_changes_are_counted(tmp_path):
    sam, tree = small.nano()
    freeze, _ = encoder_halves(sam, neck_trains=False)
    encode = jax.jit(lambda pictures: freeze(tree, pictures))
    views = Views(
        PairsFolder(small.save_pairs(tmp_path / "pairs", 5)),
        ViewConfig(size=small.SIZE, scale_range=(0.8, 1.2), views=1, seed=0),
    )
    with small.quick_compilation():
        shares = [
            embed_module.rounding(Fake(encode, step), sam, tree, views, neck_trains=False) for step in (2**-30, 0.5, 8)
        ]
    assert [count for _, count in shares] == [5, 5, 5]
    assert shares[0][0] == 0 < shares[1][0] < shares[2][0] < 1
