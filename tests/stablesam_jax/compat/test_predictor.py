"""SamPredictor, called as other people's programs call it, answers as the official one with the same weights."""

import dataclasses
import functools
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from convert.rules import to_flax
from eval.parity import torch_sam
from stablesam_jax import build, compat
from stablesam_jax.config import PluginConfig
from stablesam_jax.data.collage import ASSETS
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import read_picture
from tests.reference import small
from tests.reference.sam_pair import CONFIG

# isort: split
import segment_anything
import segment_anything_hq

PICTURE = np.ascontiguousarray(read_picture(ASSETS / "im" / "coffee.jpg")[::2, ::2])
HEIGHT, WIDTH = PICTURE.shape[:2]
BOXES = np.array([[20, 15, 130, 140], [60, 30, 240, 160], [5, 5, 80, 60]])
POINTS, LABELS = np.array([[100, 80], [200, 30]]), np.array([1, 0])
SIDE = CONFIG.mask_size
HQ_CONFIG = dataclasses.replace(CONFIG, hq=True)


@functools.cache
def models(config=CONFIG):
    """The official model and ours, with the same random weights."""
    official = torch_sam.build(config)
    torch_sam.randomise(official, seed=0)
    sam = build.assemble(config)
    state = {name: values.numpy().copy() for name, values in official.state_dict().items()}
    return official, compat.Sam(sam, to_flax(state, build.shapes(sam)))


def predictors(config=CONFIG):
    """The official predictor and ours, with PICTURE set."""
    official, ours = models(config)
    theirs = (segment_anything_hq if config.hq else segment_anything).SamPredictor(official)
    pair = theirs, compat.SamPredictor(ours)
    for each in pair:
        each.set_image(PICTURE)
    return pair


def check(ours, theirs, *, largest=1.5e-4):
    """Equal within DESIGN 8's bound for logits at the size of the picture, as tensors or as arrays."""
    assert type(ours) is type(theirs)
    assert tuple(ours.shape) == tuple(theirs.shape)
    assert ours.dtype == theirs.dtype
    ours, theirs = (np.asarray(each.detach() if hasattr(each, "detach") else each) for each in (ours, theirs))
    if ours.dtype == bool:
        assert np.mean(ours != theirs) <= 1e-4
    elif ours.size:
        assert np.abs(ours - theirs).max() <= max(largest * theirs.std(), 2e-6)  # the latter for predicted IoU


def both(call, config=CONFIG):
    """What each of the two says to a call."""
    theirs, ours = (call(each) for each in predictors(config))
    for one, other in zip(ours, theirs, strict=True):
        check(one, other)


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        {"box": BOXES[0]},
        {"box": BOXES[0][None]},
        {"point_coords": POINTS, "point_labels": LABELS},
        {"point_coords": POINTS[:1], "point_labels": np.ones(1, np.float32), "box": BOXES[0][None]},
        {"point_coords": POINTS, "point_labels": LABELS, "mask_input": np.sin(np.ones((1, SIDE, SIDE))), "box": None},
    ],
    ids=["box", "box-of-the-notebook", "points", "points-and-box", "points-and-mask"],
)
def test_predict(arguments, multimask):
    both(lambda predictor: predictor.predict(**arguments, multimask_output=multimask))
    both(lambda predictor: predictor.predict(**arguments, multimask_output=multimask, return_logits=True))


def test_boxes_of_a_detector_as_tensors():
    """As Grounded-SAM and samgeo do it."""

    def call(predictor):
        boxes = torch.from_numpy(BOXES).float()
        moved = predictor.transform.apply_boxes_torch(boxes, PICTURE.shape[:2]).to(predictor.device)
        return predictor.predict_torch(point_coords=None, point_labels=None, boxes=moved, multimask_output=False)

    both(call)


