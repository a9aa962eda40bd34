"""Notebooks run from top to bottom on the shipped models, and lie in the repository without their outputs."""

import json
import pathlib
import re

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "notebooks"
FIGURES = {"quickstart": 3, "train_on_your_data": 3, "inside_the_plugin": 3}


@pytest.fixture(scope="module", params=FIGURES)
def executed(request) -> tuple[str, nbformat.NotebookNode]:
    """A notebook after its last cell; a cell that fails, fails here."""
    notebook = nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    return request.param, notebook


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == FIGURES.keys()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_lies_here_without_outputs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_it_shows_its_figures_and_warns_of_nothing(executed):
    name, notebook = executed
    shown = outputs(notebook)
    assert sum("image/png" in output.get("data", {}) for output in shown) == FIGURES[name]
    assert [output.text for output in shown if output.get("name") == "stderr"] == []


@pytest.mark.parametrize("executed", ["quickstart"], indirect=True)
def test_the_plugin_lowers_neither_score_in_any_of_five_draws(executed):
    _, notebook = executed
    printed = "".join(output.text for output in outputs(notebook) if output.output_type == "stream")
    lines = re.findall(r"draw (\d).*SAM: mIoU (\d+), mSF (\d+).*Stable-SAM: mIoU (\d+), mSF (\d+)", printed)
    assert [int(line[0]) for line in lines] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for sam_iou, sam_msf, stable_iou, stable_msf in (map(int, line[1:]) for line in lines):
        assert stable_iou >= sam_iou
        assert stable_msf >= sam_msf
