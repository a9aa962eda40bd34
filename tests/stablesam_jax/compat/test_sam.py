"""A Sam's parts give what the official ones give, called one by one, and so does the whole."""

import numpy as np
import pytest
import torch

from stablesam_jax import compat
from stablesam_jax.config import PluginConfig
from stablesam_jax.errors import InputError
from tests.reference import small
from tests.stablesam_jax.compat.test_predictor import BOXES, HEIGHT, HQ_CONFIG, PICTURE, WIDTH, check, models

RNG = np.random.default_rng(0)
POINTS = torch.from_numpy(RNG.uniform(0, 300, (3, 4, 2)).astype(np.float32)), torch.tensor([[1, 0, 1, -1]] * 3)
MASKS = torch.from_numpy(RNG.standard_normal((3, 1, 80, 80)).astype(np.float32))
PROMPTS = {
    "boxes": (None, torch.from_numpy(BOXES).float(), None),
    "points": (POINTS, None, None),
    "points-and-boxes": (POINTS, torch.from_numpy(BOXES).float(), None),
    "boxes-and-masks": (None, torch.from_numpy(BOXES).float(), MASKS),
    "masks": (None, None, MASKS),
}


@pytest.fixture
def pair():
    return models()


def embedding(model, picture=PICTURE):
    resized = compat.ResizeLongestSide(model.image_encoder.img_size).apply_image(picture)
    with torch.no_grad():
        return model.image_encoder(model.preprocess(torch.as_tensor(resized).permute(2, 0, 1)[None]))


def test_preprocess_and_the_image_encoder(pair):
    official, ours = pair
    for values in (torch.arange(3 * 20 * 320).reshape(3, 20, 320) % 256, torch.zeros(2, 3, 320, 7, dtype=torch.uint8)):
        check(ours.preprocess(values), official.preprocess(values), largest=1e-6)
    assert torch.equal(ours.pixel_mean, official.pixel_mean)
    assert torch.equal(ours.pixel_std, official.pixel_std)
    check(embedding(ours), embedding(official), largest=4e-5)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_pictures_are_encoded_in_batches_of_any_number(pair, count):
    _, ours = pair
    pictures = torch.from_numpy(RNG.standard_normal((count, 3, 320, 320)).astype(np.float32))
    together = ours.image_encoder(pictures)
    assert together.shape == (count, 64, 20, 20)
    check(together[-1:], ours.image_encoder(pictures[-1:]), largest=4e-5)


