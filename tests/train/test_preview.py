"""The sheet shows the first samples of a run, as the model would get them, and makes no run."""

import numpy as np
import pytest
from PIL import Image

from stablesam_jax.data.pipeline import TRAINING_KINDS, draw_prompt
from stablesam_jax.model.prompt_encoder import sparse_tokens
from tests.reference import small
from train import preview

DISC = np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 20


@pytest.mark.parametrize("kind", TRAINING_KINDS)
def test_a_prompt_is_read_back_from_its_tokens(kind):
    drawn = draw_prompt(np.random.default_rng(0), kind, DISC, mask_size=16)
    coords, labels, _ = sparse_tokens(drawn.points, drawn.labels, drawn.box, length=11)
    found = preview.read_tokens(coords, labels)
    np.testing.assert_array_equal(found.points, drawn.points)
    np.testing.assert_array_equal(found.labels, drawn.labels)
    assert (found.box is None) == (drawn.box is None)
    if drawn.box is not None:
        np.testing.assert_array_equal(found.box, drawn.box)


def test_the_caption_says_which_prompt_and_how_good():
    said = {
        kind: preview.caption(draw_prompt(np.random.default_rng(1), kind, DISC, mask_size=16), DISC)
        for kind in TRAINING_KINDS
    }
    assert said["gt-box"] == "box, IoU 1.00"
    assert 0.5 <= float(said["noisy-box"].removeprefix("box, IoU ")) < 0.9
    assert said["10-points"] == "10 points"
    assert said["coarse-mask"].startswith("mask, IoU 0.")
    assert said["refine"].startswith("1 point and mask, IoU 0.")


def test_the_command_writes_a_sheet_and_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = small.save_pairs(tmp_path / "pictures", 6)
    options = ["--data-dir", str(folder), "--image-size", "64", "--count", "5", "--occlusion", "1.0"]
    preview.main(["stable-sam", *options, "--sheet", "sheet.png"])
    with Image.open("sheet.png") as sheet:
        assert sheet.size[0] > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "sheet.png"]
    assert capsys.readouterr().out == "written: sheet.png\n"


@pytest.mark.parametrize(
    "options",
    [
        ["--count", "0"],
        ["--sheet", "sheet"],
        ["--sheet", "folder.png"],
        ["--held-out", "-3"],
        ["--limit", "0"],
    ],
)
def test_a_sheet_that_cannot_be_made_is_refused(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SystemExit) as end:
        preview.main(options)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {options[0]} {options[1]}: must be")
