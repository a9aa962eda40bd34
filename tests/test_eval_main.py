"""Evaluation from the command line: the documented files, the same prompts for every system, one line for bad input."""

import csv
import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest

from eval import main as eval_main
from eval import systems
from eval.hq import HqConfig, hq
from stablesam_jax.checkpoint import version
from stablesam_jax.config import PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.plugin_file import save_plugin
from tests.reference import small

KINDS = ("gt-box", "1-point")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A base, a fresh plugin, and two folders of pictures."""
    folder = tmp_path_factory.mktemp("work")
    small.save_nano(folder / "base")
    save_plugin(folder / "plugin.safetensors", small.stable_nano()[1]["plugin"], config=PluginConfig(), metadata={})
    small.save_pairs(folder / "horses", 3)
    small.save_pairs(folder / "coins", 2, size=(80, 56))
    return folder


def built_small(system):
    """A system by its name, at 64 px: a shipped model would be too slow."""
    return small.stable_nano() if "+" in system else small.nano()


@pytest.fixture(scope="module")
def config(work):
    return HqConfig(
        system=(str(work / "base"), f"{work / 'base'}+{work / 'plugin.safetensors'}"),
        data_dir=(work / "horses", work / "coins"),
        output=work / "results",
        prompts=KINDS,
        count=3,
        limit=2,
    )


@pytest.fixture(scope="module")
def results(config):
    """The folder of results of two systems on two folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systems, "load_model", built_small)
        hq(config)
    return config.output


def test_the_json_has_the_documented_schema(results, config):
    stored = json.loads((results / "results.json").read_text())
    assert stored["meta"] == {
        "protocol": "hq",
        "prompts": list(KINDS),
        "count": 3,
        "seed": 0,
        "limit": 2,
        "version": version(),
    }
    assert list(stored["systems"]) == list(config.system)
    for sets in stored["systems"].values():
        assert list(sets) == ["horses", "coins", "mean"]
        for summary in sets.values():
            assert list(summary) == list(KINDS)
            for metrics in summary.values():
                assert list(metrics) == ["miou", "mbiou", "msf"]
                assert all(0 <= value <= 1 for value in metrics.values())
        for kind in KINDS:
            for metric in ("miou", "mbiou", "msf"):
                average = (sets["horses"][kind][metric] + sets["coins"][kind][metric]) / 2
                assert sets["mean"][kind][metric] == pytest.approx(average)


def test_a_fresh_plugin_changes_nothing_as_both_systems_have_the_same_prompts(results, config):
    base, stable = json.loads((results / "results.json").read_text())["systems"].values()
    for dataset, summary in base.items():
        for kind, metrics in summary.items():
            assert stable[dataset][kind] == pytest.approx(metrics, abs=0.02), (dataset, kind)