@pytest.mark.slow
def test_points_in_batches_with_logits():
    """As micro-sam's batched inference and the official generator do it; labels are floats there."""

    def call(predictor):
        points = predictor.transform.apply_coords(POINTS[:, None], predictor.original_size)
        points = torch.tensor(points, dtype=torch.float32).to(predictor.device)
        labels = torch.tensor(LABELS[:, None], dtype=torch.float32)
        masks, iou, logits = predictor.predict_torch(points, labels, multimask_output=True, return_logits=True)
        again = predictor.predict_torch(points, labels, mask_input=logits[:, :1], multimask_output=False)
        return masks, iou, logits, masks > predictor.model.mask_threshold, *again

    both(call)


def test_no_boxes_have_no_masks():
    _, ours = predictors()
    masks, iou, low_res = ours.predict_torch(None, None, torch.zeros((0, 4)), multimask_output=False)
    assert (masks.shape, iou.shape, low_res.shape) == ((0, 1, HEIGHT, WIDTH), (0, 1), (0, 1, SIDE, SIDE))
    assert masks.dtype == torch.bool


def test_the_embedding_and_sizes():
    theirs, ours = predictors()
    check(ours.get_image_embedding(), theirs.get_image_embedding().detach(), largest=4e-5)
    check(ours.features, theirs.features.detach(), largest=4e-5)
    assert ours.features.cpu().numpy().shape == (1, 64, 20, 20)
    for name in ("original_size", "input_size", "is_image_set"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.device == theirs.device
    assert ours.model.image_encoder.img_size == theirs.model.image_encoder.img_size
    for each in (theirs, ours):
        each.set_image(PICTURE, image_format="BGR")
    check(ours.features, theirs.features.detach(), largest=4e-5)


def test_a_picture_that_is_resized_already():
    def call(predictor):
        resized = torch.as_tensor(predictor.transform.apply_image(PICTURE)).permute(2, 0, 1)[None]
        predictor.reset_image()
        predictor.set_torch_image(resized, PICTURE.shape[:2])
        return predictor.predict(box=BOXES[1], return_logits=True)

    both(call)


def test_a_picture_of_a_transform_of_ones_own():
    """Its sides do not follow from the picture's: the masks are cut where the tensor ends."""

    def call(predictor):
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(PICTURE).permute(2, 0, 1)[None].float(), (150, 320), mode="bilinear"
        )
        predictor.set_torch_image(resized, (HEIGHT, WIDTH))
        return predictor.predict_torch(None, None, torch.tensor([[20.0, 30, 200, 140]]), return_logits=True)

    both(call)


def test_embeddings_that_were_computed_before_are_assigned():
    """As micro-sam's precompute and set_precomputed do it, in batches, from arrays on a disk."""

    def call(predictor):
        pictures = [PICTURE[:, ::-1], PICTURE[:100]]
        tensors, sizes = [], []
        for picture in pictures:
            values = torch.as_tensor(predictor.transform.apply_image(np.ascontiguousarray(picture)))
            values = values.permute(2, 0, 1).contiguous()[None]
            sizes.append(values.shape[-2:])
            tensors.append(predictor.model.preprocess(values))
        with torch.no_grad():
            features = predictor.model.image_encoder(torch.cat(tensors)).numpy()
        predictor.reset_image()
        assert not predictor.is_image_set
        predictor.features = torch.from_numpy(features[1:]).to(predictor.device)
        predictor.original_size = pictures[1].shape[:2]
        predictor.input_size = sizes[1]
        predictor.is_image_set = True
        return predictor.predict(box=BOXES[2], return_logits=True)

    both(call)


def test_features_without_their_first_axis_are_those_of_one_picture():
    _, ours = predictors()
    want = ours.predict(box=BOXES[0])
    ours.features = ours.features[0]
    for mine, yours in zip(ours.predict(box=BOXES[0]), want, strict=True):
        np.testing.assert_array_equal(mine, yours)


@pytest.mark.slow
def test_hq_sam():
    def call(predictor):
        both_masks = predictor.predict(box=BOXES[0], multimask_output=False, return_logits=True)
        return *both_masks, predictor.predict(box=BOXES[0], multimask_output=False, hq_token_only=True)[2]

    both(call, HQ_CONFIG)


