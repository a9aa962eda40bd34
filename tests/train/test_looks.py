"""Evaluations on the way: when they are due, which step they choose, when they end a run."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from train import looks
from train.console import Console
from train.presets import TrainConfig
from train.run import Run

SCORES = {10: 0.5, 20: 0.7, 30: 0.6, 40: 0.7, 45: 0.1}
STEPS = 45


class Scripted:
    """In the place of `Comparison`: a segmenter is the parameters of a step, and the step decides the score."""

    def __init__(self, before, pictures, protocol):
        self.pictures = pictures

    def __call__(self, now):
        score = SCORES[int(now["step"])]
        kinds = {kind: {"miou": score + more, "msf": 1.0} for kind, more in (("gt-box", 0.1), ("1-point", -0.1))}
        return {"before": {kind: {"miou": 0.5, "msf": 1.0} for kind in kinds}, "after": kinds}, Figure()


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Options -> a run's evaluations."""
    monkeypatch.setattr(looks, "Comparison", Scripted)
    runs = []

    def make(pictures=(1, 2), **options):
        config = TrainConfig(output=tmp_path / "run", eval_every=10, **options)
        runs.append(Run(config, {}))
        return looks.Looks(
            config, runs[-1], Console(), before=None, segmenter=lambda trained: trained, pictures=pictures, steps=STEPS
        )

    yield make
    for run in runs:
        run.close()


def after(step):
    return {"step": np.float32(step)}


def records(looks):
    return [json.loads(line)["step"] for line in (looks.run.folder / "metrics.jsonl").read_text().splitlines()]


def test_evaluations_are_due_at_their_steps_and_at_the_last_one_where_the_best_is_chosen(make):
    last, best = make(), make(keep="best")
    assert [step for step in range(STEPS + 1) if last.due(step)] == [10, 20, 30, 40]
    assert [step for step in range(STEPS + 1) if best.due(step)] == [10, 20, 30, 40, 45]
    assert not any(make(pictures=()).due(step) for step in range(STEPS + 1))


def test_the_result_is_the_last_step_unless_the_best_is_wanted(make, capsys):
    for options, step, chosen in (
        ({}, 45, {}),
        ({"keep": "best"}, 20, {"best_step": 20, "best_score": 0.7, "last_step": 45}),
    ):
        some = make(**options, fresh=True)
        for number in filter(some.due, range(STEPS + 1)):
            some(number, after(number))
        result, found = some.result(after(45), 45)
        assert (int(result["step"]), found) == (step, pytest.approx(chosen))
    messages = [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()]
    assert messages[0] == "step 10, 2 held-out pictures, mIoU: gt-box 60.0 (+10.0), 1-point 40.0 (-10.0)"
    assert messages[-2].endswith("; mean 10.0, best 70.0 at step 20")
    assert messages[-1] == "the result is step 20 of 45, best in mean mIoU of the held-out pictures: 70.0 %"


def test_a_run_ends_after_so_many_evaluations_that_are_not_better(make):
    ended = []
    for patience in (2, 1):
        some = make(keep="best", patience=patience, fresh=True)
        for step in filter(some.due, range(STEPS + 1)):
            some(step, after(step))
            if some.over(step):
                ended.append(step)
                break
    assert ended == [40, 30]
    assert some.over(35)
    assert not some.over(29)


def test_an_evaluation_that_a_stop_prevented_is_made_when_the_run_is_continued_and_only_then(make):
    first = make(keep="best")
    for step in (10, 20):
        first(step, after(step))
    for _ in range(2):
        again = make(keep="best")
        again.resume(30, after(30))  # saved and stopped at step 30
        assert (again.best.step, records(again)) == (20, [10, 20, 30])
    again.resume(35, after(35))
    assert records(again) == [10, 20, 30]


def test_only_what_decides_the_result_is_compared_when_a_run_is_continued(make):
    assert "eval_every" not in make().run.settings
    assert make(keep="best").run.settings["eval_every"] == 10
