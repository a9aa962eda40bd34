"""The parity command finds our models equal to the official ones, and would say so if they were not."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch

from eval.parity import __main__ as parity
from eval.parity import differences, torch_sam, twins
from eval.parity.quantities import SAM2_ONLY
from stablesam_jax.config import MODELS, HieraConfig, PluginConfig, SamConfig, ViTConfig
from stablesam_jax.files.checkpoint import save_model
from stablesam_jax.model import sam as sam_module
from stablesam_jax.model import transformer
from stablesam_torch import plugin as torch_plugin

CONFIG = SamConfig(
    encoder=ViTConfig(width=32, depth=2, heads=2, global_blocks=(1,)), image_size=160, embedding_width=64
)
HQ_CONFIG = dataclasses.replace(CONFIG, hq=True)
SAM2_CONFIG = SamConfig(encoder=HieraConfig(width=32, heads=2, depths=(1, 2, 3, 1), global_blocks=(4,)), image_size=160)
OF_HQ_SAM = [name for name in twins.QUANTITIES if name not in SAM2_ONLY]  # holds those of SAM


@pytest.fixture
def small_models(monkeypatch):
    """The names of ViT-B and of the tiny Hiera mean the small models of the tests."""
    monkeypatch.setitem(MODELS, "sam_vit_b", CONFIG)
    monkeypatch.setitem(MODELS, "hq_sam_vit_b", HQ_CONFIG)
    monkeypatch.setitem(MODELS, "sam2_hiera_t", SAM2_CONFIG)
    monkeypatch.setitem(MODELS, "stable_sam2_hiera_t", dataclasses.replace(SAM2_CONFIG, plugin=PluginConfig()))


@pytest.fixture
def run(tmp_path):
    """Runs the command: arguments -> exit status, and what it wrote as JSON."""

    def run(*arguments):
        status = parity.main([*arguments, "--json", str(tmp_path / "parity.json")])
        return status, json.loads((tmp_path / "parity.json").read_text())

    return run


@pytest.mark.slow
@pytest.mark.parametrize("model", ["hq_sam_vit_b", "hq_sam_vit_tiny"])
def test_the_official_models_are_ours_at_1024_pixels(model, run):
    # HQ-SAM holds SAM: the encoder, the prompts, and in the logits of each token SAM's own masks.
    status, found = run("--random", model)
    assert status == 0
    assert [row["quantity"] for row in found["rows"]] == OF_HQ_SAM
    assert found["image_size"] == 1024
    assert found["ok"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_models")
def test_sam_without_hq_is_the_official_one(run):
    status, found = run("--random", "sam_vit_b")
    assert status == 0
    assert {row["quantity"] for row in found["rows"]} == set(OF_HQ_SAM) - {
        twins.EARLY,
        twins.HQ_FEATURES,
        twins.TOKENS,
    }
    assert found["model"] == "sam_vit_b"
    assert found["image"]["file"] == "chelsea.jpg"
    assert found["versions"]["jax"] == jax.__version__


@pytest.mark.slow
@pytest.mark.usefixtures("small_models")
@pytest.mark.parametrize("reference", ["float32", "float64"])
def test_a_stable_sam_2_is_sam2_image_predictor_with_the_plugin_of_pytorch(run, reference):
    status, found = run("--random", "stable_sam2_hiera_t", "--reference", reference)
    assert status == 0
    names = [row["quantity"] for row in found["rows"]]
    gradients = [name for name in names if name.startswith(twins.GRADIENT)]
    assert len(gradients) == 15
    assert [name for name in names if name not in gradients] == [
        name for name in twins.QUANTITIES if name not in (twins.EARLY, twins.HQ_FEATURES)
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("small_models")
def test_a_sam_2_whose_box_lacks_its_padding_point_exceeds_the_bounds(run, monkeypatch):
    monkeypatch.setattr(sam_module, "with_padding_point", lambda prompts: prompts)
    status, found = run("--random", "sam2_hiera_t", "--image-size", "96")
    assert status == 1
    verdicts = {row["quantity"]: row["ok"] for row in found["rows"]}
    assert verdicts[twins.EMBEDDING]
    assert not verdicts[twins.LOW_RES]


@pytest.mark.slow
def test_stable_sam_has_the_logits_and_the_plugin_gradients_of_its_pytorch_twin(run):
    status, found = run("--random", "stable_sam_vit_b", "--image-size", "256")
    assert status == 0
    gradients = {row["quantity"]: row for row in found["rows"] if row["quantity"].startswith(twins.GRADIENT)}
    assert len(gradients) == 15
    assert all(row["deviation"] > 0 and row["rms_bound"] > 0 for row in gradients.values())
    assert f"{twins.GRADIENT}plugin/drp/scale" in gradients


@pytest.mark.slow
def test_a_thousandth_of_a_gradient_exceeds_the_bounds(run, monkeypatch):
    sample = torch_plugin.sample
    monkeypatch.setattr(
        torch_plugin,
        "sample",
        lambda x, offsets, padding: sample(x, 0.999 * offsets + 0.001 * offsets.detach(), padding),
    )
    status, found = run("--random", "stable_sam_vit_b", "--image-size", "256")
    assert status == 1
    verdicts = {row["quantity"]: row["ok"] for row in found["rows"]}
    assert verdicts[twins.LOW_RES]
    assert not verdicts[f"{twins.GRADIENT}plugin/dsp/offset/kernel"]


@pytest.mark.slow
def test_nano_is_official_but_for_its_encoder(run):
    status, found = run("--random", "hq_sam_nano", "--image-size", "128")
    assert status == 0
    features = [twins.EMBEDDING, twins.EARLY]
    assert found["without_twin"] == features
    assert {row["quantity"] for row in found["rows"]} == set(OF_HQ_SAM) - set(features)


@pytest.mark.usefixtures("small_models")
def test_the_smallest_known_mistake_exceeds_the_bounds(run, monkeypatch):
    monkeypatch.setattr(transformer, "DECODER_EPS", 1e-6)  # PyTorch's default is 1e-5
    status, found = run("--random", "sam_vit_b", "--image-size", "176")  # a size at which nothing is compiled yet
    assert status == 1
    verdicts = {row["quantity"]: row["ok"] for row in found["rows"]}
    assert verdicts[twins.EMBEDDING]
    assert not verdicts[twins.DECODER]
    assert not verdicts[twins.LOW_RES]


@pytest.mark.slow
@pytest.mark.usefixtures("small_models")
def test_bfloat16_is_measured_and_bounded_by_its_masks_alone(run):
    status, found = run("--random", "hq_sam_vit_b", "--dtype", "bfloat16")
    rows = {row["quantity"]: row for row in found["rows"]}
    assert status == 0
    assert found["masks"]["share_bound"] == 0.01
    assert all(row["largest_bound"] is None for row in found["rows"])
    assert rows[twins.EMBEDDING]["rms"] > 1e-3 * rows[twins.EMBEDDING]["deviation"]  # it is bfloat16
    assert rows[twins.SPARSE]["largest"] < 5e-6  # but prompts are not


@pytest.mark.slow
@pytest.mark.usefixtures("small_models")
def test_against_float64_bounds_grow_with_the_official_models_own_error(run):
    _, plain = run("--random", "hq_sam_vit_b")
    status, found = run("--random", "hq_sam_vit_b", "--reference", "float64")
    assert status == 0
    for row, before in zip(found["rows"], plain["rows"], strict=True):
        assert row["deviation"] == pytest.approx(before["deviation"], rel=1e-5)
        assert row["largest_bound"] >= 0.999 * before["largest_bound"]
        assert row["rms"] != before["rms"] or row["quantity"] == twins.INPUT


@pytest.mark.slow
@pytest.mark.usefixtures("small_models")
def test_an_official_file_is_recognised_and_compared(tmp_path, run):
    official = torch_sam.build(HQ_CONFIG)
    torch_sam.randomise(official, 1)
    torch.save(official.state_dict(), tmp_path / "sam.pth")
    status, found = run("--checkpoint", str(tmp_path / "sam.pth"))
    assert (status, found["model"]) == (0, "hq_sam_vit_b")


@pytest.mark.slow
@pytest.mark.usefixtures("small_models")
def test_a_checkpoint_folder_is_compared(tmp_path, run):
    save_model(tmp_path / "model", parity.draw_params(CONFIG, 2), config=CONFIG, source={})
    status, found = run("--checkpoint", str(tmp_path / "model"))
    assert (status, found["image_size"]) == (0, CONFIG.image_size)


def test_an_incomplete_checkpoint_is_refused_with_its_name(tmp_path, capsys):
    torch.save({"mask_decoder.iou_token.weight": torch.zeros(1, 256)}, tmp_path / "part.pth")
    with pytest.raises(SystemExit):
        parity.main(["--checkpoint", str(tmp_path / "part.pth")])
    assert "part.pth: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give either --random MODEL"),
        (["--random", "sam_vit_b", "--checkpoint", "sam.pth"], "Give either --random MODEL"),
        (["--checkpoint", "sam.pth", "--image-size", "512"], "Give either --random MODEL"),
        (["--checkpoint", "none.pth"], "none.pth: neither a shipped model"),
        (["--random", "vit_b"], "--random vit_b: no such model here; there are sam_vit_b, sam_vit_l"),
        (["--random", "sam_vit_b", "--image-size", "250"], "image size 250: must be a positive multiple of 16"),
        (["--random", "sam_vit_b", "--image", "none.png"], "none.png: cannot be read"),
        (
            ["--random", "sam_vit_b", "--json", "/dev/null/parity.json"],
            "--json /dev/null/parity.json: must be a file in a folder",
        ),
        (["--random", "sam_vit_b", "--threads", "0"], "--threads 0: must be at least 1"),
        (["--random", "sam_vit_b", "--seed", "-1"], "--seed -1: must be at least 0"),
    ],
)
@pytest.mark.usefixtures("small_models")
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        parity.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def outputs(value):
    return {name: np.full((4, 5), value, np.float32) for name in twins.QUANTITIES}


def test_equal_outputs_are_ok():
    assert all(row.ok for row in differences.compare(outputs(1.0), outputs(1.0)))


def test_an_output_that_is_not_a_number_fails():
    assert not any(row.ok for row in differences.compare(outputs(np.nan), outputs(1.0)))


def test_differences_are_the_largest_and_the_root_mean_square():
    ours = outputs(0.0)
    ours[twins.EMBEDDING][1, 2] = -3
    ours[twins.EMBEDDING][3, 4] = 4
    row = next(row for row in differences.compare(ours, outputs(0.0)) if row.quantity == twins.EMBEDDING)
    assert (row.largest, row.rms) == (4, pytest.approx((25 / 20) ** 0.5))


def test_a_row_of_float64_is_bound_by_four_times_the_official_float32_error():
    ours, own = outputs(1 + 3e-3), outputs(1 + 1e-3)
    assert all(row.ok for row in differences.compare(ours, outputs(1.0), own=own))
    assert not any(row.ok for row in differences.compare(outputs(1 + 5e-3), outputs(1.0), own=own))


def test_masks_fail_by_the_share_of_pixels_that_differ():
    theirs, ours = outputs(1e-9), outputs(1e-9)
    ours[twins.FULL_RES][0, 0] = -1e-9
    masks = differences.compare_masks(ours, theirs, share_bound=1e-5, logit_bound=1e-3)
    assert masks.share == 1 / 20
    assert not masks.ok
    assert differences.compare_masks(ours, theirs, share_bound=0.1, logit_bound=1e-3).ok


def test_masks_fail_by_the_logit_of_a_pixel_that_differs():
    ours = outputs(1.0)
    ours[twins.FULL_RES][0, 0] = -1
    assert not differences.compare_masks(ours, outputs(1.0), share_bound=0.1, logit_bound=1e-3).ok


def test_prompts_cover_points_boxes_and_masks_and_their_combinations():
    kinds = {
        (tuple(prompt.labels.tolist()), prompt.box is not None, prompt.mask is not None)
        for prompt in parity.draw_prompts(0, (300, 451), CONFIG.mask_size)
    }
    assert kinds == {
        ((), True, False),
        ((1,), False, False),
        ((1, 0, 1), False, False),
        ((1, -1, 0), True, False),
        ((), False, True),
        ((), True, True),
    }


def test_our_weights_reach_the_official_model_to_the_bit():
    official = torch_sam.build(HQ_CONFIG)
    torch_sam.randomise(official, 0)
    again = twins.load_official(HQ_CONFIG, twins.convert(official.state_dict(), HQ_CONFIG))
    for name, tensor in official.state_dict().items():
        assert tensor.equal(again.state_dict()[name]), name


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


def test_a_plugin_that_changes_no_mask_has_gradients_of_zero_in_the_table(capsys):
    zero = differences.Row("gradient of plugin/dsp/norm/bias", 0.0, 0.0, 0.0, 0.0, 0.0)
    masks = differences.MaskRow(100, 0, 0.0, 1e-5, 1e-3)
    parity.print_table([zero], masks, [])
    assert capsys.readouterr().out.count("ok") == 2
