"""Tables and values of the pages are what the files in results/measured/ say."""

import importlib.util
import itertools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("render", ROOT / "results" / "render.py")
render = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(render)

FILLED = [path for path in render.pages() if render.PLACE.search(path.read_text())]


@pytest.mark.parametrize("path", FILLED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_is_what_the_files_say(path):
    text = path.read_text()
    assert render.rendered(text) == text


def test_the_readme_and_the_results_have_such_places():
    assert {"README.md", "results/README.md", "docs/speed.md"} <= {path.relative_to(ROOT).as_posix() for path in FILLED}


@pytest.mark.parametrize("path", FILLED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_line_within_a_paragraph_begins_with_a_comment(path):
    """It would end the paragraph."""
    lines = path.read_text().splitlines()
    assert [one for above, one in itertools.pairwise(lines) if one.startswith("<!-- ") and above.strip()] == []


def test_a_changed_value_is_noticed():
    text = (ROOT / "results" / "robustness.md").read_text()
    assert render.rendered(text.replace("78.7", "87.7")) == text


def test_every_file_is_shown_somewhere():
    shown = "".join(path.read_text() for path in FILLED) + (ROOT / "results" / "render.py").read_text()
    assert [path.stem for path in (ROOT / "results" / "measured").iterdir() if path.stem not in shown] == []


def test_every_csv_names_its_command():
    for path in (ROOT / "results" / "measured").glob("*.csv"):
        comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
        assert len(comments) >= 2, path.name
