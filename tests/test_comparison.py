"""What training has changed, on the same prompts before and after."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from eval.loop import Protocol
from stablesam_jax.data.readers import LabelledPicture
from train import comparison

PROTOCOL = Protocol(prompts=3, seed=1)
TARGET = np.zeros((30, 40), bool)
TARGET[5:20, 10:30] = True


class Pictures:
    """Four pictures; those of a higher number make `Wobbling` wobble more."""

    names = ("a", "b", "c", "d")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        masks = np.stack([TARGET, TARGET[::-1]])
        return LabelledPicture(self.names[index], np.full((30, 40, 3), index, np.uint8), masks)


class Steady:
    """Always the same mask."""

    def encode(self, picture):
        return picture

    def low_res_masks(self, embedding, prompts, size_hw):
        return np.stack([np.where(TARGET, 1, -1).astype(np.float32)] * len(prompts))


class Wobbling(Steady):
    """The first answer is right, the others grow with the picture's number."""

    def low_res_masks(self, embedding, prompts, size_hw):
        masks = super().low_res_masks(embedding, prompts, size_hw)
        masks[1:, :, : 5 * int(embedding[0, 0, 0])] = 1
        return masks


SYSTEMS = {"before": Wobbling(), "after": Steady()}


@pytest.fixture(scope="module")
def scores():
    return comparison.compare(SYSTEMS, Pictures(), PROTOCOL)


def test_every_system_is_scored_on_every_object_and_kind(scores):
    assert {name: len(values) for name, values in scores.items()} == {"before": 4 * 2 * 4, "after": 4 * 2 * 4}
    summaries = comparison.summaries(scores)
    assert summaries["after"]["noisy-box"]["msf"] == 1
    assert summaries["before"]["noisy-box"]["msf"] < 0.95
    assert summaries["before"]["gt-box"]["miou"] == summaries["after"]["gt-box"]["miou"]


def test_the_report_is_a_table_of_before_and_after(scores, tmp_path):
    comparison.write_report(tmp_path / "report.md", comparison.summaries(scores), "four pictures")
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[0] == "# four pictures"
    assert lines[2] == "|  | gt-box | noisy-box | 1-point | 3-points |"
    assert [line.split(" | ")[0] for line in lines[4:6]] == ["| before", "| after"]
    assert lines[-1] == "mIoU / mBIoU / mSF in percent."


def test_the_figure_shows_an_object_for_each_kind_of_prompt_each_of_another_picture(scores, tmp_path, monkeypatch):
    shown = []
    figure = comparison.wobble_figure
    monkeypatch.setattr(comparison, "wobble_figure", lambda rows: shown.extend(rows) or figure(rows))
    path = tmp_path / "figures" / "wobble.png"
    comparison.write_figure(path, SYSTEMS, scores, Pictures(), PROTOCOL)
    assert [int(row.picture[0, 0, 0]) for row in shown] == [3, 2, 1]
    assert all(list(row.masks) == ["before", "after"] for row in shown)
    assert [row.kind for row in shown] == ["noisy-box", "1-point", "3-points"]
    assert [(len(row.prompts), len(row.prompts[0].points)) for row in shown] == [(3, 0), (3, 1), (3, 3)]
    worst = min(score.msf for score in scores["before"] if score.kind == "noisy-box")
    assert shown[0].captions["before"].endswith(f"mSF {100 * worst:.0f}")
    assert [file.name for file in path.parent.iterdir()] == ["wobble.png"]
    with Image.open(path) as picture:
        assert picture.format == "PNG"


def test_the_figure_leaves_out_what_the_first_system_does_not_know(scores, tmp_path, monkeypatch):
    def missed(score):
        unknown = score.kind == "gt-box" and score.picture == Pictures().names[3]
        return dataclasses.replace(score, miou=0.5) if unknown else score

    shown = []
    figure = comparison.wobble_figure
    monkeypatch.setattr(comparison, "wobble_figure", lambda rows: shown.extend(rows) or figure(rows))
    changed = {name: [missed(score) for score in values] for name, values in scores.items()}
    comparison.write_figure(tmp_path / "wobble.png", SYSTEMS, changed, Pictures(), PROTOCOL)
    assert [int(row.picture[0, 0, 0]) for row in shown] == [2, 1, 0]
