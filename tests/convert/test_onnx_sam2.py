"""The files of a SAM 2 have samexporter's interface and our masks. onnxruntime runs them."""

import functools

import jax
import numpy as np
import onnx
import pytest

from convert import onnx_sam2_check, to_onnx
from convert.onnx_sam2_check import Sam2Client, our_mask
from eval.parity import torch_sam, twins
from stablesam_jax.build import assemble, load_model, with_plugin
from stablesam_jax.config import PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files.checkpoint import save_model
from stablesam_jax.predict.postprocess import upscale_masks
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.prompts import Prompt
from tests.reference import small

CONFIG = small.SAM2_CONFIG
PICTURE = np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)
SIZE = PICTURE.shape[:2]
EQUAL = 0.9999  # of mask pixels
BOX = Prompt(box=np.array([20.0, 30, 100, 80]))
POINT = Prompt(points=np.array([[60.0, 40]]), labels=np.array([1]))
POINTS = Prompt(points=np.array([[60.0, 40], [120, 70]]), labels=np.array([1, 0]))


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A folder with a small SAM 2 and a plugin whose every parameter has an effect."""
    official = torch_sam.build(CONFIG)
    torch_sam.randomise(official, seed=0)
    base = twins.convert(official.state_dict(), CONFIG)
    sam, params = with_plugin(assemble(CONFIG), base, PluginConfig(), jax.random.key(0))
    rng = np.random.default_rng(5)
    noisy = jax.tree.map(lambda leaf: np.float32(leaf + 0.1 * rng.standard_normal(leaf.shape)), params["plugin"])
    folder = tmp_path_factory.mktemp("system") / "model"
    save_model(folder, base | {"plugin": jax.device_get(noisy)}, config=sam.config, source={})
    return folder


@functools.cache
def client(folder):
    return Sam2Client(folder / "encoder.onnx", folder / "decoder.onnx")


@pytest.fixture(scope="module")
def predictor(system):
    with small.quick_compilation():
        yield Predictor(*load_model(system))


def shown(masks, iou):
    """(M, 4G, 4G) and (M,) -> the mask that clients take, (H, W) bool."""
    return upscale_masks(masks[int(np.argmax(iou))], SIZE, CONFIG.frame)


def test_names_and_shapes_are_those_of_samexporter(files):
    run = client(files())
    (given,) = run.encoder.get_inputs()
    assert (given.name, given.shape) == ("image", [1, 3, 64, 64])
    assert {output.name: output.shape for output in run.encoder.get_outputs()} == {
        "high_res_feats_0": [1, 32, 16, 16],
        "high_res_feats_1": [1, 64, 8, 8],
        "image_embed": [1, 256, 4, 4],
    }
    assert [(given.name, given.shape) for given in run.decoder.get_inputs()] == [
        ("image_embed", [1, 256, 4, 4]),
        ("high_res_feats_0", [1, 32, 16, 16]),
        ("high_res_feats_1", [1, 64, 8, 8]),
        ("point_coords", ["num_labels", "num_points", 2]),
        ("point_labels", ["num_labels", "num_points"]),
        ("mask_input", ["num_labels", 1, 16, 16]),
        ("has_mask_input", ["num_labels"]),
    ]
    assert [output.name for output in run.decoder.get_outputs()] == ["masks", "iou_predictions"]
    for name in ("encoder.onnx", "decoder.onnx"):
        onnx.checker.check_model(files() / name, full_check=True)


@pytest.mark.slow
@pytest.mark.parametrize("single", [True, False])
def test_masks_are_ours_for_every_form_of_prompt(files, predictor, single):
    run, own = client(files(single=single)), predictor.encode(PICTURE)
    maps = run.encode(PICTURE, CONFIG)
    for prompt in (BOX, POINT, POINTS, Prompt(points=POINT.points, labels=POINT.labels, box=BOX.box)):
        masks, iou = run.decode(maps, [prompt], SIZE)
        assert masks.shape == (1, 1 if single else 3, 16, 16)
        expected = our_mask(predictor, own, prompt, single=single)
        assert 0.005 < expected.mean() < 0.995
        assert np.mean(shown(masks[0], iou[0]) == expected) >= EQUAL


@pytest.mark.slow
def test_the_plugin_is_inside(files, predictor):
    masks, iou = client(files()).decode(client(files()).encode(PICTURE, CONFIG), [BOX], SIZE)
    plain = predictor.without_plugin()
    expected = our_mask(plain, plain.encode(PICTURE), BOX, single=False)
    assert np.mean(shown(masks[0], iou[0]) == expected) < EQUAL


@pytest.mark.slow
def test_several_prompts_at_once_with_and_without_a_mask(files, predictor):
    run = client(files())
    maps = run.encode(PICTURE, CONFIG)
    masks, iou = run.decode(maps, [BOX, POINTS], SIZE)
    own = predictor.encode(PICTURE)
    for prompt, its_masks, its_iou in zip((BOX, POINTS), masks, iou, strict=True):
        assert np.mean(shown(its_masks, its_iou) == our_mask(predictor, own, prompt, single=False)) >= EQUAL
    again = Prompt(points=POINTS.points, labels=POINTS.labels, mask=masks[1, 0])
    found, scores = run.decode(maps, [again], SIZE)
    expected = our_mask(predictor, own, again, single=False)
    assert np.mean(shown(found[0], scores[0]) == expected) >= EQUAL
    assert np.mean(shown(masks[1], iou[1]) == expected) < EQUAL  # the mask has an effect
    assert np.abs(masks).max() <= 32


@pytest.mark.slow
def test_the_check_compares_both_with_our_predictor(files, system, monkeypatch):
    sam, params = load_model(system)
    monkeypatch.setattr(onnx_sam2_check, "photographs", lambda: [(PICTURE, np.pad(np.ones((30, 60), bool), 30))])
    folder = files()
    arguments = folder / "encoder.onnx", folder / "decoder.onnx", sam
    with small.quick_compilation():
        assert min(onnx_sam2_check.equal_pixels(*arguments, params).values()) >= EQUAL
        moved = params | {"plugin": jax.tree.map(lambda leaf: leaf + 0.1, params["plugin"])}
        assert min(onnx_sam2_check.equal_pixels(*arguments, moved).values()) < EQUAL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": True, "single": True}, "is a SAM 2, whose clients take one form of files"),
        ({"low_res_masks": False}, "is a SAM 2, whose clients take one form of files"),
        ({"encoder_input": "raw"}, "is a SAM 2, whose clients take one form of files"),
    ],
)
def test_options_of_sams_clients_are_refused(system, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        to_onnx.convert(to_onnx.Options(system=str(system), output=tmp_path / "onnx", **options))
    assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
def test_a_first_pass_is_refused(tmp_path):
    sam, params = with_plugin(*small.sam2(), PluginConfig(first_pass=(0.9, 0.1, 0.5, 0.6)), jax.random.key(0))
    with pytest.raises(InputError, match="its plugin has a first pass, which PyTorch's SAM 2 cannot have"):
        to_onnx.torch_model(sam, params, "X")