@pytest.mark.slow
def test_embeddings_of_hq_sam_are_assigned_with_their_early_features():
    _, ours = predictors(HQ_CONFIG)
    want = ours.predict(box=BOXES[0])
    features, early = ours.features, ours.interm_features
    ours.features = features
    with pytest.raises(InputError, match="no early features, which HQ-SAM needs"):
        ours.predict(box=BOXES[0])
    ours.interm_features = early
    np.testing.assert_array_equal(ours.predict(box=BOXES[0])[2], want[2])
    _, plain = predictors()
    with pytest.raises(InputError, match="interm_features are of HQ-SAM"):
        plain.interm_features = early


def test_a_subclass_that_sets_embeddings_of_its_own():
    class Mine(compat.SamPredictor):
        def __init__(self, model):
            super().__init__(model)
            self.calls = 0

        def set_embedding(self, embedding, height, width):
            self.reset_image()
            self.original_size = (height, width)
            self.input_size = self.transform.get_preprocess_shape(height, width, self.transform.target_length)
            self.features = torch.as_tensor(embedding, dtype=torch.float, device=self.device)
            self.is_image_set = True

        def set_torch_image(self, *arguments):
            self.calls += 1
            super().set_torch_image(*arguments)

    _, ours = predictors()
    mine = Mine(ours.model)
    mine.set_embedding(ours.get_image_embedding().numpy(), HEIGHT, WIDTH)
    np.testing.assert_array_equal(mine.predict(box=BOXES[0])[2], ours.predict(box=BOXES[0])[2])
    mine.set_image(PICTURE)
    assert mine.calls == 1


def test_a_subclass_may_prepare_itself():
    class Mine(compat.SamPredictor):
        def __init__(self, sam_model):  # without super().__init__(sam_model)
            self.model = sam_model
            self.transform = compat.ResizeLongestSide(sam_model.image_encoder.img_size)

    _, ours = predictors()
    mine = Mine(ours.model)
    assert not mine.is_image_set
    mine.set_image(PICTURE)
    np.testing.assert_array_equal(mine.predict(box=BOXES[0])[2], ours.predict(box=BOXES[0])[2])


def test_other_attributes_of_a_clients_own_may_be_assigned_but_not_the_model():
    _, ours = predictors()
    ours.model_name, ours._hash = "vit_b", "abc"
    with pytest.raises(AttributeError, match=r"SamPredictor\.model is fixed; make another SamPredictor"):
        ours.model = models()[1]
    with pytest.raises(AttributeError):
        ours.model.image_encoder = None


# threads


def answer(predictor):
    return predictor.predict(box=np.array([5, 6, 40, 30]), multimask_output=False)[2]


def pictures():
    return [np.random.default_rng(index).integers(0, 256, (40 + index, 64, 3), np.uint8) for index in range(4)]


def alone(predictor):
    found = []
    for picture in pictures():
        predictor.set_image(picture)
        found.append(answer(predictor))
    return found


def test_threads_that_share_a_predictor_are_answered_for_their_own_pictures():
    want, turn = alone(compat.SamPredictor(*small.nano())), threading.Barrier(4)
    ours = compat.SamPredictor(*small.nano())

    def job(index):
        for _ in range(3):
            turn.wait()
            ours.set_image(pictures()[index])
            turn.wait()
            assert np.array_equal(answer(ours), want[index])
            assert ours.original_size == (40 + index, 64)
        features, sizes = ours.features, (ours.original_size, ours.input_size)
        turn.wait()
        ours.reset_image()
        turn.wait()
        ours.features = features
        ours.original_size, ours.input_size = sizes
        turn.wait()
        ours.is_image_set = True
        return np.abs(answer(ours) - want[index]).max()

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(job, range(4))) == 0


