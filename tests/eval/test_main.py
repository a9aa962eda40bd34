"""Evaluation from the command line: the documented files, the same prompts for every system, one line for bad input."""

import csv
import dataclasses
import json
import os
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from eval import loop, overlap
from eval import main as eval_main
from eval.draw import even_draw
from eval.journal import JOURNAL
from eval.protocols import hq as hq_module
from eval.protocols import systems
from eval.protocols.hq import HqConfig, hq
from stablesam_jax.config import PluginConfig
from stablesam_jax.data.sources import open_sources
from stablesam_jax.errors import InputError
from stablesam_jax.files.disk import write_text
from stablesam_jax.files.locks import owned
from stablesam_jax.files.plugin_file import save_plugin
from stablesam_jax.params import digest
from stablesam_jax.version import __version__
from tests.reference import small
from tests.reference.tiers import slow

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
        patch.setattr(systems, "load_model", small.by_name)
        hq(config)
    return config.output


def test_the_json_has_the_documented_schema(results, config):
    stored = json.loads((results / "results.json").read_text())
    meta = stored["meta"]
    settings = {"protocol": "hq", "prompts": list(KINDS), "count": 3, "image_size": None, "seed": 0, "limit": 2}
    settings |= {"part": None, "version": __version__}
    assert meta.items() >= settings.items()
    assert meta.keys() - settings.keys() == {"versions", "parameters", "plugins", "data", "run"}
    assert meta["parameters"] == {system: digest(small.by_name(system)[1]) for system in config.system}
    assert {name: data["pictures"] for name, data in meta["data"].items()} == {"horses": 2, "coins": 2}
    assert {name: data["groups"] for name, data in meta["data"].items()} == {"horses": 2, "coins": 2}
    assert list(stored) == ["systems", "intervals", "differences", "meta"]
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


