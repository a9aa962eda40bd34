"""`alpha` says how well tokens, signals and alpha tell true from sloppy boxes, of pictures that are new to readers."""

import csv
import json

import numpy as np
import pytest

from eval.loop import Protocol
from eval.protocols import systems
from eval.protocols.alpha import KINDS, AlphaConfig, TokenReader, alpha, auc, begin, cross_read, fit, summarise
from stablesam_jax.data.readers import LabelledPicture
from stablesam_jax.prompts import Prompt
from tests.reference import small
from tests.reference.pictures import ramp
from tests.reference.tiers import slow

TARGET = np.zeros((40, 64), bool)
TARGET[5:30, 10:50] = True
LABELLED = LabelledPicture("set/a", ramp(40, 64), TARGET[None], (1,))


def test_the_area_is_the_probability_of_the_right_order():
    assert auc(np.array([3.0, 2, 1]), np.array([True, True, False])) == 1
    assert auc(np.array([1.0, 2, 3]), np.array([True, True, False])) == 0
    assert auc(np.array([1.0, 1, 1]), np.array([True, True, False])) == 0.5
    assert np.isnan(auc(np.array([1.0, 2]), np.array([True, True])))


def test_a_reader_finds_what_is_there_and_nothing_where_there_is_nothing():
    rng = np.random.default_rng(0)
    true = rng.uniform(size=600) < 0.3
    inputs = rng.normal(size=(600, 50))
    fold = np.arange(600) % 5
    assert cross_read(inputs, true, fold) == pytest.approx(0.5, abs=0.07)
    inputs[:, 7] += 2 * true
    assert cross_read(inputs, true, fold) > 0.85


def test_what_is_alike_within_a_group_alone_is_not_read():
    """Each group has a constant of its own, and groups have mostly true or mostly sloppy boxes."""
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(40), 10)
    true = rng.uniform(size=400) < rng.choice([0.2, 0.8], 40)[group]
    inputs = rng.normal(size=(40, 30))[group]
    within = cross_read(inputs, true, np.arange(400) % 5)
    between = cross_read(inputs, true, group % 5)
    assert within > 0.7
    assert between < 0.65


def test_fit_compares_the_box_that_was_asked_with_and_the_mask():
    low_res = np.where(TARGET, 1.0, -1.0).astype(np.float32)
    assert fit(low_res, Prompt(box=np.array([10, 5, 49, 29], np.float32)), (40, 64)) == pytest.approx(1)
    assert fit(low_res, Prompt(box=np.array([10, 5, 49, 17], np.float32)), (40, 64)) == pytest.approx(0.5)
    assert fit(-np.ones_like(low_res), Prompt(box=np.array([10, 5, 49, 17], np.float32)), (40, 64)) == 0


@pytest.mark.parametrize("plugin", [True, *slow(False)])
def test_tokens_are_those_that_the_plugin_sees(plugin):
    reader = TokenReader(*(small.stable_nano() if plugin else small.nano()))
    record = begin(reader, LABELLED, Protocol(kinds=KINDS, prompts=3))()
    assert [box["true"] for box in record["boxes"]] == [True, False, False, False]
    for box in record["boxes"]:
        assert list(box["signals"]) == ["fit", "predicted IoU", "alpha 0", "alpha 1", "alpha 2"]
        shown = [place for place in range(3) if box["signals"][f"alpha {place}"] is not None]
        assert shown == ([0, 2] if plugin else [])
        assert np.shape(box["tokens"]) == (3, 5 * 256)
    first, *others = (np.array(box["tokens"]).reshape(3, 5, 256) for box in record["boxes"])
    for other in others:  # the prompt is in the tokens after the first self-attention
        assert not np.allclose(first, other, atol=1e-4)
    if plugin:  # of a fresh router
        assert {round(box["signals"]["alpha 0"], 3) for box in record["boxes"]} == {0.5}


@pytest.mark.slow
def test_of_hq_sam_t_o_is_its_own_token():
    record = begin(TokenReader(*small.system(hq=True, plugin=None)), LABELLED, Protocol(kinds=KINDS, prompts=1))()
    assert record["t_o"] == 5
    assert np.shape(record["boxes"][0]["tokens"]) == (3, 6 * 256)


def test_a_summary_has_every_signal_and_every_reader():
    rng = np.random.default_rng(0)
    records = [
        {
            "t_o": 1,
            "boxes": [
                {
                    "object": 0,
                    "true": number == 0,
                    "signals": {"fit": 0.9 if number == 0 else 0.4},
                    "tokens": rng.normal(size=(3, 5 * 8)).tolist(),
                }
                for number in range(3)
            ],
        }
        for _ in range(12)
    ]
    summary = summarise(records, [str(index // 2) for index in range(12)])
    assert summary["fit"] == {"auc": 1, "true": pytest.approx(0.9), "sloppy": pytest.approx(0.4)}
    names = [f"{name} {place}" for place in range(3) for name in ("t_o", "t_o and IoU token", "five tokens")]
    assert list(summary) == ["fit", *names]
    assert all(0 <= summary[name]["auc"] <= 1 and np.isnan(summary[name]["true"]) for name in names)


@pytest.mark.slow
def test_the_command_writes_a_table_and_a_line_for_each_box(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "load_model", small.by_name)
    folder = small.save_pairs(tmp_path / "horses", 6)
    with small.quick_compilation():
        alpha(AlphaConfig(system=("base", "base+plugin"), data_dir=(folder,), output=tmp_path / "out", count=2))
    stored = json.loads((tmp_path / "out" / "results.json").read_text())["systems"]
    assert stored["base+plugin"]["horses"]["alpha 0"]["sloppy"] == pytest.approx(0.5, abs=0.01)
    assert stored["base"]["horses"]["alpha 0"]["sloppy"] is None
    with open(tmp_path / "out" / "per_object.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 6 * 3
