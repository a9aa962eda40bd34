"""A small finished training run for the tests of a file."""

import pytest

from tests.reference import small
from tests.reference.runs import STEPS, train
from train.presets import TrainConfig


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small.save_nano(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def config(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("work")
    return TrainConfig(
        model=str(base),
        image_size=small.SIZE,
        data_dir=(small.save_pairs(folder / "pairs", 10),),
        output=folder / "unbroken",
        steps=STEPS,
        batch_size=2,
        prompts_per_picture=2,
        scale_range=(0.8, 1.2),
        cache=folder / "cache",
        held_out=2,
        eval_prompts=2,
    )


@pytest.fixture(scope="module")
def unbroken(config):
    """The folder of a finished run, and what it printed."""
    printed = train(config)
    return config.output, printed