@pytest.mark.slow
def test_hundreds_of_jobs_in_four_threads_are_answered_for_their_own_pictures():
    ours = compat.SamPredictor(*small.nano())
    want = alone(ours)
    ours.reset_image()

    def job(number):
        ours.set_image(pictures()[number % 4])
        time.sleep(0.001 * (number % 3))
        return np.array_equal(answer(ours), want[number % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(job, range(400)))


def test_what_a_thread_assigns_does_not_mix_with_the_picture_of_another():
    ours = compat.SamPredictor(*small.nano())
    ours.set_image(pictures()[0])
    with ThreadPoolExecutor(1) as pool:
        assert np.array_equal(pool.submit(answer, ours).result(), answer(ours))  # that of the only thread that has one
        pool.submit(setattr, ours, "features", ours.features).result()
        with pytest.raises(RuntimeError, match="no picture is set"):
            pool.submit(answer, ours).result()
    assert ours.is_image_set


def prompted_in_turns(predictor):
    """Answers of a pool of two threads, in which one thread sets a picture and both prompt it, one after the other."""
    found = []
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for picture, (first, second) in zip(pictures(), [(one, other), (other, one)] * 2, strict=True):
            first.submit(predictor.set_image, picture).result()
            found.append([pool.submit(answer, predictor).result() for pool in (first, second)])
    return found


def test_a_shared_picture_is_that_of_a_pool_of_threads():
    shared = compat.SamPredictor(compat.Sam(*small.nano(), shared_picture=True))
    for answers, want in zip(prompted_in_turns(shared), alone(compat.SamPredictor(*small.nano())), strict=True):
        assert all(np.array_equal(one, want) for one in answers)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(setattr, shared, "features", None).result()
        with pytest.raises(InputError, match="assigned without features"):
            answer(shared)
        pool.submit(shared.reset_image).result()
    assert not shared.is_image_set


def test_a_pool_of_threads_without_a_shared_picture_is_told_so_once(caplog):
    ours = compat.SamPredictor(*small.nano())
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for pool, picture in [(one, pictures()[0]), (other, pictures()[1])]:
            pool.submit(ours.set_image, picture).result()
            pool.submit(answer, ours).result()
        assert not caplog.messages  # each has prompted its own picture, before the other has set one or after
        for _ in range(2):
            one.submit(answer, ours).result()
    (line,) = caplog.messages
    assert "another thread has set a picture since" in line
    assert "build the model with shared_picture=True" in line


def test_a_predictor_survives_pickling():
    ours = compat.SamPredictor(*small.nano())
    ours.set_image(pictures()[0])
    assert np.array_equal(answer(pickle.loads(pickle.dumps(ours))), answer(ours))
    shared = compat.SamPredictor(compat.Sam(*small.nano(), shared_picture=True))
    shared.set_image(pictures()[1])
    copied = pickle.loads(pickle.dumps(shared))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(copied.set_image, pictures()[0]).result()
    assert np.array_equal(answer(copied), answer(ours))


# what is refused


def test_before_a_picture_is_set_it_is_a_runtime_error_as_theirs():
    ours = compat.SamPredictor(models()[1])
    assert not ours.is_image_set
    assert ours.features is ours.original_size is ours.input_size is None
    for call in (lambda: ours.predict(box=BOXES[0]), ours.get_image_embedding):
        with pytest.raises(RuntimeError, match=r"^no picture is set; call set_image first\.$"):
            call()
    ours.is_image_set = True
    with pytest.raises(InputError, match="assigned without features, original_size or input_size"):
        ours.predict(box=BOXES[0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda ours: ours.set_image(np.zeros((4, 4), np.uint8)), "Repeat the grey channel"),
        (lambda ours: ours.set_image(PICTURE, "rgb"), "image_format is 'rgb'"),
        (lambda ours: ours.set_torch_image(torch.zeros(1, 3, 30, 40), (30, 40)), "longer side of 320 pixels"),
    ],
    ids=["grey", "format", "not-resized"],
)
def test_what_is_no_picture_is_refused_and_none_is_set(call, words):
    _, ours = predictors()
    with pytest.raises(InputError, match=words):
        call(ours)
    assert not ours.is_image_set


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda ours: ours.predict(box=BOXES), "predict takes one prompt; predict_torch"),
        (lambda ours: ours.predict(box=[20, 15, 10, 140]), "is inverted"),
        (lambda ours: ours.predict([[900, 900]], [1]), "outside the picture of 256 x 171 pixels"),
        (lambda ours: ours.predict_torch(None, None, torch.tensor([20.0, 5, 90, 90])), "one axis more, as box"),
        (
            lambda ours: ours.predict_torch(None, None, torch.tensor([[700.0, 5, 900, 90]])),
            "outside the picture of 320",
        ),
        (
            lambda ours: ours.predict_torch(None, None, torch.tensor([[99.0, 5, 900, 90]])),
            "far beyond the model's input",
        ),
        (lambda ours: ours.predict_torch(torch.tensor([[[700.0, 5]]]), torch.ones(1, 1)), "outside the picture of 320"),
        (lambda ours: setattr(ours, "features", torch.zeros(1, 64, 64, 64)), r"features have shape \(1, 64, 64, 64\)"),
        (lambda ours: compat.SamPredictor(build.assemble(CONFIG)), "has no parameters"),
    ],
    ids=[
        "list",
        "inverted",
        "outside",
        "one-box",
        "frame-of-1024",
        "half-of-1024",
        "point-of-1024",
        "features",
        "no-parameters",
    ],
)
def test_bad_arguments_are_one_line(call, words):
    _, ours = predictors()
    with pytest.raises(InputError, match=words) as caught:
        call(ours)
    assert "\n" not in str(caught.value)


