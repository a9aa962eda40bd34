"""The paper's command in miniature: to its end, again, on eight devices, and where something is missing."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from eval import paper as figures
from experiments import disk_plan, filled, full_size, miniature, steps
from experiments.full_size import TABLES, Model
from experiments.options import PaperConfig
from experiments.paper import paper
from stablesam_jax.data.datasets import NAMES
from stablesam_jax.data.sources import open_all_class_maps, open_instances, open_sources
from stablesam_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(output, *options, devices=2):
    """What the command prints, in a process of its own."""
    command = [sys.executable, "-m", "experiments.paper", "--miniature", "--output", str(output), *options]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def results(output):
    """Every result of every evaluation, by folder and path within it."""
    found = {}

    def leaves(name, value):
        if isinstance(value, dict):
            for key, one in value.items():
                leaves(f"{name}/{key}", one)
        elif isinstance(value, float):
            found[name] = value

    for path in sorted((output / "results").rglob("results.json")):
        (one,) = json.loads(path.read_text())["systems"].values()
        leaves(str(path.parent.relative_to(output)), one)
    return found


@pytest.mark.slow
def test_tables_are_made_in_miniature_and_nothing_is_done_twice(tmp_path):
    only = ("Table 1", "Table 4", "Table 8")  # every kind of step; all tables take a quarter of an hour
    run(tmp_path, "--only", *only)
    tables = (tmp_path / "tables.md").read_text()
    assert all(f"## {number}: {TABLES[number].title}" in tables for number in only)
    assert "| ? " not in tables
    assert " ? |" not in tables
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("results.json")}
    again = run(tmp_path, "--only", *only)
    assert "step " not in again
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (tmp_path / "tables.md").read_text() == tables


@pytest.mark.slow
def test_eight_devices_give_the_figures_of_one(tmp_path):
    for devices in (1, 8):
        run(tmp_path / str(devices), "--only", "Table 5", "--devices", str(devices), devices=devices)
    one, eight = results(tmp_path / "1"), results(tmp_path / "8")
    assert one.keys() == eight.keys()
    assert len(one) > 50
    np.testing.assert_allclose(list(eight.values()), list(one.values()), atol=2e-3)


def test_the_miniatures_data_are_read_in_every_official_layout(tmp_path):
    miniature.make(tmp_path)
    for name in ("hqseg-44k", *full_size.HQ_SETS):
        (source,) = open_sources([f"{name}:{tmp_path}"]).values()
        assert len(source) == (miniature.TRAINING_PICTURES if name == "hqseg-44k" else miniature.PER_SET)
    assert len(open_instances([f"sginw:{tmp_path}"])) == 25
    (coco,) = open_instances([f"coco-val2017:{tmp_path}"]).values()
    assert coco.objects(0)[0].bbox_xywh[2] > 0
    maps = open_all_class_maps([f"mess:{tmp_path}"])
    assert len(maps) == sum(name.startswith("mess/") for name in NAMES)


def test_training_and_test_scenes_of_the_miniature_differ_by_the_seed_alone(tmp_path):
    for folder in ("a", "b"):
        miniature.make(tmp_path / folder, seed=1)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) > 100
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_results_of_other_options_are_refused_not_relabelled(tmp_path):
    steps.keep_options(PaperConfig(miniature=True, output=tmp_path), True)
    steps.keep_options(PaperConfig(miniature=True, output=tmp_path, only=("Table 2",)), True)
    with pytest.raises(InputError, match=r"its results are of \{'seed': 0, .*give another --output"):
        steps.keep_options(PaperConfig(miniature=True, output=tmp_path, seed=1), True)


def test_a_picture_of_the_miniature_is_whole_or_not_there(tmp_path, monkeypatch):
    def torn(self, path, *_):
        pathlib.Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.Image.save", torn)
    with pytest.raises(KeyboardInterrupt):
        miniature.make(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_any_weights_nothing_is_begun(tmp_path, monkeypatch):
    for folder in ("weights", "data"):
        (tmp_path / folder).mkdir()
    config = PaperConfig(weights=tmp_path / "weights", data=tmp_path / "data", output=tmp_path / "out", tflops=None)
    monkeypatch.setattr("experiments.paper.make_plan", lambda _: None)
    monkeypatch.setattr("experiments.paper.text", lambda _: "the plan")
    with pytest.raises(InputError, match=r"weights of sam_vit_b: missing, expected at .*sam_vit_b_01ec64\.pth"):
        paper(config)
    assert not config.output.exists()


def test_a_step_that_is_refused_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    config = PaperConfig(miniature=True, output=tmp_path, only=("Table 2",))
    done = []

    def refuse(config, plan, model):
        if model.system == "pt-sam-good":
            raise InputError("its data are gone.")

    monkeypatch.setattr(steps, "preparations", lambda *_: [])
    monkeypatch.setattr(steps, "train_model", refuse)
    monkeypatch.setattr(steps, "evaluate", lambda config, model, protocol: done.append(model.system))

    class Plan:
        pass

    plan = Plan()
    plan.config = config
    left_out = steps.carry_out(plan, "about", "command")
    assert left_out == {"training pt-sam-good-large": "its data are gone."}
    assert done == ["", "dt-sam-good", "pt-sam-good", "hq-sam-good", "stable-sam"]
    assert "left out: training pt-sam-good-large" in capsys.readouterr().err
    assert (tmp_path / "tables.md").exists()


def write(output, model, protocol, content):
    folder = filled.results_of(output, model, protocol)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))


def test_a_table_has_our_figures_beside_the_papers(tmp_path):
    kinds = {kind: {"miou": 0.5, "mbiou": 0.25, "msf": 0.125} for kind in figures.SAM}
    write(tmp_path, Model(""), "hq", {"systems": {"sam": {"dis5k-vd": {}, "mean": kinds}}})
    detections = {"n-box-50, iou": {"ap": 0.3, "ap50": 0.6}, "n-box-50, constant": {"ap": 0.1, "ap50": 0.2}}
    write(tmp_path, Model("stable-sam"), "coco", {"systems": {"x": {"coco-val2017": detections}}})
    write(
        tmp_path, Model("stable-sam"), "model", {"parameters": 4 * 2**20, "learnable": 81829, "fps": 2.5, "memory": 1}
    )
    two, ten = filled.table(tmp_path, "Table 2"), filled.table(tmp_path, "Table 10")
    assert "| SAM | 50.0 / 25.0 / 12.5 (48.8 / 42.1 / 39.5) |" in two
    assert "| Stable-SAM | ? (82.3 / 74.1 / 82.3) |" in two
    (row,) = [line for line in ten.splitlines() if line.startswith("| Stable-SAM-Large")]
    assert "| 30.0 / 60.0 (44.8 / 76.4) |" in row
    assert "| 4.19 M, 16 MiB (1191.08) | 0.08 M, 0.3122 MiB (0.08) | 2.5 (5.0) | 1 (7.6) |" in row


def test_means_of_mess_are_in_the_papers_order(tmp_path):
    domains = [name for name in filled.DOMAINS if name != "mean"]
    found = {domain: {"oracle-box": {"miou": number / 10}} for number, domain in enumerate(domains)}
    found |= {"mean": {"oracle-box": {"miou": 0.9}, "noisy-box": {"miou": 0.7}}}
    found["mess/suim"] = {"noisy-box": {"miou": 0.2}}
    assert filled.values("mess oracle-box", found) == pytest.approx([0, 10, 20, 30, 40, 90])
    assert filled.values("mess/suim", found) == pytest.approx([20])
    assert filled.values("mess/mean", found) == pytest.approx([70])


def test_only_what_is_missing_is_prepared(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(steps, "tool", lambda name, *arguments, good=(0,): called.append((name, *arguments)))
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "sam_vit_l_0b3195.pth").touch()
    miniature.make(tmp_path / "data")
    config = PaperConfig(weights=weights, data=tmp_path / "data", output=tmp_path / "out", only=("Table 2", "Table 10"))
    wanted = full_size.evaluations(config.tables)
    for name, step in steps.preparations(config, wanted):
        assert name
        step()
    assert [name for name, *_ in called] == ["convert", "check", "build"]
    convert, check, build = called
    assert convert[1:] == (
        *("--checkpoint", str(weights / "sam_vit_l_0b3195.pth")),
        *("--output", str(tmp_path / "out" / "models" / "sam_vit_l"), "--model", "sam_vit_l"),
    )
    assert f"coift:{tmp_path / 'data'}" in check
    assert build[1] == "hqseg-44k"
    for made in ("models/sam_vit_l", "built/hqseg_44k"):
        (tmp_path / "out" / made).mkdir(parents=True)
    (tmp_path / "out" / steps.CHECKED).touch()
    assert list(steps.preparations(config, wanted)) == []


def test_a_run_goes_on_with_its_cache_or_without_whatever_the_disk_holds_now(tmp_path):
    config = PaperConfig(miniature=True, output=tmp_path, only=("Table 2",))

    class Plan:
        pass

    plan = Plan()
    plan.config, model = config, Model("stable-sam")
    group = disk_plan.group_of(config, model)
    run_config = config.run_of(model)
    plan.kept = {group: disk_plan.Kept(1, 90.0, 5)}
    kept = steps.cache_of(plan, model, run_config)
    assert kept == {"cache": tmp_path / "features" / "large-rts", "cache_limit": 90.0}
    run_config.output.mkdir(parents=True)
    (run_config.output / "config.json").write_text('{"cached": false}')
    assert steps.cache_of(plan, model, run_config) == {}
    (run_config.output / "config.json").write_text('{"cached": true}')
    plan.kept = {}
    assert steps.cache_of(plan, model, run_config)["cache_limit"] == steps.SMALLEST_CACHE