@pytest.mark.parametrize("kind", PROMPTS)
def test_the_prompt_encoder_and_the_mask_decoder(pair, kind):
    found = []
    for model in pair:
        with torch.no_grad():
            sparse, dense = model.prompt_encoder(*PROMPTS[kind])
            pe = model.prompt_encoder.get_dense_pe()
            masks, iou = model.mask_decoder(
                image_embeddings=embedding(pair[0]),
                image_pe=pe,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            full = model.postprocess_masks(masks, (213, 320), (HEIGHT, WIDTH))
        found.append((sparse, dense.contiguous(), pe, masks, iou, full))
    for theirs, ours in zip(*found, strict=True):
        if theirs.numel():
            check(ours, theirs)
        else:
            assert ours.shape == theirs.shape


def test_attributes_of_the_parts(pair):
    official, ours = pair
    for part, names in {
        "prompt_encoder": ("embed_dim", "image_embedding_size", "input_image_size", "mask_input_size"),
        "image_encoder": ("img_size",),
        "mask_decoder": ("num_mask_tokens", "num_multimask_outputs"),
    }.items():
        for name in names:
            assert getattr(getattr(ours, part), name) == getattr(getattr(official, part), name)
    assert (ours.mask_threshold, ours.image_format, ours.device) == (
        official.mask_threshold,
        official.image_format,
        official.device,
    )
    assert ours.to(device="cuda").eval().cuda().cpu() is ours


@pytest.mark.slow
def test_the_parts_of_hq_sam():
    found = []
    for model in models(HQ_CONFIG):
        features, early = embedding(model)
        with torch.no_grad():
            sparse, dense = model.prompt_encoder(None, torch.from_numpy(BOXES).float(), None)
            pe = model.prompt_encoder.get_dense_pe()
            masks, iou = model.mask_decoder(
                features, pe, sparse, dense, multimask_output=False, hq_token_only=False, interm_embeddings=early
            )
        found.append((features, early[0], masks, iou))
    for theirs, ours in zip(*found, strict=True):
        check(ours, theirs)


@pytest.mark.slow
def test_pictures_and_prompts_at_once(pair):
    def record(model, picture, **prompts):
        resized = compat.ResizeLongestSide(320).apply_image(np.ascontiguousarray(picture))
        return {
            "image": torch.as_tensor(resized, device=model.device).permute(2, 0, 1).contiguous(),
            "original_size": picture.shape[:2],
            **prompts,
        }

    theirs, ours = (
        model(
            [
                record(model, PICTURE, boxes=torch.from_numpy(BOXES).float()),
                record(model, PICTURE[:90], point_coords=POINTS[0][:2, :2] / 3, point_labels=POINTS[1][:2, :2]),
            ],
            multimask_output=True,
        )
        for model in pair
    )
    assert len(ours) == 2
    for one, other in zip(ours, theirs, strict=True):
        assert set(one) == set(other)
        for name in one:
            check(one[name], other[name])


def test_nothing_is_answered_with_nothing(pair):
    assert pair[1]([], multimask_output=True) == []
    sparse, dense = pair[1].prompt_encoder(None, torch.zeros((0, 4)), None)
    assert (sparse.shape[0], tuple(dense.shape)) == (0, (0, 64, 20, 20))


def test_another_threshold_is_used(pair):
    _, ours = pair
    predictor = compat.SamPredictor(ours)
    predictor.set_image(PICTURE)
    logits = predictor.predict(box=BOXES[0], return_logits=True)[0]
    ours.mask_threshold = 0.3
    try:
        np.testing.assert_array_equal(predictor.predict(box=BOXES[0])[0], logits > 0.3)
    finally:
        del ours.mask_threshold


@pytest.mark.slow
def test_the_plugin_has_its_part(monkeypatch):
    with_plugin = compat.SamPredictor(*small.system(hq=False, plugin=PluginConfig(start="perturbed")))
    with_plugin.set_image(PICTURE)
    model = with_plugin.model
    box = with_plugin.transform.apply_boxes_torch(torch.from_numpy(BOXES[:1]), (HEIGHT, WIDTH))
    sparse, dense = model.prompt_encoder(None, box, None)
    pe = model.prompt_encoder.get_dense_pe()
    low_res, _ = model.mask_decoder(with_plugin.features, pe, sparse, dense, False)
    want = with_plugin.predict_torch(None, None, box, multimask_output=False)[2]
    check(low_res, want, largest=2.5e-5)


# the registry


@pytest.mark.slow
def test_shipped_models_are_built_by_name_and_others_from_a_folder(tmp_path):
    registry = compat.sam_model_registry
    assert {"default", "vit_h", "vit_l", "vit_b", "vit_t", "sam_nano", "stable_sam_nano"} <= set(registry)
    shipped = registry["stable_sam_nano"]()
    assert shipped.sam.config.plugin is not None
    assert not shipped.shared_picture
    assert registry["stable_sam_nano"](shared_picture=True).shared_picture
    folder = small.save_nano(tmp_path / "nano")
    assert registry["sam_nano"](checkpoint=folder).image_encoder.img_size == 512
    with pytest.raises(InputError, match=r"nano: holds another model than sam_vit_b\. Name"):
        registry["vit_b"](checkpoint=str(folder))
    with pytest.raises(InputError, match=r"sam_vit_h: neither a shipped model .* Convert an official file"):
        registry["vit_h"]()
    with pytest.raises(InputError, match=r"sam_vit_h_4b8939\.pth: neither a shipped model .* Convert an official file"):
        registry["default"](checkpoint="sam_vit_h_4b8939.pth")


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (compat.build_sam, "sam_vit_h"),
        (compat.build_sam_vit_h, "sam_vit_h"),
        (compat.build_sam_vit_l, "sam_vit_l"),
        (compat.build_sam_vit_b, "sam_vit_b"),
        (compat.build_sam_vit_t, "mobile_sam"),
    ],
)
def test_the_builders_have_names_of_their_own_too(build, name):
    with pytest.raises(InputError, match=f"{name}: neither a shipped model"):
        build(checkpoint=None)


def test_a_picture_larger_than_the_input_is_refused(pair):
    with pytest.raises(InputError, match="30 x 400 pixels, more than the 320"):
        pair[1].preprocess(torch.zeros(3, 30, 400))
    with pytest.raises(InputError, match="the sides of input_size are at most 320"):
        pair[1].postprocess_masks(torch.zeros(1, 1, 80, 80), (321, 10), (30, 40))
    with pytest.raises(InputError, match=r"expected \(B, 3, 320, 320\), see Sam\.preprocess"):
        pair[1].image_encoder(torch.zeros(1, 3, 320, 300))
