"""The parity command finds our SAM equal to the official one, and would say so if it were not."""

import numpy as np
import pytest
import torch

from eval import parity, torch_sam
from stablesam_jax.config import MODELS
from stablesam_jax.model import transformer
from tests.reference.sam_pair import CONFIG


@pytest.fixture
def small_model(monkeypatch):
    """--random sam_vit_b means the small model of the tests."""
    monkeypatch.setitem(MODELS, "sam_vit_b", CONFIG)


def test_vit_b_at_256_pixels_is_the_official_model(capsys):
    # Its real widths and depth; 16 cells, so windows are padded. `make parity` runs it at 1024.
    assert parity.main(["--random", "sam_vit_b", "--image-size", "256"]) == 0
    table = capsys.readouterr().out
    assert table.count(" ok ") == len(parity.BOUNDS) + 1


@pytest.mark.usefixtures("small_model")
def test_the_smallest_known_mistake_exceeds_the_bounds(capsys, monkeypatch):
    monkeypatch.setattr(transformer, "DECODER_EPS", 1e-6)  # PyTorch's default is 1e-5
    assert parity.main(["--random", "sam_vit_b"]) == 1
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    verdicts = {line[1].strip(): line[7].strip() for line in lines}
    assert verdicts["image embedding"] == "ok"
    assert verdicts["decoder alone"] == verdicts["low-resolution logits"] == "FAIL"


@pytest.mark.usefixtures("small_model")
def test_a_checkpoint_is_recognised_and_compared(tmp_path):
    official = torch_sam.build(CONFIG)
    torch_sam.randomise(official, 1)
    torch.save(official.state_dict(), tmp_path / "sam.pth")
    assert parity.main(["--checkpoint", str(tmp_path / "sam.pth")]) == 0


def test_an_incomplete_checkpoint_is_refused_with_its_name(tmp_path, capsys):
    torch.save({"mask_decoder.iou_token.weight": torch.zeros(1, 256)}, tmp_path / "part.pth")
    with pytest.raises(SystemExit):
        parity.main(["--checkpoint", str(tmp_path / "part.pth")])
    assert "part.pth: The image encoder is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give either --random MODEL"),
        (["--random", "sam_vit_b", "--checkpoint", "sam.pth"], "Give either --random MODEL"),
        (["--checkpoint", "sam.pth", "--image-size", "512"], "Give either --random MODEL"),
        (["--checkpoint", "none.pth"], "none.pth: no such file"),
        (["--random", "sam_vit_b", "--image-size", "250"], "--image-size 250: give a multiple of 16"),
        (["--random", "sam_vit_b", "--picture", "none.png"], "none.png: cannot be read"),
    ],
)
@pytest.mark.usefixtures("small_model")
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        parity.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def outputs(value):
    return {name: np.full((4, 5), value, np.float32) for name in parity.BOUNDS}


def test_equal_outputs_are_ok():
    assert all(row.ok for row in parity.compare(outputs(1.0), outputs(1.0)))


def test_an_output_that_is_not_a_number_fails():
    rows = parity.compare(outputs(np.nan), outputs(1.0))
    assert not any(row.ok for row in rows)


def test_masks_fail_by_the_share_of_pixels_that_differ():
    theirs, ours = outputs(1e-9), outputs(1e-9)
    ours["full-resolution logits"][0, 0] = -1e-9
    masks = parity.compare(ours, theirs)[-1]
    assert masks.rms == 1 / 20
    assert not masks.ok


def test_prompts_cover_points_boxes_and_masks_and_their_combinations():
    kinds = {
        (len(prompt.labels), prompt.box is not None, prompt.mask is not None)
        for prompt in parity.draw_prompts(0, (300, 451), CONFIG.mask_size)
    }
    assert kinds == {
        (0, True, False),
        (1, False, False),
        (3, False, False),
        (3, True, False),
        (0, False, True),
        (0, True, True),
    }


def test_random_weights_leave_no_tensor_trivial():
    official = torch_sam.build(CONFIG)
    torch_sam.randomise(official, 0)
    for name, tensor in official.state_dict().items():
        assert 0.005 < tensor.std() < 2, name


def test_random_weights_are_those_of_their_seed():
    def weights(seed):
        official = torch_sam.build(CONFIG)
        torch_sam.randomise(official, seed)
        return official.mask_decoder.iou_token.weight.detach()

    assert weights(0).equal(weights(0))
    assert not weights(0).equal(weights(1))