def test_every_object_has_a_line_and_limit_takes_the_first_pictures(results, config):
    with open(results / "per_image.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["system", "data_set", "picture", "object", "kind", "miou", "mbiou", "msf"]
    seen = [(line["system"], line["picture"], line["kind"]) for line in lines]
    assert seen == [
        (system, f"{name}/{index:02d}", kind)
        for system in config.system
        for name in ("horses", "coins")
        for index in range(2)
        for kind in KINDS
    ]
    stored = json.loads((results / "results.json").read_text())["systems"][config.system[0]]["coins"]["1-point"]
    chosen = [line for line in lines if (line["system"], line["data_set"]) == (config.system[0], "coins")]
    values = [float(line["miou"]) for line in chosen if line["kind"] == "1-point"]
    assert stored["miou"] == pytest.approx(np.mean(values), abs=1e-6)


def test_results_lie_beside_each_other_and_nothing_else(results):
    assert sorted(path.name for path in results.iterdir()) == ["per_image.csv", "results.json", "results.md"]
    headings = [line for line in (results / "results.md").read_text().splitlines() if line.startswith("## ")]
    assert headings == ["## horses", "## coins", "## mean"]


def test_the_spelling_of_a_folder_changes_no_figure(results, config, work, monkeypatch):
    monkeypatch.chdir(work / "coins")
    monkeypatch.setattr(systems, "load_model", built_small)
    again = dataclasses.replace(
        config, system=config.system[:1], data_dir=(pathlib.Path("."),), output=pathlib.Path("../again")
    )
    hq(again)
    first, second = (
        json.loads((folder / "results.json").read_text())["systems"][config.system[0]]
        for folder in (results, work / "again")
    )
    assert list(second) == ["coins"]  # one folder needs no mean
    assert second["coins"] == first["coins"]


# bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": ("gt-box", "scribble")}, "--prompts scribble: unknown; known are gt-box, noisy-box, 1-point"),
        ({"count": 0}, "--count 0: must be at least 1"),
        ({"limit": 0}, "--limit 0: must be at least 1"),
        ({"system": ("sam_vit_xxl",)}, "sam_vit_xxl: neither a shipped model"),
        ({"data_dir": (pathlib.Path("nowhere"),)}, "nowhere: no such folder"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(config, change, words, tmp_path):
    with pytest.raises(InputError, match=words) as error:
        hq(dataclasses.replace(config, output=tmp_path / "results", **change))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_data_set_may_not_be_called_as_the_mean(config, tmp_path):
    folder = small.save_pairs(tmp_path / "mean", 1)
    with pytest.raises(InputError, match="a data set cannot be called 'mean' in the results; rename it"):
        hq(dataclasses.replace(config, data_dir=(folder,), output=tmp_path / "results"))


def test_results_are_not_overwritten(results, config):
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    with pytest.raises(InputError, match="holds results already, and nothing is overwritten"):
        hq(config)
    assert {path.name: path.read_bytes() for path in results.iterdir()} == before


def run_main(monkeypatch, capsys, *arguments):
    """Exit status and lines on standard error."""
    monkeypatch.setattr(sys, "argv", ["eval.main", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        eval_main.main()
    return end.value.code, capsys.readouterr().err


def test_a_folder_without_masks_ends_with_one_line_and_status_2(monkeypatch, capsys, work, tmp_path):
    folder = small.save_pairs(tmp_path / "pairs", 2)
    for mask in (folder / "gt").iterdir():
        mask.unlink()
    (folder / "gt").rmdir()
    output = tmp_path / "results"
    arguments = ("hq", "--system", work / "base", "--data-dir", folder, "--output", output)
    status, error = run_main(monkeypatch, capsys, *arguments)
    assert status == 2
    assert error == f"error: {folder}: holds no gt/; pictures go to im/NAME.jpg, their masks to gt/NAME.png.\n"
    assert not output.exists()


def test_a_mask_of_another_size_is_named_and_leaves_nothing_behind(monkeypatch, capsys, work, tmp_path):
    folder = small.save_pairs(tmp_path / "pairs", 2)
    (folder / "gt" / "01.png").write_bytes((work / "coins" / "gt" / "01.png").read_bytes())
    monkeypatch.setattr(systems, "load_model", built_small)
    output = tmp_path / "results"
    arguments = ("hq", "--system", "base", "--data-dir", folder, "--output", output, "--prompts", "gt-box")
    status, error = run_main(monkeypatch, capsys, *arguments)
    assert status == 2
    assert error.startswith(f"error: {folder / 'gt' / '01.png'}: the mask is 80 x 56 pixels, its picture 48 x 40")
    assert error.count("\n") == 1
    assert not output.exists()


def test_options_are_those_of_the_documentation(monkeypatch):
    seen = []
    monkeypatch.setattr(systems, "load_model", lambda system: seen.append(system) or built_small(system))
    monkeypatch.setattr(systems, "check_output", seen.append)
    command = "eval.main hq --system a b+c --data-dir nowhere --prompts gt-box n-box-50 --output out --seed 3 --limit 4"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as end:
        eval_main.main()
    assert end.value.code == 2
    assert seen == [pathlib.Path("out")]  # then the folders are looked at, then the systems


@pytest.mark.parametrize("protocol", ["coco", "sginw", "mess"])
def test_every_protocol_is_a_command_that_names_what_it_cannot_read(monkeypatch, capsys, tmp_path, protocol):
    arguments = (protocol, "--system", "base", "--data-dir", tmp_path / "nowhere", "--output", tmp_path / "results")
    status, error = run_main(monkeypatch, capsys, *arguments)
    assert status == 2
    assert "nowhere" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
