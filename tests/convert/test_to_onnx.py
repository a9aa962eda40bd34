"""The files have SAM's interface and our masks, in the request form of every client. onnxruntime runs them."""

import dataclasses
import functools

import jax
import numpy as np
import onnx
import pytest

from convert import to_onnx
from convert.onnx_check import Client, in_frame, our_mask, prompts, uncropped
from convert.onnx_graph import SAM_MEAN, SAM_STD
from eval.parity import torch_sam, twins
from stablesam_jax.build import assemble, load_model, with_plugin
from stablesam_jax.config import PluginConfig
from stablesam_jax.files.checkpoint import save_model
from stablesam_jax.predict.postprocess import upscale_masks
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.prompts import Prompt
from tests.reference import official, small
from tests.reference.tiers import slow

PLUGIN = PluginConfig(first_pass=(0.9, 0.1, 0.5, 0.6))
SIZE = (333, 500)
EQUAL = 0.9999  # of mask pixels


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A folder with a small sam_nano of 64 px and its plugin: sixteen pixels of a client are one of its input."""
    folder = tmp_path_factory.mktemp("system") / "model"
    sam, params = small.system(hq=False, plugin=PLUGIN)
    rng = np.random.default_rng(5)
    noisy = _with_noise(params["plugin"], rng)
    save_model(folder, params | {"plugin": noisy}, config=sam.config, source={})
    return folder


def _with_noise(tree, rng):
    if isinstance(tree, dict):
        return {name: _with_noise(leaf, rng) for name, leaf in tree.items()}
    return np.float32(tree + 0.1 * rng.standard_normal(np.shape(tree)))


@functools.cache
def client(folder):
    return Client(folder / "encoder.onnx", folder / "decoder.onnx")


@pytest.fixture(scope="module")
def predictor(system):
    return Predictor(*load_model(system))


@pytest.fixture(scope="module")
def picture():
    """Blocks of colour, whose edges random weights respond to."""
    rng = np.random.default_rng(3)
    return np.kron(rng.integers(0, 256, (9, 10, 3), np.uint8), np.ones((37, 50, 1), np.uint8))


@pytest.fixture(scope="module")
def resized(picture):
    return in_frame(picture)


@pytest.fixture(scope="module")
def forms(resized):
    mask = np.zeros(SIZE, bool)
    mask[100:250, 150:390] = True
    return prompts(mask, resized.shape[:2])


def test_names_and_shapes_are_those_of_sams_exporter(files):
    folder = files(single=True)
    decoder = client(folder).decoder
    assert {given.name: given.shape for given in decoder.get_inputs()} == {
        "image_embeddings": [1, 256, 64, 64],
        "point_coords": [1, "num_points", 2],
        "point_labels": [1, "num_points"],
        "mask_input": [1, 1, 256, 256],
        "has_mask_input": [1],
        "orig_im_size": [2],
    }
    assert [output.name for output in decoder.get_outputs()] == ["masks", "iou_predictions", "low_res_masks"]
    (given,) = client(folder).encoder.get_inputs()
    assert (given.name, given.shape) == ("input_image", ["height", "width", 3])
    onnx.checker.check_model(folder / "encoder.onnx", full_check=True)
    onnx.checker.check_model(folder / "decoder.onnx", full_check=True)


@pytest.mark.slow
def test_masks_are_ours_for_every_form_of_prompt(files, predictor, resized, forms):
    run, own = client(files(single=True)), predictor.encode(resized)
    embedding = run.encode(resized)
    for form, prompt in forms.items():
        expected = our_mask(predictor, own, prompt, SIZE)
        assert 0.005 < expected.mean() < 0.995, form
        assert np.mean(run.mask(embedding, prompt, SIZE) == expected) >= EQUAL, form


@pytest.mark.slow
def test_all_four_masks_start_with_the_single_one(files, resized, forms):
    single, every = client(files(single=True)), client(files())
    embedding = every.encode(resized)
    one, four = (run.decode(embedding, forms["box"], SIZE) for run in (single, every))
    assert (four["masks"].shape, four["iou_predictions"].shape) == ((1, 4, *SIZE), (1, 4))
    np.testing.assert_array_equal(four["masks"][:, :1], one["masks"])
    np.testing.assert_array_equal(
        every.mask(embedding, forms["point"], SIZE), single.mask(embedding, forms["point"], SIZE)
    )


def feeds_of(embedding, **changed):
    """What every client sends, for a point of the picture."""
    return {
        **embedding,
        "point_coords": np.array([[[400.0, 300], [0, 0]]], np.float32),
        "point_labels": np.array([[1.0, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(SIZE, np.float32),
    } | changed


@pytest.mark.slow
def test_low_resolution_masks_may_be_fed_back(files, predictor, resized, forms):
    run = client(files(single=True))
    embedding, own = run.encode(resized), predictor.encode(resized)
    _, _, low_res = run.decoder.run(None, feeds_of(embedding))
    again, _, _ = run.decoder.run(None, feeds_of(embedding, mask_input=low_res, has_mask_input=np.ones(1, np.float32)))
    ours = {"point_coords": [[400.0, 300]], "point_labels": [1], "picture": own}
    three, scores = predictor.predict_low_res(**ours)
    best = three[None, int(np.argmax(scores))]
    three, scores = predictor.predict_low_res(**ours, mask_input=best)
    expected = upscale_masks(three[int(np.argmax(scores))], SIZE, small.CONFIG.frame, (43, 64))
    assert np.mean((again[0, 0] > 0) == expected) >= EQUAL
    assert (
        np.mean(upscale_masks(best[0], SIZE, small.CONFIG.frame, (43, 64)) == expected) < EQUAL
    )  # the mask has an effect


def test_no_mask_input_is_zero_or_minus_one_whatever_the_mask_is(files, resized):
    run = client(files(single=True))
    embedding = run.encode(resized)
    expected = run.decoder.run(None, feeds_of(embedding))
    noise = np.full((1, 1, 256, 256), np.nan, np.float32)
    for absent in (0, -1):  # osam sends -1
        found = run.decoder.run(None, feeds_of(embedding, has_mask_input=np.float32([absent]), mask_input=noise))
        np.testing.assert_array_equal(found[0], expected[0])


def osam(run, picture):
    """Feeds of osam (labelme): a normalised square, -1 for no mask, padding after any prompt, by position."""
    pixels = np.pad((in_frame(picture) - np.float32(SAM_MEAN)) / np.float32(SAM_STD), ((0, 1024 - 682), (0, 0), (0, 0)))
    features = run.encoder.run(None, {"x": pixels.transpose(2, 0, 1)[None].astype(np.float32)})[0]
    coords = np.array([[[300.0, 200], [900, 600], [0, 0]]], np.float32)
    labels, absent = np.array([[2.0, 3, -1]], np.float32), np.array([-1.0], np.float32)
    changed = {"point_coords": coords, "point_labels": labels, "has_mask_input": absent}
    masks, _, _ = run.decoder.run(None, feeds_of({"image_embeddings": features}, **changed))
    return masks[0, 0] > 0


def x_anylabeling(run, picture):
    """Feeds of X-AnyLabeling: the picture in 684 x 1024 pixels, whose masks it resizes itself."""
    frame = np.zeros((684, 1024, 3), np.uint8)
    frame[:682] = in_frame(picture)
    name = run.encoder.get_inputs()[0].name
    features, *early = run.encoder.run(None, {name: frame.astype(np.float32)})
    embedding = {"image_embeddings": features} | ({"interm_embeddings": np.stack(early)} if early else {})
    coords = np.array([[[300.0, 200], [900, 600], [0, 0]]], np.float32)
    masks, _, _ = run.decoder.run(
        None,
        feeds_of(
            embedding,
            point_coords=coords,
            point_labels=np.array([[2.0, 3, -1]], np.float32),
            orig_im_size=np.array([684, 1024], np.float32),
        ),
    )
    return frame, masks[0][0] > 0


def samexporter(run, picture):
    """Feeds of samexporter 0.5: the resized picture; without low_res_masks it takes the first output."""
    name = run.encoder.get_inputs()[0].name
    features = run.encoder.run(None, {name: in_frame(picture).astype(np.float32)})[0]
    outputs = [output.name for output in run.decoder.get_outputs()]
    assert "low_res_masks" not in outputs
    coords = np.array([[[300.0, 200], [900, 600], [0, 0]]], np.float32)
    feeds = feeds_of({"image_embeddings": features}, point_coords=coords)
    masks = run.decoder.run(None, feeds | {"point_labels": np.array([[2.0, 3, -1]], np.float32)})[0]
    assert masks.shape[-2:] == SIZE
    return masks[0, 0] > 0


def cvat(run, picture):
    """Feeds of CVAT's worker: the embedding as a flat buffer, corners first, no padding; bytes and edges by name."""
    flat = run.encode(in_frame(picture))["image_embeddings"].tobytes()
    embedding = {"image_embeddings": np.frombuffer(flat, np.float32).reshape(1, 256, 64, 64)}
    coords = np.array([[[300.0, 200], [900, 600]]], np.float32)
    names = ["xtl", "ytl", "xbr", "ybr", "masks", "low_res_masks"]
    feeds = feeds_of(embedding, point_coords=coords, point_labels=np.array([[2.0, 3]], np.float32))
    found = dict(zip(names, run.decoder.run(names, feeds), strict=True))
    assert found["masks"].dtype == np.uint8
    assert found["masks"].size == (found["xbr"] - found["xtl"] + 1) * (found["ybr"] - found["ytl"] + 1)
    assert found["low_res_masks"].shape == (1, 1, 256, 256)
    return uncropped(found, SIZE)


