"""Every preset can be started: its patterns, prompts and numbers fit the model that it names."""

import dataclasses

import pytest

from stablesam_jax import params
from tests.reference import small
from train import main
from train.presets import PRESETS, TrainConfig

ALL = sorted(PRESETS)
MODULES = ["image_encoder", "prompt_encoder", "mask_decoder", "plugin"]


def trained_by(name):
    config = PRESETS[name][1]
    sam, tree = small.nano() if config.plugin is None else small.stable_nano()
    return sam, params.split(tree, config.trainable)[0]


@pytest.mark.parametrize("name", ALL)
def test_a_preset_passes_its_own_checks(name):
    config = PRESETS[name][1]
    main.check_numbers(config)
    assert sum(main.parse_kinds(config.prompts).values()) > 0
    sam, trained = trained_by(name)
    assert main.check_trainable(config, sam, trained) == (name == "pretrain-nano")


@pytest.mark.parametrize(
    ("name", "count", "modules"),
    [
        ("quickstart", 81_829, ["plugin"]),
        ("stable-sam", 81_829, ["plugin"]),
        ("pt-sam", 140_064 + 3 * 256, ["mask_decoder"]),  # the paper's, and the three mask tokens that share its array
        ("pretrain-nano", 743_168 + 6_476 + 4_058_340, MODULES[:3]),  # neck, prompt encoder, decoder
    ],
)
def test_a_preset_trains_what_it_says(name, count, modules):
    _, trained = trained_by(name)
    assert params.count(trained) == count
    assert sorted(trained) == sorted(modules)


def test_the_papers_recipe_is_that_of_section_9():
    config = PRESETS["stable-sam"][1]
    assert (config.epochs, config.steps, config.learning_rate, config.schedule) == (1, None, 1e-3, "constant")
    assert config.batch_size * config.prompts_per_picture == 32
    assert main.parse_kinds(config.prompts) == {"gt-box": 1, "noisy-box": 1, "points": 1, "coarse-mask": 1}
    assert config.scale_range == (0.1, 2.0)


def test_the_base_is_trained_with_good_prompts_alone():
    kinds = main.parse_kinds(PRESETS["pretrain-nano"][1].prompts)
    assert not kinds.keys() & {"noisy-box", "coarse-mask"}


def test_presets_do_not_share_a_folder():
    outputs = [config.output for _, config in PRESETS.values()]
    assert len(set(outputs)) == len(outputs)


def test_the_first_preset_is_the_one_that_is_taken_without_a_name():
    assert next(iter(PRESETS)) == "quickstart"


def test_every_preset_says_in_one_line_what_it_is():
    for purpose, _ in PRESETS.values():
        assert purpose
        assert "\n" not in purpose


def test_a_configuration_does_not_change_and_is_given_by_name():
    config = TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    with pytest.raises(TypeError):
        TrainConfig("sam_nano")


@pytest.mark.parametrize("steps", [1, 2, 49, 120])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_learning_rate_stays_positive_below_its_peak_whatever_the_number_of_steps(schedule, steps):
    rate = main.learning_rate(TrainConfig(schedule=schedule, learning_rate=0.5), steps)
    rates = [float(rate(step)) for step in range(steps)]
    assert max(rates) <= 0.5
    assert min(rates[1:], default=1) > 0
    assert schedule == "cosine" or set(rates) == {0.5}
