"""`experiments.tables` trains what the tables compare, once, and sets it beside the paper."""

import contextlib
import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from eval.loop import METRICS
from experiments import full_size, tables
from experiments.rows import SYSTEMS, TABLES
from experiments.tables import TablesConfig, run_config
from stablesam_jax.errors import InputError
from tests.reference import small
from train.presets import PRESETS

ONLY = ("stable-sam", "pt-sam", "ours-weaker")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    return TablesConfig(
        model=str(small.save_nano(folder / "base")),
        image_size=small.SIZE,
        data_dir=(small.save_pairs(folder / "pairs", 6, blocks=1),),
        test_dir=(small.save_pairs(folder / "first", 3, blocks=2), small.save_pairs(folder / "second", 2, blocks=3)),
        output=folder / "tables",
        cache=folder / "cache",
        seeds=2,
        steps=2,
        count=2,
        only=ONLY,
    )


def run(config, **changes):
    """Runs that it took, by name and seed."""
    trained = []

    def remember(run):
        trained.append(run.output.name)
        tables.train(dataclasses.replace(run, batch_size=2, prompts_per_picture=2, devices=1))

    with small.quick_compilation(), contextlib.redirect_stdout(io.StringIO()):
        tables.tables(dataclasses.replace(config, **changes), remember)
    return trained


@pytest.fixture(scope="module")
def trained(config):
    return run(config)


@pytest.mark.slow
def test_every_system_is_trained_for_every_seed_and_none_twice(config, trained):
    names = ("stable-sam", "pt-sam", "ours")  # "ours-weaker" is "ours" at another strength
    assert trained == [f"{name}-seed{seed}" for seed in (0, 1) for name in names]
    before = (config.output / "tables.md").read_text()
    assert run(config) == []
    assert (config.output / "tables.md").read_text() == before


@pytest.mark.slow
def test_pictures_whose_masks_were_corrected_are_scored_again(config, trained, tmp_path):
    test = shutil.copytree(config.test_dir[0], tmp_path / config.test_dir[0].name)
    output = shutil.copytree(config.output, tmp_path / "tables")
    changed = dataclasses.replace(config, test_dir=(test, config.test_dir[1]), output=output)
    run(changed)
    before = (output / "tables.md").read_text().partition("## ")[2]
    mask = next((test / "gt").iterdir())
    Image.fromarray(255 - np.asarray(Image.open(mask).convert("L"))).save(mask)
    run(changed)
    assert (output / "tables.md").read_text().partition("## ")[2] != before


@pytest.mark.slow
def test_scores_stand_for_a_run_that_is_gone(config, trained, tmp_path):
    shutil.copytree(config.output / "scores", tmp_path / "scores")
    assert run(config, output=tmp_path) == []
    assert (tmp_path / "tables.md").read_text() == (config.output / "tables.md").read_text()


@pytest.mark.slow
def test_scores_stand_when_an_option_without_effect_has_come_or_gone(config, trained, tmp_path):
    shutil.copytree(config.output / "scores", tmp_path / "scores")
    for path in (tmp_path / "scores").iterdir():
        kept = json.loads(path.read_text())
        kept["asked"]["options"]["gone"] = 1
        kept["asked"]["options"].pop("ema", None)
        if plugin := kept["asked"]["options"].get("plugin"):
            del plugin["strength"]
        path.write_text(json.dumps(kept))
    assert run(config, output=tmp_path) == []


@pytest.mark.slow
def test_at_another_size_the_same_runs_are_compared_again(config, trained, tmp_path):
    output = tmp_path / "tables"
    shutil.copytree(config.output, output)
    run(config, output=output, test_image_size=2 * small.SIZE, only=("stable-sam",), seeds=1)
    assert f"at {2 * small.SIZE} px, trained at {small.SIZE} px" in (output / "tables.md").read_text()
    before, after = (
        json.loads((folder / "scores" / "base.json").read_text())["scores"] for folder in (config.output, output)
    )
    assert before != after


def test_without_robust_training_nothing_is_occluded_even_where_others_are(config):
    occluded = {name for name in SYSTEMS if run_config(dataclasses.replace(config, occlusion=0.5), name, 0).occlusion}
    good = {"dsp", "dt-sam-good", "pt-sam-good", "hq-sam-good", "stable-sam-good", "ours-good"}
    assert set(SYSTEMS) - occluded == good


def test_the_preset_for_own_pictures_is_ours(config):
    table = run_config(TablesConfig(data_dir=config.data_dir, test_dir=config.test_dir), "ours", 0)
    own = PRESETS["own-pictures"][1]
    same = ("steps", "learning_rate", "schedule", "prompts", "plugin")
    assert {name: getattr(own, name) for name in same} == {name: getattr(table, name) for name in same}


def test_the_papers_row_has_its_recipe(config):
    run = run_config(TablesConfig(data_dir=config.data_dir, test_dir=config.test_dir), "stable-sam", 0)
    assert run.plugin.attentions == (1,)
    assert run.plugin.router
    assert (run.batch_size, run.prompts_per_picture, run.occlusion) == (32, 1, 0.5)


def test_hq_sam_with_ours_has_a_frozen_hq_sam_of_the_same_seed(config):
    run = run_config(config, "stable-hq-sam", 1)
    assert run.model == str(config.output / "hq-sam-seed1" / "model")
    assert not run.hq
    assert run.trainable == ("plugin/.*",)


@pytest.mark.slow
def test_runs_of_other_options_are_refused(config, trained):
    with pytest.raises(InputError, match=r"holds a run of another configuration \(learning_rate 0\.003 -> 0\.01\)"):
        run(config, learning_rate=0.01)