@pytest.mark.parametrize(
    ("feed", "options"),
    [
        (x_anylabeling, {"single": True}),
        *slow(
            (osam, {"single": True, "encoder_input": "normalised"}),
            (samexporter, {"single": True, "low_res_masks": False}),
            (cvat, {"single": True, "boxes": True}),
        ),
    ],
)
def test_each_clients_feeds_give_our_mask_of_the_same_box(files, predictor, picture, feed, options):
    found = feed(client(files(**options)), picture)
    frame, found = found if isinstance(found, tuple) else (in_frame(picture), found)
    box = Prompt(box=np.array([300.0, 200, 900, 600], np.float32))
    expected = our_mask(predictor, predictor.encode(frame), box, found.shape)
    assert 0.005 < expected.mean() < 0.995
    assert np.mean(found == expected) >= EQUAL


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "smaller", "equal"), [("float16", 0.55, 0.999), ("int8", 0.45, 0.9)])
def test_smaller_weights_keep_most_of_the_mask(files, resized, forms, dtype, smaller, equal):
    whole, reduced = files(single=True), files(single=True, dtype=dtype)
    sizes = [(folder / "encoder.onnx").stat().st_size for folder in (whole, reduced)]
    assert sizes[1] < smaller * sizes[0]
    expected, found = (
        client(folder).mask(client(folder).encode(resized), forms["box"], SIZE) for folder in (whole, reduced)
    )
    assert np.mean(found == expected) >= equal


