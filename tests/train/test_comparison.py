"""Systems before and after training are compared on the same prompts."""

import dataclasses

import numpy as np
import pytest

from eval.loop import Predictions, Protocol, evaluate
from stablesam_jax.data.readers import LabelledPicture
from stablesam_jax.visualize import pixels
from train import comparison

PROTOCOL = Protocol(prompts=3, seed=1)
TARGET = np.zeros((30, 40), bool)
TARGET[5:20, 10:30] = True


class Pictures:
    """Four pictures; `Wobbling` is less stable on those of a higher index."""

    names = ("a", "b", "c", "d")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        masks = np.stack([TARGET, TARGET[::-1]])
        return LabelledPicture(self.names[index], np.full((30, 40, 3), index, np.uint8), masks)


class Steady:
    """Predicts the target for every prompt."""

    def encode(self, picture):
        return picture

    def low_res_masks(self, embedding, prompts, size_hw):
        return np.stack([np.where(TARGET, 1, -1).astype(np.float32)] * len(prompts))

    def predict(self, embedding, prompts, size_hw):
        return Predictions(self.low_res_masks(embedding, prompts, size_hw), np.ones(len(prompts), np.float32), None)


class Wobbling(Steady):
    """The first mask is the target, the others grow with the picture's index."""

    def low_res_masks(self, embedding, prompts, size_hw):
        masks = super().low_res_masks(embedding, prompts, size_hw)
        masks[1:, :, : 5 * int(embedding[0, 0, 0])] = 1
        return masks


SYSTEMS = {"before": Wobbling(), "after": Steady()}


@pytest.fixture(scope="module")
def scores():
    return {
        name: [score for of_picture in evaluate(system, Pictures(), PROTOCOL) for score in of_picture]
        for name, system in SYSTEMS.items()
    }


def test_both_systems_are_scored_on_the_same_prompts_and_the_first_one_once():
    class Counting(Wobbling):
        calls = 0

        def low_res_masks(self, embedding, prompts, size_hw):
            self.calls += 1
            return super().low_res_masks(embedding, prompts, size_hw)

    before = Counting()
    compare = comparison.Comparison(before, Pictures(), PROTOCOL)
    rows, figure = compare(Steady())
    assert rows["after"]["noisy-box"]["msf"] == 1
    assert rows["before"]["noisy-box"]["msf"] < 0.95
    assert rows["before"]["gt-box"]["miou"] == rows["after"]["gt-box"]["miou"]
    assert pixels(figure).shape[2] == 3
    calls = before.calls
    assert calls == 4 * 2 * 4 + 3  # every object and kind, and the rows of the figure
    again, _ = compare(before)
    assert again["before"] == again["after"] == rows["before"]
    assert before.calls == 2 * calls + 3


def test_a_remembering_segmenter_encodes_a_picture_once(monkeypatch):
    encoded = []
    monkeypatch.setattr(
        comparison.Segmenter, "encode", lambda self, picture: encoded.append(picture) or np.full(1, len(encoded))
    )
    monkeypatch.setattr(comparison.Segmenter, "__init__", lambda self, sam, params: None)
    monkeypatch.setattr(comparison, "REMEMBERED", 16)  # bytes of two
    known = {}
    first, second = (comparison.RememberingSegmenter(None, None, known) for _ in range(2))
    pictures = [np.full((4, 4, 3), value, np.uint8) for value in range(3)]
    assert [first.encode(picture) for picture in pictures] == [1, 2, 3]
    assert [second.encode(picture.copy()) for picture in pictures] == [1, 2, 4]  # the third was one too many


def test_the_figure_shows_an_object_for_each_kind_of_prompt_each_of_another_picture(scores, monkeypatch):
    shown = []
    figure = comparison.wobble_figure
    monkeypatch.setattr(comparison, "wobble_figure", lambda rows: shown.extend(rows) or figure(rows))
    comparison.wobble(SYSTEMS, scores, Pictures(), PROTOCOL)
    assert [int(row.picture[0, 0, 0]) for row in shown] == [3, 2, 1]
    assert all(list(row.masks) == ["before", "after"] for row in shown)
    assert [row.kind for row in shown] == ["noisy-box", "1-point", "3-points"]
    assert [(len(row.prompts), len(row.prompts[0].points)) for row in shown] == [(3, 0), (3, 1), (3, 3)]
    worst = min(score.msf for score in scores["before"] if score.kind == "noisy-box")
    assert shown[0].captions["before"].endswith(f"mSF {100 * worst:.0f}")


def test_the_figure_leaves_out_what_the_first_system_does_not_know(scores, monkeypatch):
    def missed(score):
        unknown = score.kind == "gt-box" and score.picture == Pictures().names[3]
        return dataclasses.replace(score, miou=0.5) if unknown else score

    shown = []
    figure = comparison.wobble_figure
    monkeypatch.setattr(comparison, "wobble_figure", lambda rows: shown.extend(rows) or figure(rows))
    changed = {name: [missed(score) for score in values] for name, values in scores.items()}
    comparison.wobble(SYSTEMS, changed, Pictures(), PROTOCOL)
    assert [int(row.picture[0, 0, 0]) for row in shown] == [2, 1, 0]