def test_a_box_that_ends_at_the_edge_of_the_picture_or_a_pixel_beside_it_is_in_the_model_frame_too():
    tall = np.ascontiguousarray(np.resize(PICTURE, (333, 21, 3)))
    _, ours = predictors()
    ours.set_image(tall)
    for box in ([21, 300, 25, 340], [-4, -4, 0, 0]):
        ours.predict(box=box)
        moved = ours.transform.apply_boxes_torch(torch.tensor([box]), tall.shape[:2])
        ours.predict_torch(None, None, moved)
    point = ours.transform.apply_coords_torch(torch.tensor([[[-1, 333.0]]]), tall.shape[:2])
    ours.predict_torch(point, torch.ones(1, 1))


# the generator


@pytest.mark.slow
def test_the_generator_has_its_models_predictor_and_the_official_arguments():
    model = compat.Sam(*small.system(hq=False, plugin=PluginConfig()))
    generator = compat.SamAutomaticMaskGenerator(model=model, points_per_side=2, pred_iou_thresh=0.0)
    generator.predictor.set_image(pictures()[0])
    assert generator.predictor.predict(box=BOXES[2][:4] // 2)[0].shape == (3, 40, 64)
    with pytest.raises(AttributeError):  # it would go on with its own model
        generator.predictor = compat.SamPredictor(model)
    in_place = compat.SamAutomaticMaskGenerator(model, 2, 64, 0.0, 0.0)
    assert in_place.stability_score_thresh == 0
    records = in_place.generate(pictures()[0])
    assert {"segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"} == set(
        records[0]
    )


def test_the_generator_cuts_logits_at_the_threshold_of_its_model():
    model = compat.Sam(*small.system(hq=False, plugin=PluginConfig()))
    generator = compat.SamAutomaticMaskGenerator(model, 2, 64, 0.0, 0.0, box_nms_thresh=1.0)
    generator.predictor.set_image(pictures()[0])
    points = np.array([record["point_coords"][0] for record in generator.generate(pictures()[0])])
    model.mask_threshold = np.float64(0.2)
    answers = {}
    for point in points:
        masks, iou, _ = generator.predictor.predict(point[None], np.array([1]))
        answers |= {(*point, round(float(score), 4)): mask for mask, score in zip(masks, iou, strict=True)}
    records = generator.generate(pictures()[0])
    assert len(records) > 3
    for record in records:
        want = answers[*record["point_coords"][0], round(record["predicted_iou"], 4)]
        assert (record["segmentation"] != want).mean() < 0.002