@pytest.mark.slow
def test_other_prompts_are_asked_anew_of_what_is_trained(config, trained):
    before = (config.output / "tables.md").read_text()
    plugin = config.output / "stable-sam-seed0" / "plugin.safetensors"
    trained_at = plugin.stat().st_mtime_ns
    try:
        run(config, count=3)
        assert plugin.stat().st_mtime_ns == trained_at
        assert (config.output / "tables.md").read_text() != before
    finally:
        run(config)


@pytest.fixture
def noisy_boxes(config, trained):
    """Table 6 under noisy boxes: name -> cells."""
    table = (config.output / "tables.md").read_text().partition("## Table 6")[2]
    lines = table.partition("noisy-box:")[2].partition("1-point:")[0].strip().splitlines()[2:]
    return {name: cells for name, *cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}


@pytest.mark.slow
def test_a_row_has_ours_and_its_seeds_beside_the_papers(noisy_boxes):
    assert list(noisy_boxes) == ["SAM", "PT-SAM + RTS", "Ours + RTS", "(the same at a strength of 0.7)"]
    assert noisy_boxes["SAM"][1:4] == ["", "", ""]
    assert noisy_boxes["SAM"][5:] == ["48.8 / 42.1 / 39.5", ""]
    figures, gained, seeds, closed, lead, *theirs = noisy_boxes["Ours + RTS"]
    assert re.fullmatch(r"[\d.]+ / [\d.]+ / [\d.]+", figures)
    assert re.fullmatch(r"≈ [+-][\d.]+", gained)  # so few pictures have no interval
    assert len(seeds.split(", ")) == 2
    assert re.fullmatch(r"-?\d+%(, past the base's true box)?|no gap", closed)
    assert lead == ""  # the row "ours" is not among those that were asked for
    assert theirs == ["82.3 / 74.1 / 82.3", "109%, past the base's true box"]


def test_our_lead_over_a_rival_is_the_difference_of_both_gains():
    rng = np.random.default_rng(0)

    def scores(gain):
        values = {kind: {metric: rng.uniform(0.4, 0.5, 12) + gain for metric in METRICS} for kind in tables.KINDS}
        return tables.Found([{"set": values}])

    found = {"": scores(0), "pt-sam": scores(0.1), "ours": scores(0.3)}
    rows = [("SAM", ""), ("PT-SAM", "pt-sam"), ("(ours)", "ours")]
    groups = {"set": [str(index) for index in range(12)]}
    table = tables.table_markdown(found, groups, "noisy-box", rows, {})
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in table.splitlines()[2:]}
    gained = {name: float(row[2].split(" ")[0]) for name, row in cells.items() if name != "SAM"}
    lead = float(cells["PT-SAM"][5].split(" ")[0])
    assert lead == pytest.approx(gained["(ours)"] - gained["PT-SAM"], abs=0.11)
    assert cells["(ours)"][5] == ""


@pytest.mark.parametrize(
    ("figures", "words"),
    [((0.8, 0.6, 0.7), "50%"), ((0.8, 0.6, 0.9), "150%, past the base's true box"), ((0.6, 0.6, 0.9), "no gap")],
)
def test_a_gap_that_is_more_than_closed_is_said_so(figures, words):
    assert tables.share_closed(*figures) == words


@pytest.mark.slow
def test_gains_are_those_of_the_figures_shown(noisy_boxes):
    before, after = (float(noisy_boxes[name][0].split(" / ")[0]) for name in ("SAM", "Ours + RTS"))
    _, gained, seeds, *_ = noisy_boxes["Ours + RTS"]
    rounding = 0.11
    assert after - before == pytest.approx(float(re.search(r"[+-][\d.]+", gained)[0]), abs=rounding)
    assert after - before == pytest.approx(sum(map(float, seeds.split(", "))) / 2, abs=rounding)


def test_every_row_of_a_table_is_a_system_and_every_figure_of_the_paper_has_its_row():
    for number, (_, _, rows, figures) in TABLES.items():
        assert {name for _, name in rows} - {""} <= set(SYSTEMS)
        assert set(figures) <= {label for label, _ in (*rows, *full_size.TABLES[number].rows)}
        assert all("noisy-box" in row for label, row in figures.items() if label != "SAM")
    named = {name for _, _, rows, _ in TABLES.values() for _, name in rows}
    assert set(SYSTEMS) == named - {""}
    assert {system.preset for system in SYSTEMS.values()} <= set(PRESETS)


def test_a_training_picture_in_the_test_is_refused_resized_and_mirrored_too(config, tmp_path):
    folder = small.save_pairs(tmp_path / "third", 3, blocks=4)
    leak = Image.open(config.data_dir[0] / "im" / "02.png").resize((96, 80)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    leak.save(folder / "im" / "01.png")
    Image.new("L", (96, 80), 255).save(folder / "gt" / "01.png")
    with pytest.raises(InputError, match=r"^1 of 6 test pictures are among .*: third/01 shows the same as pairs/02\."):
        run(config, test_dir=(config.test_dir[0], folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only": ("sam",)}, "--only sam: unknown; choose from ours, pt-sam"),
        ({"seeds": 0}, "--seeds 0: must be at least 1"),
        ({"limit": 0}, "--limit 0: must be at least 1"),
        ({"count": 0}, "--count 0: must be at least 1"),
        ({"data_dir": ()}, "--data-dir: name at least one folder of pictures"),
        ({"test_dir": ()}, "--test-dir: name at least one folder of pictures"),
    ],
)
def test_an_option_out_of_range_is_named(config, changes, message):
    with pytest.raises(InputError, match=message):
        run(config, **changes)
