"""The plan of the paper at full size: what is trained, on which pictures, what it takes, what is missing."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from bench.limits import cost_of
from experiments import disk_plan, full_size, inputs, rates
from experiments.full_size import BACKBONES, LARGE, TABLES, Model, evaluations, kinds_of, protocol_of, trained
from experiments.options import MINIATURE, PaperConfig
from experiments.paper import main
from experiments.plan import make_plan
from experiments.plan_text import text
from stablesam_jax.build import assemble, shapes
from stablesam_jax.config import MODELS
from stablesam_jax.data.datasets import official_count
from stablesam_jax.errors import InputError
from tests.reference.layouts import write_official

PICTURES = 44320


@pytest.fixture
def rate(monkeypatch):
    """A device of 1 TFLOP/s, so that nothing is measured."""
    monkeypatch.setattr(rates, "measure", lambda devices, dtype: rates.Rate("made up", devices, 1e12, dtype))


@pytest.fixture
def config(tmp_path):
    for folder in ("weights", "data"):
        (tmp_path / folder).mkdir()
    return PaperConfig(weights=tmp_path / "weights", data=tmp_path / "data", output=tmp_path / "output", disk=0.0)


def test_every_column_of_every_row_has_the_papers_figure():
    gaps = {
        (number, label, column)
        for number, table in TABLES.items()
        for label, _ in table.rows
        for column in table.columns
        if column not in table.figures[label]
    }
    assert {(number, column) for number, _, column in gaps} == {("Table 6", "1-point")}  # a column of ours
    assert all(len(table.rows) == len(table.figures) for table in TABLES.values())


def test_all_tables_take_117_epochs_of_which_12_are_of_a_single_row(config):
    models = trained(list(evaluations(tuple(TABLES))))
    whole = [model for model in models if config.run_of(model).limit is None]
    epochs = {model: disk_plan.passes(config, model, PICTURES)[1] for model in whole}
    assert sum(epochs.values()) == 105 + epochs[Model("stable-sam-good-long")]
    assert set(epochs.values()) == {1, 12}


def test_a_base_is_trained_before_what_stands_on_it():
    models = trained([Model("stable-hq-sam")])
    assert models == [Model("hq-sam"), Model("stable-hq-sam")]


def test_a_row_is_evaluated_with_the_prompts_of_all_its_tables_whichever_is_asked_for():
    assert kinds_of(Model(""), "hq") == ("gt-box", "noisy-box", "1-point", "3-points", "5-points", "10-points")
    assert kinds_of(Model("stable-sam"), "coco") == ("n-box-50", "n-box-60")
    assert evaluations(("Table 4",))[Model("stable-sam")] == ["coco-focalnet-l-dino", "coco-r50-h-d-detr", "coco"]


def test_every_column_belongs_to_a_protocol_that_the_inputs_know():
    protocols = {protocol_of(column) for table in TABLES.values() for column in table.columns}
    assert protocols - {"model"} == inputs.SETS_OF_PROTOCOL.keys()


def test_a_run_has_the_papers_recipe(config):
    run = config.run_of(Model("stable-sam"))
    assert (run.batch_size, run.prompts_per_picture, run.epochs, run.learning_rate) == (32, 1, 1.0, 1e-3)
    assert run.plugin.attentions == (1,)
    assert run.schedule == "constant"
    assert run.model == str(config.output / "models" / "sam_vit_l")
    long = config.run_of(Model("pt-sam"))
    assert (long.epochs, long.schedule, long.views, long.plugin) == (12.0, "step", 12, None)
    assert config.run_of(Model("stable-hq-sam")).model == str(config.output / "runs" / "hq-sam-large" / "model")
    assert config.run_of(Model("hq-sam-good", "base")).occlusion == 0
    small = PaperConfig(miniature=True).run_of(Model("pt-sam-440"))
    assert (small.limit, small.epochs, small.image_size) == (16, 2.0, MINIATURE.image_size)


def test_only_views_that_are_seen_again_are_kept_and_the_most_saving_first(config):
    models = trained(list(evaluations(tuple(TABLES))))
    view = disk_plan.MARGIN * PICTURES * 2 * 64 * 64 * 256 / 2**30  # GiB of float16 embeddings
    one = disk_plan.plan_disk(config, models, PICTURES, 1.01 * view)
    assert {group.name: kept.views for group, kept in one.items()} == {"large-rts": 1}
    (kept,) = one.values()
    assert kept.saved == 5 * PICTURES + 2 * (220 + 440)  # six runs and four of few pictures
    everything = disk_plan.plan_disk(config, models, PICTURES, 1e6)
    assert {group.name: kept.views for group, kept in everything.items() if group.backbone == LARGE} == {
        "large-rts": 12,
        "large-good": 12,
        "large-hq-rts": 12,  # of few pictures, beyond the first view
    }
    assert disk_plan.plan_disk(config, models, PICTURES, 0.0) == {}


@pytest.mark.slow
def test_the_plan_on_the_official_layouts_names_what_is_missing(config, rate):
    for name in ("hqseg-44k", "dis5k-vd", "coift", "hrsod"):
        write_official(name, config.data)
    (config.weights / "sam_vit_l_0b3195.pth").touch()
    plan = make_plan(dataclasses.replace(config, only=("Table 2",)))
    shown = text(plan)
    assert "sam_vit_l" not in "".join(needed.what for needed in plan.missing)
    assert f"- thinobject5k-te, pictures: missing, expected at {config.data}/thin_object_detection" in shown
    assert "- fss, pictures: 1 pictures in" in shown
    assert "the release has 10,000" in shown
    assert [(run.model.name, run.pictures, run.steps) for run in plan.runs][-1] == ("stable-sam-large", 7, 1)
    everything = text(make_plan(config))
    assert f"- boxes of r50-h-d-detr on COCO val2017 (Table 4): missing, expected at {config.data}" in everything
    assert "- mess: all 25 folders, as " in everything
    assert "sam_vit_h_4b8939.pth" in everything


def test_a_plan_without_data_counts_the_pictures_of_the_releases(config, rate):
    plan = make_plan(dataclasses.replace(config, only=("Table 2",)))
    assert plan.runs[-1].steps == 1385
    assert plan.calls == (37 * official_count("hqseg-44k"), 5 * 1537)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only": ("Table 12",)}, "Table 12: is no table; did you mean Table 2 or Table 1"),
        ({"weights": None}, "--weights: name the folder, or give --miniature"),
        ({"miniature": True}, "leave out --weights and --data"),
        ({"disk": -1.0}, "--disk -1: must be at least 0"),
    ],
)
def test_options_that_cannot_be_used_are_refused(config, options, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(config, **options).check()


def test_a_dry_run_writes_nothing(config, rate, monkeypatch, capsys):
    places = ["--weights", str(config.weights), "--data", str(config.data), "--output", str(config.output)]
    monkeypatch.setattr("sys.argv", ["paper", *places, "--only", "Table 5", "--dry-run"])
    main()
    assert capsys.readouterr().out.startswith("# Plan: Table 5")
    assert not config.output.exists()


def test_a_dry_run_needs_no_folders_and_a_run_does(config, rate, monkeypatch, capsys):
    for folder in (config.weights, config.data):
        folder.rmdir()
    places = ["--weights", str(config.weights), "--data", str(config.data), "--output", str(config.output)]
    monkeypatch.setattr("sys.argv", ["paper", *places, "--dry-run"])
    main()
    shown = capsys.readouterr().out
    assert f"- weights of sam_vit_b: missing, expected at {config.weights}/sam_vit_b_01ec64.pth" in shown
    assert f"- coco-val2017, pictures: missing, expected at {config.data}/val2017" in shown
    with pytest.raises(InputError, match=r"^--weights .*: no such folder\.$"):
        config.check()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_encoders_arithmetic_is_that_of_its_program(backbone):
    name = BACKBONES[backbone].model
    sam = assemble(MODELS[name])

    picture = jax.ShapeDtypeStruct((1, 1024, 1024, 3), jnp.float32)
    cost = cost_of(lambda tree, x: sam.apply({"params": tree}, x, method="encode"), shapes(sam), picture)
    assert rates.encoder_flops(name) == pytest.approx(cost.flops, rel=0.05)


def test_a_rate_is_measured_on_this_machine():
    measured = rates.measure(1, "float32")
    assert measured.flops > 0
    assert measured.hours(3600 * measured.flops) == pytest.approx(1)
    assert full_size.protocol_of("fps") == "model"