def test_every_object_has_a_line_and_limit_draws_pictures_evenly(results, config):
    with open(results / "per_image.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["system", "data_set", "picture", "object", "kind", "miou", "mbiou", "msf", "alpha"]
    assert [bool(line["alpha"]) for line in lines] == ["+" in line["system"] for line in lines]
    seen = [(line["system"], line["picture"], line["kind"]) for line in lines]
    assert seen == [
        (system, f"{name}/{index:02d}", kind)
        for system in config.system
        for name in ("horses", "coins")
        for index in even_draw(3 if name == "horses" else 2, 2, seed=0)
        for kind in KINDS
    ]
    stored = json.loads((results / "results.json").read_text())["systems"][config.system[0]]["coins"]["1-point"]
    chosen = [line for line in lines if (line["system"], line["data_set"]) == (config.system[0], "coins")]
    values = [float(line["miou"]) for line in chosen if line["kind"] == "1-point"]
    assert stored["miou"] == pytest.approx(np.mean(values), abs=1e-6)


def test_results_lie_beside_each_other_and_nothing_else(results, config):
    assert sorted(path.name for path in results.iterdir()) == ["figures", "per_image.csv", "results.json", "results.md"]
    figures = ["alpha", "best_0", "best_1", "curves", "stability", "worst_0", "worst_1"]
    assert sorted(path.name for path in (results / "figures").iterdir()) == [f"{name}.png" for name in figures]
    headings = [line for line in (results / "results.md").read_text().splitlines() if line.startswith("## ")]
    assert headings == ["## horses", "## coins", "## mean", f"## Differences from {config.system[0]}"]


def test_the_spelling_of_a_folder_changes_no_figure(results, config, work, monkeypatch):
    monkeypatch.chdir(work / "coins")
    monkeypatch.setattr(systems, "load_model", small.by_name)
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


def test_differences_are_those_of_the_figures_and_few_pictures_have_no_interval(results, config):
    stored = json.loads((results / "results.json").read_text())
    base, stable = config.system
    assert list(stored["differences"]) == [base]
    assert list(stored["differences"][base]) == [stable]
    for name, kinds in stored["systems"][base].items():
        for kind, metrics in kinds.items():
            for metric, value in metrics.items():
                difference = stored["differences"][base][stable][name][kind][metric]
                assert stored["intervals"][base][name][kind][metric] == [difference["low"], difference["high"]]
                assert (difference["low"], difference["high"]) == (None, None)
                expected = stored["systems"][stable][name][kind][metric] - value
                assert difference["value"] == pytest.approx(expected, abs=1e-12)


def without_times(folder):
    stored = json.loads((folder / "results.json").read_text())
    del stored["meta"]["run"]
    return stored, (folder / "results.md").read_text(), (folder / "per_image.csv").read_text()


@pytest.mark.slow
def test_two_runs_are_equal_but_for_times(results, config, monkeypatch, tmp_path):
    monkeypatch.setattr(systems, "load_model", small.by_name)
    hq(dataclasses.replace(config, output=tmp_path / "again"))
    assert without_times(tmp_path / "again") == without_times(results)


def test_the_digest_of_the_data_sees_a_changed_mask(results, config, work, monkeypatch, tmp_path):
    monkeypatch.setattr(systems, "load_model", small.by_name)
    folder = small.save_pairs(tmp_path / "horses", 3)
    mask = np.asarray(Image.open(folder / "gt" / "00.png")).copy()
    mask[20, 20] = 0
    Image.fromarray(mask).save(folder / "gt" / "00.png")
    hq(
        dataclasses.replace(
            config,
            system=config.system[:1],
            data_dir=(folder, work / "coins"),
            output=tmp_path / "out",
            prompts=("gt-box",),
        )
    )
    before, after = (
        json.loads((path / "results.json").read_text())["meta"]["data"] for path in (results, tmp_path / "out")
    )
    assert after["coins"] == before["coins"]
    assert after["horses"] != before["horses"]


# killed and started again


class Killed(Exception):
    pass


def killed_at(monkeypatch, picture):
    """Segmenters that are killed when they see the picture of that number."""
    seen = []
    encode = loop.Segmenter.encode

    def dying(self, picture_itself):
        if len(seen) == picture:
            raise Killed
        seen.append(1)
        return encode(self, picture_itself)

    monkeypatch.setattr(loop.Segmenter, "encode", dying)
    return seen


def test_a_killed_evaluation_goes_on_and_its_results_are_those_of_one_run(results, config, tmp_path):
    asked = dataclasses.replace(config, output=tmp_path / "out")
    for picture in (5, 2):  # of 8; killed twice
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(systems, "load_model", small.by_name)
            patch.setattr(overlap, "THREADS", 1)
            killed_at(patch, picture)
            with pytest.raises(Killed):
                hq(asked)
        assert [path.name for path in asked.output.iterdir()] == [JOURNAL]
    with open(asked.output / JOURNAL, "a") as file:
        file.write('["torn')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systems, "load_model", small.by_name)
        seen = killed_at(patch, None)
        patch.setattr(hq_module, "write_figures", lambda *_: None)
        hq(asked)
    assert len(seen) == 2
    assert without_times(asked.output) == without_times(results)
    assert not (asked.output / JOURNAL).exists()


def test_other_options_do_not_go_on(config, tmp_path, monkeypatch):
    asked = dataclasses.replace(config, output=tmp_path / "out")
    monkeypatch.setattr(systems, "load_model", small.by_name)
    killed_at(monkeypatch, 3)
    with pytest.raises(Killed):
        hq(asked)
    before = (asked.output / JOURNAL).read_bytes()
    with pytest.raises(InputError, match=r"with other options: seed was 0, is 7\. Repeat its options to"):
        hq(dataclasses.replace(asked, seed=7))
    assert (asked.output / JOURNAL).read_bytes() == before


def test_two_evaluations_do_not_write_into_one_folder(config, tmp_path, monkeypatch):
    asked = dataclasses.replace(config, output=tmp_path / "out")
    monkeypatch.setattr(systems, "load_model", pytest.fail)
    with owned(asked.output), pytest.raises(InputError, match=r"out: in use by process .*; nothing was changed"):
        hq(asked)

    def meanwhile(specs):
        write_text(asked.output / "results.json", "of the other")
        return open_sources(specs)

    monkeypatch.setattr(hq_module, "open_sources", meanwhile)
    with pytest.raises(InputError, match="out: holds results already, and nothing is overwritten"):
        hq(asked)
    assert [path.name for path in asked.output.iterdir()] == ["results.json"]


