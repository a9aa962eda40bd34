"""Every preset can be started, and trains as many parameters as the paper prints."""

import dataclasses
import functools
import json

import pytest

from stablesam_jax import params
from stablesam_jax.build import assemble, shapes
from stablesam_jax.config import MODELS
from tests.reference import small
from train import setup
from train.presets import HQ_SAM_PROMPTS, PRESETS, ROBUST_PROMPTS, TrainConfig

ALL = sorted(PRESETS)
BASES = ("sam_vit_b", "sam_vit_l", "sam_vit_h", "mobile_sam", "sam_nano")


def cases(names, base=lambda name: name):
    """Those of large bases, which take seconds to trace, are of the slow tier."""
    return [pytest.param(name, marks=[] if base(name) == "sam_nano" else [pytest.mark.slow]) for name in names]


@functools.cache
def tree_of(base, hq, plugin):
    """Shapes of a system; those of a plugin are the same on every base, so that it is traced on the smallest one."""
    if plugin is None:
        return shapes(assemble(dataclasses.replace(MODELS[base], hq=hq)))
    stable = shapes(assemble(dataclasses.replace(small.CONFIG, plugin=plugin)))
    return tree_of(base, hq, None) | {"plugin": stable["plugin"]}


def trained_by(name, base="sam_nano"):
    config = PRESETS[name][1]
    return params.split(tree_of(base, config.hq, config.plugin), config.trainable)[0]


@pytest.mark.parametrize("base", cases(BASES))
def test_a_stable_model_is_its_base_with_the_same_plugin(base):
    plugin = PRESETS["stable-sam"][1].plugin
    assert shapes(assemble(MODELS[f"stable_{base}"])) == tree_of(base, False, plugin)


@pytest.mark.parametrize("name", ALL)
def test_a_preset_passes_its_own_checks(name):
    config = PRESETS[name][1]
    setup.check_numbers(config)
    assert sum(setup.parse_kinds(config.prompts).values()) > 0
    sam = assemble(dataclasses.replace(small.CONFIG, hq=config.hq, plugin=config.plugin))
    trained, frozen = params.split(tree_of("sam_nano", config.hq, config.plugin), config.trainable)
    at_random = setup.frozen_at_random(tree_of("sam_nano", False, None), frozen)
    assert setup.check_trainable(config, sam, trained, at_random) == (name == "pretrain-nano")


# What trains, in parameters.
DSP = 65_792 + 6_656 + 512 + 514  # first convolution, depthwise one, norm, last convolution
DRP = 8_224 + 64 + 66 + 1  # hidden layer, norm, logits, scale
MASK_TOKENS = 4 * 256  # one array; the paper's PT-SAM has one of them, and 768 parameters less
MASK_MLP = 139_808
DECODER = 4_058_340
HQ = dict(zip(BASES, (1_071_104, 1_333_248, 1_595_392, 448_512, 448_512), strict=True))
CBAM = 7 * 7 * 2 + 1  # kernel, bias
COORDINATE = 2_056 + 16 + 2 * 2_304  # shared layer of 8 hidden units, norm, rows and columns
COUNTS = {
    "stable-sam": DSP + DRP,
    "dsp": DSP,
    "dsp-rts": DSP,
    "spatial-cbam": CBAM + DRP,
    "spatial-coordinate": COORDINATE + DRP,
    "linear": 2 * (4 * 256 * 40 + 256),  # attentions: two maps of rank 40, and a bias
    "pt-sam": MASK_TOKENS + MASK_MLP,
    "stable-pt-sam": DSP + DRP + MASK_TOKENS + MASK_MLP,
    "dt-sam": DECODER,
    "finetune-decoder": DSP + DRP + DECODER,
    "hq-sam": HQ,
    "stable-hq-sam": {base: DSP + DRP + count for base, count in HQ.items()},
}


@pytest.mark.parametrize("base", cases(BASES))
@pytest.mark.parametrize("name", COUNTS)
def test_a_system_trains_as_many_parameters_on_every_base(name, base):
    count = COUNTS[name]
    assert params.count(trained_by(name, base)) == (count[base] if isinstance(count, dict) else count)


def test_only_presets_for_sam_nano_have_no_count_on_the_others():
    others = {"quickstart", "own-pictures", "stable-sam-12ep", "low-shot-220", "low-shot-440", "hq-sam-recipe"}
    assert PRESETS.keys() - COUNTS == {"pretrain-nano", *others}
    assert all(trained_by(name) == trained_by("hq-sam" if name == "hq-sam-recipe" else "stable-sam") for name in others)
    neck, prompt_encoder = 841_472, 6_476
    assert params.count(trained_by("pretrain-nano")) == neck + prompt_encoder + DECODER


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("stable-sam", {"plugin"}),
        ("stable-hq-sam", {"plugin", "mask_decoder"}),
        ("finetune-decoder", {"plugin", "mask_decoder"}),
        ("hq-sam", {"mask_decoder"}),
        ("dt-sam", {"mask_decoder"}),
        ("pretrain-nano", {"image_encoder", "prompt_encoder", "mask_decoder"}),
    ],
)
def test_a_preset_trains_in_these_modules(name, modules):
    assert trained_by(name).keys() == modules


# What the paper prints as "M" is MiB of float32 for SAM and HQ-SAM, and 2^20 parameters for the others.


def mebi(count):
    return count / 2**20


def mebibytes(count):
    return 4 * count / 2**20


