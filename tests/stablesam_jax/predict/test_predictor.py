"""Predictor answers as SamPredictor does, from the same arguments; lists, slots, stability, embeddings on disk."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from convert.rules import to_flax
from eval.parity import torch_sam
from stablesam_jax import Predictor, build
from stablesam_jax.config import PluginConfig
from stablesam_jax.data.collage import ASSETS
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import read_picture
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.predict import compiled
from stablesam_jax.predict.picture import Picture
from stablesam_jax.predict.postprocess import upscale_masks
from tests.reference import small
from tests.reference.pictures import exif, turned
from tests.reference.sam_pair import CONFIG

torch_sam  # noqa: B018 (it makes the official packages importable)
from segment_anything import SamPredictor  # noqa: E402
from segment_anything_hq import SamPredictor as HQSamPredictor  # noqa: E402

PICTURES = {
    "wide": read_picture(ASSETS / "im" / "coffee.jpg"),
    "tall": read_picture(ASSETS / "im" / "grace_hopper.jpg"),
    "small": np.ascontiguousarray(read_picture(ASSETS / "im" / "rocket.jpg")[100:190, 200:261]),
}
SIDE = CONFIG.mask_size
HQ_CONFIG = dataclasses.replace(CONFIG, hq=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """PyTorch's threads wait for each other by spinning, which takes minutes where processors are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def pair(config=CONFIG):
    """SamPredictor and ours, with the same random weights, in float32."""
    official = torch_sam.build(config)
    torch_sam.randomise(official, seed=0)
    sam = build.assemble(config)
    state = {name: tensor.numpy().copy() for name, tensor in official.state_dict().items()}
    theirs = HQSamPredictor(official) if config.hq else SamPredictor(official)
    return theirs, Predictor(sam, to_flax(state, build.shapes(sam)))