@pytest.mark.parametrize("part", ["im", *slow("gt")])
def test_pictures_and_masks_that_have_changed_since_are_not_mixed_with_earlier_ones(
    part, config, tmp_path, monkeypatch
):
    folder = small.save_pairs(tmp_path / "horses", 3)
    asked = dataclasses.replace(config, data_dir=(folder,), output=tmp_path / "out", limit=None)
    monkeypatch.setattr(systems, "load_model", small.by_name)
    killed_at(monkeypatch, 3)
    with pytest.raises(Killed):
        hq(asked)
    before = (asked.output / JOURNAL).read_bytes()
    file = folder / part / "01.png"
    changed = np.array(Image.open(file))
    changed[0, 0] = 255 - changed[0, 0]
    Image.fromarray(changed).save(file)
    with pytest.raises(InputError, match="horses/01: the picture or its labels have changed since this evaluation was"):
        hq(asked)
    assert (asked.output / JOURNAL).read_bytes() == before


# bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": ("gt-box", "scribble")}, "--prompts scribble: unknown; choose from gt-box, noisy-box, 1-point"),
        ({"count": 0}, "--count 0: must be at least 1"),
        ({"limit": 0}, "--limit 0: must be at least 1"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
        ({"image_size": 50}, "image size 50: must be a positive multiple of 32"),
        ({"system": ()}, "--system: name at least one"),
        ({"data_dir": ()}, "--data-dir: name at least one data set"),
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
    before = {path.name: path.read_bytes() for path in results.glob("*.*")}
    with pytest.raises(InputError, match="holds results already, and nothing is overwritten"):
        hq(config)
    assert {path.name: path.read_bytes() for path in results.glob("*.*")} == before


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
    monkeypatch.setattr(systems, "load_model", small.by_name)
    output = tmp_path / "results"
    arguments = ("hq", "--system", "base", "--data-dir", folder, "--output", output, "--prompts", "gt-box")
    status, error = run_main(monkeypatch, capsys, *arguments)
    assert status == 2
    assert error.startswith(f"error: {folder / 'im' / '01.png'}: is 48 x 40 pixels, and 80 x 56 in {folder / 'gt'}")
    assert error.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda folder: Image.new("L", (48, 40)).save(folder / "gt" / "01.png"), "gt/01.png: the mask is empty"),
        (lambda folder: os.truncate(folder / "im" / "01.png", 2000), "im/01.png: cannot be read"),
        (lambda folder: os.truncate(folder / "gt" / "01.png", 60), "gt/01.png: cannot be read"),
    ],
    ids=["empty mask", "torn picture", "torn mask"],
)
def test_a_fault_that_only_reading_shows_is_named(monkeypatch, capsys, tmp_path, fault, words):
    folder = small.save_pairs(tmp_path / "pairs", 2)
    fault(folder)
    monkeypatch.setattr(systems, "load_model", small.by_name)
    arguments = ("hq", "--system", "base", "--data-dir", folder, "--output", tmp_path / "out", "--prompts", "gt-box")
    status, error = run_main(monkeypatch, capsys, *arguments)
    assert status == 2
    assert words in error
    assert error.count("\n") == 1


def test_options_are_those_of_the_documentation(monkeypatch):
    seen = []
    monkeypatch.setattr(systems, "load_model", lambda system, **_: seen.append(system) or small.by_name(system))
    monkeypatch.setattr(systems, "check_output", seen.append)
    command = "eval.main hq --system a b+c --data-dir nowhere --prompts gt-box n-box-50 --output out --seed 3 --limit 4"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as end:
        eval_main.main()
    assert end.value.code == 2
    assert seen == [pathlib.Path("out")]  # then the folders are looked at, then the systems


def test_an_option_that_is_not_known_is_answered_by_the_help_of_its_protocol(monkeypatch, capsys, tmp_path):
    required = ("--system", "a", "--data-dir", tmp_path, "--output", tmp_path / "out")
    status, error = run_main(monkeypatch, capsys, "hq", *required, "--limits", 3)
    assert status == 2
    assert error.count("--help") == 1
    assert " hq --help" in error


@pytest.mark.parametrize("protocol", ["coco", "sginw", "mess"])
def test_every_protocol_is_a_command_that_names_what_it_cannot_read(monkeypatch, capsys, tmp_path, protocol):
    arguments = (protocol, "--system", "base", "--data-dir", tmp_path / "nowhere", "--output", tmp_path / "results")
    status, error = run_main(monkeypatch, capsys, *arguments)
    assert status == 2
    assert "nowhere" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_devices_give_the_figures_of_one(results, config, monkeypatch, tmp_path):
    monkeypatch.setattr(systems, "load_model", small.by_name)
    hq(dataclasses.replace(config, output=tmp_path / "two", devices=2, figures=False))
    assert without_times(tmp_path / "two") == without_times(results)
    assert not (tmp_path / "two" / "figures").exists()