def official_sam(folder, config, plugin=None):
    """A small official model with random weights, and the folder of its files."""
    config = dataclasses.replace(config, image_size=64)
    model = torch_sam.build(config)
    torch_sam.randomise(model, seed=0)
    sam, params = assemble(config), twins.convert(model.state_dict(), config)
    if plugin is not None:
        plugin = dataclasses.replace(plugin, embedding_width=config.embedding_width)
        sam, params = with_plugin(sam, params, plugin, jax.random.key(0))
        params = params | {"plugin": _with_noise(jax.device_get(params["plugin"]), np.random.default_rng(5))}
    save_model(folder / "model", params, config=sam.config, source={})
    to_onnx.convert(to_onnx.Options(system=str(folder / "model"), output=folder / "onnx", single=True))
    return Predictor(sam, params), client(folder / "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("config", [official.VIT, dataclasses.replace(official.TINY_VIT, hq=False)])
def test_an_official_sam_has_our_masks(tmp_path, resized, forms, config):
    predictor, run = official_sam(tmp_path, config)
    found = run.mask(run.encode(resized), forms["points"], SIZE)
    expected = our_mask(predictor, predictor.encode(resized), forms["points"], SIZE)
    assert 0.005 < expected.mean() < 0.995
    assert np.mean(found == expected) >= EQUAL


@pytest.mark.slow
@pytest.mark.parametrize("config", [official.SMALL["hq_small_vit"], official.SMALL["hq_small_tiny_vit"]])
def test_an_hq_sam_has_our_masks_and_reads_the_first_of_any_number_of_early_layers(
    tmp_path, picture, resized, forms, config
):
    predictor, run = official_sam(tmp_path, config, PLUGIN)
    embedding, own = run.encode(resized), predictor.encode(resized)
    early = embedding["interm_embeddings"]
    width = early.shape[-1]
    second = run.decoder.get_inputs()[1]  # as in HQ-SAM's exporter
    assert (second.name, second.shape) == ("interm_embeddings", ["num_layers", 1, 64, 64, width])
    others = np.random.default_rng(0).standard_normal((3, *early.shape[1:]), np.float32)
    for form, prompt in forms.items():
        expected = our_mask(predictor, own, prompt, SIZE)
        assert 0.005 < expected.mean() < 0.995, form
        assert np.mean(run.mask(embedding, prompt, SIZE) == expected) >= EQUAL, form
        of_four = embedding | {"interm_embeddings": np.concatenate([early, others])}
        np.testing.assert_array_equal(run.mask(of_four, prompt, SIZE), run.mask(embedding, prompt, SIZE))
    frame, found = x_anylabeling(run, picture)
    box = Prompt(box=np.array([300.0, 200, 900, 600], np.float32))
    assert np.mean(found == our_mask(predictor, predictor.encode(frame), box, found.shape)) >= EQUAL


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        to_onnx.main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(system, tmp_path, capsys):
    output = tmp_path / "out"

    def refused(model, *more):
        return refusal(capsys, "--system", str(model), "--output", str(output), *more)

    assert "--boxes: crops one mask to its box; add --single" in refused(system, "--boxes")
    hq, params = small.system(hq=True, plugin=None)
    save_model(tmp_path / "hq", params, config=hq.config, source={})
    assert "has an encoder that neither the official packages nor stablesam_torch have" in refused(tmp_path / "hq")
    sam, params = small.nano()
    save_model(tmp_path / "odd", params, config=dataclasses.replace(sam.config, image_size=96), source={})
    assert "is for 96 px; ONNX clients can use 1024, 512, 256" in refused(tmp_path / "odd")
    assert not output.exists() or not list(output.iterdir())
    output.mkdir(exist_ok=True)
    (output / "decoder.onnx").write_text("mine")
    assert "decoder.onnx: exists already" in refused(system)
    assert [path.name for path in output.iterdir()] == ["decoder.onnx"]
