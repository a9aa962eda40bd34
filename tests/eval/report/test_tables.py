"""Results are fractions for programs, percent for people, and never overwritten."""

import io
import json

import pytest
from rich.console import Console

from eval.journal import JOURNAL
from eval.report import tables
from eval.report.bootstrap import Interval
from stablesam_jax.errors import InputError

SETS = {
    "horses": {"gt-box": {"miou": 0.5, "mbiou": 0.25, "msf": 1.0}, "1-point": {"miou": 0.1, "mbiou": 0.0, "msf": 0.3}},
    "coins": {"gt-box": {"miou": 0.7, "mbiou": 0.75, "msf": 0.5}, "1-point": {"miou": 0.3, "mbiou": 0.2, "msf": 0.5}},
}


def rendered(table, width=400):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_the_mean_of_sets_is_unweighted():
    mean = tables.mean_of_sets(SETS)
    assert mean["gt-box"] == pytest.approx({"miou": 0.6, "mbiou": 0.5, "msf": 0.75})
    assert mean["1-point"] == pytest.approx({"miou": 0.2, "mbiou": 0.1, "msf": 0.4})


def test_a_table_has_a_row_for_each_entry_in_percent():
    lines = rendered(tables.table(SETS, title="two sets", first="set")).splitlines()
    assert "two sets" in lines[0]
    horses = next(line for line in lines if "horses" in line)
    assert " ".join(horses.split()[1:]) == "50.0/25.0/100.0 10.0/0.0/30.0"
    assert "mIoU / mBIoU / mSF in percent" in lines[-1]


def test_the_same_table_in_markdown():
    assert tables.markdown(SETS, first="set").splitlines() == [
        "| set | gt-box | 1-point |",
        "|---|---|---|",
        "| horses | 50.0 / 25.0 / 100.0 | 10.0 / 0.0 / 30.0 |",
        "| coins | 70.0 / 75.0 / 50.0 | 30.0 / 20.0 / 50.0 |",
    ]


def test_what_has_no_figure_is_a_dash_null_in_json_and_left_out_of_the_mean(tmp_path):
    nan = float("nan")
    sets = {"a": {"gt-box": {"ap": 0.5, "ap50": nan}}, "b": {"gt-box": {"ap": nan, "ap50": nan}}}
    sets["mean"] = tables.mean_of_sets(sets)
    tables.write_results(tmp_path, {"base": sets}, {}, metrics=("ap", "ap50"))
    stored = json.loads((tmp_path / "results.json").read_text())["systems"]["base"]
    assert stored["a"]["gt-box"] == stored["mean"]["gt-box"] == {"ap": 0.5, "ap50": None}
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("AP / AP50 in percent.")
    assert "| base | 50.0 / - |" in text
    assert "| base | - / - |" in text


def test_no_figure_is_cut_off_and_no_name_is_taken_for_markup(capfd):
    kinds = {f"{number}-points": SETS["horses"]["gt-box"] for number in range(8)}
    name = "runs/[bold]/model+" + 60 * "x"
    tables.show([tables.table({name: kinds}, title="wide", first="system")])
    printed = capfd.readouterr().out
    assert name in printed
    assert printed.count("50.0/25.0/100.0") == 8


def test_results_are_fractions_in_the_documented_schema(tmp_path):
    folder = tmp_path / "a" / "b"
    results = {"base": SETS | {"mean": tables.mean_of_sets(SETS)}}
    tables.write_results(folder, results, {"seed": 3})
    assert json.loads((folder / "results.json").read_text()) == {"systems": results, "meta": {"seed": 3}}
    text = (folder / "results.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## horses", "## coins", "## mean"]
    assert "| base | 60.0 / 50.0 / 75.0 | 20.0 / 10.0 / 40.0 |" in text
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "results.md"]


def test_differences_have_their_interval_and_noise_is_shown_as_noise(tmp_path):
    nan = float("nan")
    row = {"gt-box": {"miou": Interval(0.03, 0.01, 0.05)}, "1-point": {"miou": Interval(-0.002, -0.02, 0.01)}}
    one_picture = {kind: {"miou": Interval(0.1, nan, nan)} for kind in row}
    uncertainty = tables.Uncertainty(
        intervals={"base": {"a": row}}, differences={("base", "other"): {"a": row, "b": one_picture}}
    )
    results = {"base": {"a": SETS["horses"]}, "other": {"a": SETS["horses"]}}
    tables.write_results(tmp_path, results, {}, metrics=("miou",), uncertainty=uncertainty)
    text = (tmp_path / "results.md").read_text()
    assert "## Differences from base" in text
    assert "| other | mIoU | +3.0 (+1.0 to +5.0) | ≈ -0.2 (-2.0 to +1.0) |" in text
    assert "| other | mIoU | ≈ +10.0 | ≈ +10.0 |" in text
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["intervals"]["base"]["a"]["gt-box"]["miou"] == [0.01, 0.05]
    assert stored["differences"]["base"]["other"]["a"]["gt-box"]["miou"] == {"value": 0.03, "low": 0.01, "high": 0.05}
    assert stored["differences"]["base"]["other"]["b"]["gt-box"]["miou"] == {"value": 0.1, "low": None, "high": None}
    assert list(stored) == ["systems", "intervals", "differences", "meta"]


def test_rivals_are_set_against_each_other_and_not_only_against_the_base(tmp_path):
    row = {"gt-box": {"miou": Interval(0.03, 0.01, 0.05)}}
    pairs = {pair: {"a": row} for pair in (("base", "one"), ("base", "two"), ("one", "two"))}
    results = {name: {"a": SETS["horses"]} for name in ("base", "one", "two")}
    uncertainty = tables.Uncertainty(intervals={}, differences=pairs)
    tables.write_results(tmp_path, results, {}, metrics=("miou",), uncertainty=uncertainty)
    headings = [line for line in (tmp_path / "results.md").read_text().splitlines() if line.startswith("## Diff")]
    assert headings == ["## Differences from base", "## Differences from one"]
    stored = json.loads((tmp_path / "results.json").read_text())["differences"]
    assert {first: list(rows) for first, rows in stored.items()} == {"base": ["one", "two"], "one": ["two"]}


def test_results_beside_a_journal_are_unfinished_and_may_be_written_again(tmp_path):
    (tmp_path / "per_image.csv").write_text("half")
    (tmp_path / JOURNAL).write_text("")
    tables.check_output(tmp_path)


@pytest.mark.parametrize("name", tables.RESULT_FILES)
def test_results_are_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="holds results already, and nothing is overwritten; give another --output"):
        tables.check_output(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_looking_at_the_output_makes_nothing(tmp_path):
    tables.check_output(tmp_path / "a" / "b")
    tables.check_output(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("below", "message"),
    [(".", "is a file; give a folder as --output"), ("a/b", "file is no folder that can be written")],
)
def test_a_file_in_the_way_is_one_line(tmp_path, below, message):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match=message):
        tables.check_output(file / below)


def test_four_kinds_and_a_long_name_fit_a_terminal_of_80_columns():
    kinds = ("gt-box", "noisy-box", "1-point", "3-points")
    row = {kind: {"miou": 0.5, "mbiou": 0.25, "msf": 1.0} for kind in kinds}
    text = rendered(tables.table({"before": row, "sam_nano+runs/mine/plugin.safetensors": row}, title="", first=""), 80)
    assert text.count("50.0/25.0/100.0") == 8
    assert "before" in text
    assert "…" not in text
