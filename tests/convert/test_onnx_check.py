"""The check runs the files beside our predictor, in the forms that clients send, and sees what differs."""

import numpy as np
import pytest

from convert import to_onnx
from convert.onnx_check import in_frame, photographs, prompts, uncropped
from stablesam_jax.files.checkpoint import save_model
from tests.reference import small

FORMS = ["box", "point", "points", "box+point"]


def test_photographs_are_resized_as_clients_do_and_prompts_lie_on_the_object():
    for picture, mask in photographs():
        resized = in_frame(picture)
        assert max(resized.shape) == 1024
        found = prompts(mask, resized.shape[:2])
        assert list(found) == FORMS
        scale = mask.shape[1] / resized.shape[1]
        for x, y in found["points"].points * scale:
            assert mask[round(y), round(x)]
        left, top, right, bottom = np.round(found["box"].box * scale).astype(int)
        assert mask[top : bottom + 1, left : right + 1].sum() == mask.sum()


def test_a_cropped_mask_goes_back_to_its_place():
    edges = {"xtl": 2, "ytl": 1, "xbr": 3, "ybr": 1}
    mask = uncropped({"masks": np.array([[[[1, 0]]]], np.uint8)} | edges, (3, 5))
    np.testing.assert_array_equal(np.argwhere(mask), [[1, 2]])


@pytest.mark.slow
def test_the_command_reports_a_share_for_every_form(tmp_path, capsys):
    sam, params = small.nano()
    save_model(tmp_path / "model", params, config=sam.config, source={})
    arguments = ["--system", str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--check"]
    to_onnx.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    found = [line.removeprefix("equal, ").split() for line in lines if line.startswith("equal")]
    shares = {form: float(share) for form, share, *_ in found}
    assert list(shares) == FORMS
    assert min(shares.values()) >= 99.99