LEARNABLE = {  # row of table 3 or 10: printed number, preset, base, unit
    "DT-SAM": (3.9, "dt-sam", "sam_vit_l", mebi),
    "PT-SAM": (0.13, "pt-sam", "sam_vit_l", mebi),
    "HQ-SAM": (5.1, "hq-sam", "sam_vit_l", mebibytes),
    "Stable-SAM": (0.08, "stable-sam", "sam_vit_l", mebi),
    "HQ-SAM-Huge": (6.1, "hq-sam", "sam_vit_h", mebibytes),
    "HQ-SAM-Large": (5.1, "hq-sam", "sam_vit_l", mebibytes),
    "HQ-SAM-Base": (4.1, "hq-sam", "sam_vit_b", mebibytes),
    "Stable-SAM-Huge": (0.08, "stable-sam", "sam_vit_h", mebi),
    "Stable-SAM-Large": (0.08, "stable-sam", "sam_vit_l", mebi),
    "Stable-SAM-Base": (0.08, "stable-sam", "sam_vit_b", mebi),
}
TOTALS = {"SAM-Base": (358, "sam_vit_b"), "SAM-Large": (1191, "sam_vit_l"), "SAM-Huge": (2446, "sam_vit_h")}


@pytest.mark.parametrize("row", cases(LEARNABLE, lambda row: LEARNABLE[row][2]))
def test_the_paper_prints_as_many_learnable_parameters(row):
    printed, name, base, unit = LEARNABLE[row]
    digits = len(str(printed).partition(".")[2])
    assert round(unit(params.count(trained_by(name, base))), digits) == printed


@pytest.mark.parametrize("row", cases(TOTALS, lambda row: TOTALS[row][1]))
def test_the_paper_prints_as_many_mebibytes_of_the_base(row):
    printed, base = TOTALS[row]
    # With the constant of the positional encoding, which is 256 of ViT-L's 312,343,088 numbers.
    assert round(mebibytes(params.count(tree_of(base, False, None)))) == printed


def test_these_are_the_papers_numbers(shared):
    tables = json.loads((shared / "reference" / "paper_tables.json").read_text())["tables"]
    printed = {row["model"]: row["values"]["Learnable params (printed M)"] for row in tables["3"]["rows"]}
    for row in tables["10"]["rows"]:
        printed[row["model"]] = row["values"]["Params trainable (printed M)"]
    whole = {f"SAM{size}" for size in ("-Huge", "-Large", "-Base", " (baseline)")}
    assert {row: printed[row] for row in printed.keys() - whole} == {row: fact[0] for row, fact in LEARNABLE.items()}
    totals = {row["model"]: row["values"]["Params total (printed M)"] for row in tables["10"]["rows"]}
    assert {row: totals[row] for row in TOTALS} == {row: fact[0] for row, fact in TOTALS.items()}
    # The other totals add the printed numbers, whatever their units.
    for size in ("Huge", "Large", "Base"):
        for added in (f"HQ-SAM-{size}", f"Stable-SAM-{size}"):
            assert totals[added] == pytest.approx(totals[f"SAM-{size}"] + printed[added])


# recipes


def test_the_papers_recipe_is_that_of_section_9():
    config = PRESETS["stable-sam"][1]
    assert (config.epochs, config.steps, config.learning_rate, config.schedule) == (1, None, 1e-3, "constant")
    assert (config.batch_size, config.prompts_per_picture) == (32, 1)
    assert config.plugin.attentions == (1,)  # figure 3
    assert setup.parse_kinds(config.prompts) == {"gt-box": 1, "noisy-box": 1, "points": 1, "coarse-mask": 1}
    assert config.scale_range == (0.1, 2.0)


def test_an_epoch_of_hqseg_44k_has_1385_steps():
    assert -(-44_320 // PRESETS["stable-sam"][1].batch_size) == 1385


def test_a_system_differs_from_the_papers_recipe_in_what_it_trains_and_dsp_in_that_it_is_not_robust():
    free = {"output": None, "hq": None, "plugin": None, "trainable": None, "prompts": None, "occlusion": None}
    for name in COUNTS:
        config = PRESETS[name][1]
        assert dataclasses.replace(config, **free) == dataclasses.replace(PRESETS["stable-sam"][1], **free), name
        robust = config.prompts == ROBUST_PROMPTS and config.occlusion == 0.5
        assert robust or (name, config.prompts, config.occlusion) == ("dsp", HQ_SAM_PROMPTS, 0.0)


@pytest.mark.parametrize(("name", "limit"), [("stable-sam-12ep", None), ("low-shot-220", 220), ("low-shot-440", 440)])
def test_the_long_recipes_are_the_short_one_for_twelve_epochs(name, limit):
    long, short = PRESETS[name][1], PRESETS["stable-sam"][1]
    changes = {"output": long.output, "limit": limit, "epochs": 12.0, "schedule": "step", "views": 12}
    assert long == dataclasses.replace(short, **changes)


def test_hq_sams_own_recipe_is_that_of_its_code():
    config = PRESETS["hq-sam-recipe"][1]
    assert (config.batch_size, config.prompts_per_picture, config.epochs) == (32, 1, 12)
    assert (config.learning_rate, config.schedule, config.occlusion) == (1e-3, "step", 0.0)
    assert (config.prompts, config.scale_range, config.plugin) == (HQ_SAM_PROMPTS, (0.1, 2.0), None)


def test_without_robust_training_prompts_are_those_of_hq_sam():
    assert setup.parse_kinds(HQ_SAM_PROMPTS) == {"gt-box": 1, "10-points": 1, "coarse-mask": 1}


def test_the_base_is_trained_with_good_prompts_alone():
    kinds = setup.parse_kinds(PRESETS["pretrain-nano"][1].prompts)
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