def in_pixels(shares, picture):
    """Coordinates as shares of the sides -> (x, y) in pixels, not whole."""
    height, width = picture.shape[:2]
    return np.array(shares) * np.tile([width, height], np.shape(shares)[-1] // 2)


def prompts(picture):
    points, box = in_pixels([[0.31, 0.42], [0.7, 0.61]], picture), in_pixels([0.2, 0.1, 0.71, 0.88], picture)
    mask = 6 * np.sin(np.linspace(0, 9, SIDE))[:, None] * np.cos(np.linspace(1, 7, SIDE))
    mask = mask.astype(np.float32)[None]
    labels = np.array([1, 0])
    return {
        "box": {"box": box},
        "box-outside": {"box": in_pixels([-0.1, 0.3, 0.6, 1.2], picture)},
        "point": {"point_coords": points[:1], "point_labels": labels[:1]},
        "points": {"point_coords": points, "point_labels": labels},
        "not-a-point": {"point_coords": points, "point_labels": np.array([1, -1])},
        "box-and-points": {"point_coords": points, "point_labels": labels, "box": box},
        "mask": {"mask_input": mask},
        "box-and-mask": {"box": box, "mask_input": mask},
    }


def check(ours, theirs, *, largest, rms):
    """Bounds in deviations of the reference (DESIGN 8)."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float32
    error = (ours - theirs) / theirs.std()
    assert np.abs(error).max() <= largest
    assert np.sqrt(np.mean(error**2)) <= rms


def compare(official, ours, **arguments):
    """Checks one call with and without logits; returns the numbers of flipped and of all pixels."""
    their_logits, their_iou, their_low_res = official.predict(**arguments, return_logits=True)
    logits, _, _ = ours.predict(**arguments, return_logits=True)
    masks, iou_predictions, low_res_masks = ours.predict(**arguments)
    check(logits, their_logits, largest=1.5e-4, rms=1.5e-5)
    check(low_res_masks, their_low_res, largest=2.5e-5, rms=4e-6)
    assert iou_predictions.shape == their_iou.shape
    assert np.abs(iou_predictions - their_iou).max() <= 2e-6
    assert masks.dtype == bool
    flipped = masks != (their_logits > official.model.mask_threshold)
    assert (np.abs(their_logits[flipped]) <= 1.5e-4 * their_logits.std()).all()
    return np.count_nonzero(flipped), flipped.size


@pytest.mark.parametrize(
    "config", [pytest.param(CONFIG, id="sam"), pytest.param(HQ_CONFIG, id="hq-sam", marks=pytest.mark.slow)]
)
def test_masks_are_those_of_the_official_predictor(config):
    official, ours = pair(config)
    variants = [{"multimask_output": True}, {"multimask_output": False}]
    if config.hq:
        variants.append({"multimask_output": False, "hq_token_only": True})
    flipped, pixels = 0, 0
    for picture in PICTURES.values():
        official.set_image(picture)
        ours.set_image(picture)
        assert ours.is_image_set
        assert ours.original_size == official.original_size
        assert ours.input_size == official.input_size
        check(ours.get_image_embedding(), official.get_image_embedding().detach().numpy(), largest=4e-5, rms=3e-6)
        for variant in variants:
            for name, prompt in prompts(picture).items():
                if variant.get("hq_token_only") and name != "box":
                    continue  # every variant and kind of prompt, not every pair of them
                of_call = compare(official, ours, **prompt, **variant)
                flipped, pixels = flipped + of_call[0], pixels + of_call[1]
    assert flipped <= 1e-5 * pixels


def test_a_picture_in_bgr_is_the_official_predictors():
    official, ours = pair()
    for each in (official, ours):
        each.set_image(PICTURES["wide"], image_format="BGR")
    theirs = official.get_image_embedding().detach().numpy()
    check(ours.get_image_embedding(), theirs, largest=4e-5, rms=3e-6)
    ours.set_image(PICTURES["wide"])
    assert np.abs(ours.get_image_embedding() - theirs).max() > 0.1


# lists


@pytest.fixture
def ours():
    """Our predictor with a picture set."""
    ours = pair()[1]
    ours.set_image(PICTURES["wide"])
    return ours


def close(first, second):
    """Equal but for the order of sums: the bound of low-resolution logits."""
    return np.abs(first - second).max() <= 2.5e-5 * np.std(second)


def test_a_list_of_prompts_is_answered_as_each_alone(ours):
    boxes = in_pixels([[0.1, 0.2, 0.5, 0.9], [0.3, 0.1, 0.95, 0.7], [0.4, 0.4, 0.6, 0.6]], PICTURES["wide"])
    alone = [ours.predict(box=box, multimask_output=False) for box in boxes]
    masks, iou_predictions, low_res_masks = ours.predict(box=boxes, multimask_output=False)
    assert masks.shape == (3, 1, *PICTURES["wide"].shape[:2])
    assert iou_predictions.shape == (3, 1)
    assert low_res_masks.shape == (3, 1, SIDE, SIDE)
    for index, (mask, iou, low_res) in enumerate(alone):
        assert np.mean(masks[index] != mask) <= 1e-5
        assert close(iou_predictions[index] + 1, iou + 1) or np.abs(iou_predictions[index] - iou).max() <= 2e-6
        assert close(low_res_masks[index], low_res)

    refined = ours.predict(box=boxes, mask_input=low_res_masks, multimask_output=False)
    again = ours.predict(box=boxes[2], mask_input=low_res_masks[2], multimask_output=False)
    assert close(refined[2][2], again[2])


def test_low_resolution_answers_are_those_of_predict(ours):
    boxes = in_pixels([[0.1, 0.2, 0.5, 0.9], [0.3, 0.1, 0.95, 0.7]], PICTURES["wide"])
    for box in (boxes, boxes[0], boxes[:1, None]):
        masks, iou_predictions, low_res_masks = ours.predict(box=box)
        logits, iou = ours.predict_low_res(box=box)
        assert np.array_equal(logits, low_res_masks)
        assert np.array_equal(iou, iou_predictions)
        assert np.array_equal(upscale_masks(logits, ours.original_size, ours.sam.config.frame), masks)


@pytest.mark.slow
def test_without_its_plugin_a_model_answers_as_its_base_and_encodes_nothing(monkeypatch):
    picture = np.ascontiguousarray(PICTURES["small"][:40, :50])
    sam, params = small.system(hq=False, plugin=PluginConfig(start="perturbed"))
    stable, base = Predictor(sam, params), Predictor(*small.nano())
    with small.quick_compilation():
        picture = stable.encode(picture)
        stable.set_image(PICTURES["small"][:30, :40])
        monkeypatch.setattr(compiled, "encoder", None)
        assert stable.without_plugin().original_size == (30, 40)
        systems = (stable, stable.without_plugin(), base)
        answers = [one.predict_low_res(box=[4, 5, 30, 32], picture=picture)[0] for one in systems]
    assert np.array_equal(answers[1], answers[2])
    assert np.abs(answers[0] - answers[1]).max() > 1e-3
    assert stable.without_plugin().sam.config.plugin is None
    assert stable.sam.config.plugin is not None


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_n_boxes_give_n_results_for_every_n(ours, count, multimask_output):
    picture = PICTURES["wide"]
    boxes = np.tile(in_pixels([0.1, 0.2, 0.5, 0.9], picture), (count, 1))
    alone = ours.predict(box=in_pixels([0.1, 0.2, 0.5, 0.9], picture), multimask_output=multimask_output)
    for given in (boxes, boxes.tolist(), boxes[:, None], np.float32(boxes)):
        found = ours.predict(box=given, multimask_output=multimask_output)
        for array, one in zip(found, alone, strict=True):
            assert array.shape == (count, *one.shape)
            assert array.dtype == one.dtype


def test_no_prompts_of_hq_sam_have_one_mask_each(monkeypatch):
    ours = Predictor(*small.system(hq=True, plugin=None))
    embedding = ImageEmbedding(jnp.ones((1, 4, 4, 256)))
    ours._current.set((Picture(embedding=embedding, original_size=(48, 64), digest="", model=ours._encoder),))
    monkeypatch.setattr(compiled, "decoder", None)
    assert ours.predict(box=[])[0].shape == (0, 1, 48, 64)


def test_point_sets_of_different_lengths_are_not_padded_with_points(ours):
    points = in_pixels([[0.31, 0.42], [0.7, 0.61], [0.2, 0.3]], PICTURES["wide"])
    labels = np.array([1, 0, 1])
    together = ours.predict([points, points[:1]], [labels, labels[:1]], multimask_output=False)
    assert close(together[2][1], ours.predict(points[:1], labels[:1], multimask_output=False)[2])
    padded = ours.predict(points, np.array([1, -1, -1]), multimask_output=False)
    assert not close(together[2][1], padded[2])  # a point labelled -1 is attended to, as the official encoder does


def test_results_may_be_written_to(ours):
    for array in ours.predict(box=in_pixels([0.1, 0.2, 0.5, 0.9], PICTURES["wide"])):
        array[0] = 0


@pytest.mark.parametrize("count", [1, 3])
def test_each_of_several_pictures_is_encoded_as_alone(count):
    ours = pair()[1]
    pictures = list(PICTURES.values())[:count]
    alone = []
    for picture in pictures:
        ours.set_image(picture)
        alone.append(ours.get_image_embedding())
    ours.set_images(iter(pictures), batch_size=2)
    for index, embedding in enumerate(alone):
        assert close(ours.get_image_embedding(image_index=index), embedding)
    last = ours.predict(box=[1, 1, 30, 30], image_index=count - 1, multimask_output=False)
    assert last[0].shape[1:] == pictures[-1].shape[:2]


def test_with_several_pictures_the_one_that_is_meant_must_be_said():
    ours = pair()[1]
    ours.set_images([PICTURES["wide"], PICTURES["tall"]])
    for call in (
        lambda: ours.predict(box=[1, 1, 9, 9]),
        lambda: ours.predict_stable(box=[1, 1, 9, 9]),
        ours.get_image_embedding,
        lambda: ours.original_size,
    ):
        with pytest.raises(InputError, match="2 pictures are set; choose one with image_index, 0 to 1"):
            call()
    for index in (2, -1):
        with pytest.raises(InputError, match=f"image_index is {index}; it must be 0 to 1"):
            ours.predict(box=[1, 1, 9, 9], image_index=index)


# embeddings on disk


def test_a_saved_embedding_is_prompted_as_its_picture(ours, tmp_path):
    box = in_pixels([0.2, 0.1, 0.71, 0.88], PICTURES["wide"])
    expected = ours.predict(box=box)
    ours.save_embedding(tmp_path / "wide.safetensors")

    other = Predictor(ours.sam, ours.params)
    other.load_embedding(tmp_path / "wide.safetensors")

    assert other.original_size == ours.original_size
    for mine, yours in zip(other.predict(box=box), expected, strict=True):
        np.testing.assert_array_equal(mine, yours)


def test_an_embedding_of_other_weights_leaves_no_picture_set(ours, tmp_path):
    ours.save_embedding(tmp_path / "wide.safetensors")
    other = Predictor(ours.sam, jax.tree.map(lambda leaf: leaf + 1, ours.params))
    other.set_image(PICTURES["tall"])
    with pytest.raises(InputError, match=r"wide\.safetensors: made by .* with other weights"):
        other.load_embedding(tmp_path / "wide.safetensors")
    assert not other.is_image_set


# bad input


def test_before_a_picture_is_set_everything_says_so():
    ours = Predictor(*small.nano())
    assert not ours.is_image_set
    for call in (
        lambda: ours.predict(box=[1, 2, 3, 4]),
        lambda: ours.predict_stable(box=[1, 2, 3, 4]),
        ours.get_image_embedding,
        lambda: ours.save_embedding("never.safetensors"),
        lambda: ours.input_size,
    ):
        with pytest.raises(InputError, match="no picture is set; call set_image"):
            call()


def test_after_a_reset_no_picture_is_set(ours):
    ours.reset_image()
    assert not ours.is_image_set


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4)), r"picture has shape \(4, 4\) and dtype float64"),
        (np.ones((4, 4, 3), np.float32), r"Bring 0\.\.1 to 0\.\.255: \(picture \* 255\)\.round\(\)"),
        (3, r"picture has shape \(\)"),
        ("absent.jpg", "absent.jpg: cannot be read"),
    ],
    ids=["grey-float", "float-0-to-1", "number", "absent"],
)
def test_what_is_no_picture_is_refused_and_the_last_one_forgotten(ours, image, words):
    with pytest.raises(InputError, match=words):
        ours.set_image(image)
    assert not ours.is_image_set  # else its masks would pass for those of the refused one


def test_of_a_list_the_bad_picture_is_named(ours, tmp_path):
    with pytest.raises(InputError, match=r"^images\[5\]: picture has shape \(2, 2\)"):
        ours.set_images([PICTURES["small"]] * 5 + [np.zeros((2, 2), np.uint8)], batch_size=1)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png: cannot be read"):
        ours.set_images([PICTURES["small"], tmp_path / "text.png"])
    assert not ours.is_image_set


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda ours: ours.set_image(PICTURES["small"], image_format="rgb"),
            "image_format is 'rgb'; it must be RGB or",
        ),
        (lambda ours: ours.set_images("a.jpg"), r"a single picture; give a list of them, as \[picture\]"),
        (lambda ours: ours.set_images(PICTURES["small"]), "a single picture"),
        (lambda ours: ours.encode_all(Image.new("L", (3, 3))), "a single picture"),
        (lambda ours: ours.set_images([]), "empty list"),
        (lambda ours: ours.set_images([PICTURES["small"]], batch_size=0), "batch_size is 0"),
        (lambda ours: ours.predict(box=[1, 2, 3, 4], hq_token_only=True), "hq_token_only is for HQ-SAM"),
        (lambda ours: ours.predict(box=[30, 20, 3, 4]), "is inverted"),
        (lambda ours: ours.predict(), "no prompt is given"),
    ],
    ids=["format", "one-file", "one-array", "one-image", "no-pictures", "batch-size", "hq", "inverted", "nothing"],
)
def test_bad_arguments_are_one_line(ours, call, words):
    with pytest.raises(InputError, match=words) as caught:
        call(ours)
    assert "\n" not in str(caught.value)


def test_files_are_read_upright_as_rgb_whatever_they_hold(ours, tmp_path):
    picture = PICTURES["small"]
    grey = picture[..., 0]
    alpha = np.concatenate([picture, np.full((*grey.shape, 1), 9, np.uint8)], axis=-1)
    stored = {
        "grey.png": (Image.fromarray(grey), np.stack([grey] * 3, -1)),
        "alpha.png": (Image.fromarray(alpha), picture),
        "palette.png": (Image.fromarray(grey).convert("P"), np.stack([grey] * 3, -1)),
        "sixteen.png": (Image.fromarray(grey.astype(np.uint16) * 257), np.stack([grey] * 3, -1)),
    }
    for name, (image, expected) in stored.items():
        image.save(tmp_path / name)
        ours.set_image(expected)
        embedding = ours.get_image_embedding()
        for given in (tmp_path / name, str(tmp_path / name), Image.open(tmp_path / name)):
            ours.set_image(given)
            np.testing.assert_array_equal(ours.get_image_embedding(), embedding)
    Image.fromarray(np.ascontiguousarray(turned(picture, 6))).save(tmp_path / "turned.png", exif=exif(6))
    ours.set_image(tmp_path / "turned.png")
    assert ours.original_size == picture.shape[:2]


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 5000), (5000, 1)])
def test_a_picture_of_a_line_or_a_pixel_is_answered(ours, size_hw):
    ours.set_image(np.full((*size_hw, 3), 90, np.uint8))
    assert ours.predict(box=[0, 0, size_hw[1], size_hw[0]])[0].shape == (3, *size_hw)


@pytest.mark.slow
def test_a_picture_of_a_hundred_million_pixels_is_answered(ours):
    ours.set_image(np.zeros((9000, 12000, 3), np.uint8))
    masks, _, _ = ours.predict(box=[100, 200, 9000, 8000], multimask_output=False)
    assert masks.shape == (1, 9000, 12000)


def test_a_picture_file_above_the_limit_is_refused_unread(ours, tmp_path):
    Image.new("1", (12000, 9000)).save(tmp_path / "bomb.png")
    strict = Predictor(ours.sam, ours.params, max_pixels=50_000_000)
    with pytest.raises(
        InputError, match=r"bomb\.png: has 12000 x 9000 pixels, more than the 50000000 that are allowed"
    ):
        strict.set_image(tmp_path / "bomb.png")


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, stablesam_jax; print(sorted({'jax', 'flax', 'numpy'} & set(sys.modules)), stablesam_jax.Predictor)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[] <class 'stablesam_jax.predict.predictor.Predictor'>\n"
