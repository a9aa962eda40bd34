"""Prompts become the official embeddings in float64, in static shapes, and the comparison sees the usual mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stablesam_jax.model.prompt_encoder import PromptEncoder, Prompts, sparse_tokens
from tests.reference.sam_pair import CONFIG, SEEN, TOLERANCE, difference, float64_pair, normal

ENCODER = PromptEncoder(CONFIG.embedding_width, CONFIG.grid_size, CONFIG.image_size)
POINTS = np.array([[12.25, 300.5], [0.0, 0.0], [319.0, 77.7]])
LABELS = np.array([1, 0, 1])
BOX = np.array([20.3, 31.0, 250.6, 305.9])
NO_POINTS = (np.zeros((0, 2)), np.zeros(0, int))


@pytest.fixture(scope="module")
def pair():
    with float64_pair() as pair:
        yield pair


APPLY = jax.jit(ENCODER.apply)


def embed(pair, prompts):
    return APPLY({"params": pair.params["prompt_encoder"]}, prompts)


def one_prompt(points, labels, box, length):
    _, kinds, valid = sparse_tokens(points, labels, box, length=length)
    # sparse_tokens rounds coordinates to float32, as the official model does.
    coords = np.zeros((length, 2))
    given = np.concatenate([points, np.reshape(box, (-1, 2)) if box is not None else np.zeros((0, 2))])
    coords[: len(given)] = given
    return Prompts(jnp.asarray(coords)[None, None], kinds[None, None], valid[None, None])


def official_points(points, labels):
    return torch.from_numpy(points)[None], torch.from_numpy(labels)[None]


@pytest.mark.parametrize(
    ("points", "labels", "box", "length"),
    [
        pytest.param(POINTS[:1], LABELS[:1], None, 2, id="point"),
        pytest.param(POINTS, LABELS, None, 4, id="points"),
        pytest.param(*NO_POINTS, BOX, 2, id="box"),
        pytest.param(POINTS, LABELS, BOX, 5, id="box-and-points"),
        pytest.param(*NO_POINTS, BOX[[2, 3, 0, 1]], 2, id="inverted-box"),
        pytest.param(POINTS, np.array([1, -1, 0]), None, 4, id="not-a-point"),
        pytest.param(POINTS, np.array([-1, 1, -1]), BOX, 5, id="not-a-point-beside-a-box"),
    ],
)
def test_sparse_embeddings_are_equal(pair, points, labels, box, length):
    ours, dense = embed(pair, one_prompt(points, labels, box, length))
    theirs, official_dense = pair.official.prompt_encoder(
        official_points(points, labels) if len(labels) else None,
        None if box is None else torch.from_numpy(box)[None],
        None,
    )
    assert difference(ours[0], theirs) < TOLERANCE
    assert difference(dense[0], official_dense.permute(0, 2, 3, 1)) < TOLERANCE


def test_mask_embeddings_are_equal(pair):
    masks = 8 * normal(1, 2, CONFIG.mask_size, CONFIG.mask_size)
    tokens = (np.zeros((1, 2, 0, 2)), np.zeros((1, 2, 0), int), np.zeros((1, 2, 0), bool))
    sparse, ours = embed(pair, Prompts(*tokens, masks, np.ones((1, 2), bool)))
    theirs_sparse, theirs = pair.official.prompt_encoder(None, None, torch.from_numpy(masks[0])[:, None])
    assert difference(ours[0], theirs.permute(0, 2, 3, 1)) < TOLERANCE
    assert sparse[0].shape == theirs_sparse.shape == (2, 0, CONFIG.embedding_width)


def test_dense_positional_encoding_is_equal(pair):
    ours = ENCODER.apply({"params": pair.params["prompt_encoder"]}, method="get_dense_pe")
    theirs = pair.official.prompt_encoder.get_dense_pe()
    assert difference(ours[0], theirs.permute(0, 2, 3, 1)) < TOLERANCE


def test_a_mask_that_is_not_valid_is_no_mask(pair):
    prompt = one_prompt(POINTS, LABELS, BOX, 5)
    masks = normal(1, 1, CONFIG.mask_size, CONFIG.mask_size)
    _, without = embed(pair, prompt)
    _, invalid = embed(pair, prompt.replace(masks=masks, masks_valid=np.zeros((1, 1), bool)))
    np.testing.assert_array_equal(np.broadcast_to(without, invalid.shape), invalid)


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(lambda prompt: prompt.replace(coords=prompt.coords - 0.5), id="corner-of-the-pixel"),
        pytest.param(lambda prompt: prompt.replace(coords=prompt.coords[..., ::-1]), id="y-before-x"),
        pytest.param(lambda prompt: prompt.replace(labels=prompt.labels ^ 1), id="labels-and-corners-swapped"),
        pytest.param(lambda prompt: prompt.replace(coords=jnp.round(prompt.coords)), id="whole-pixels"),
        pytest.param(
            lambda prompt: prompt.replace(coords=prompt.coords.astype(jnp.bfloat16).astype(float)), id="bfloat16"
        ),
    ],
)
def test_mistakes_in_points_are_seen(pair, mistake):
    theirs, _ = pair.official.prompt_encoder(official_points(POINTS, LABELS), torch.from_numpy(BOX)[None], None)
    ours, _ = embed(pair, mistake(one_prompt(POINTS, LABELS, BOX, 5)))
    assert difference(ours[0], theirs) > SEEN


def official_gelu_is_tanh(encoder):
    encoder.mask_downscaling[2].approximate = "tanh"


def eps_of_the_transformer(encoder):
    encoder.mask_downscaling[1].eps = 1e-5


@pytest.mark.parametrize("mistake", [official_gelu_is_tanh, eps_of_the_transformer])
def test_mistakes_in_mask_embeddings_are_seen(pair, mistake):
    masks = 8 * normal(1, 1, CONFIG.mask_size, CONFIG.mask_size)
    faulty = pair.faulty(lambda sam: mistake(sam.prompt_encoder))
    assert mask_difference(pair, masks, faulty.official, masks) > SEEN


def test_masks_are_logits_not_probabilities(pair):
    masks = 8 * normal(1, 1, CONFIG.mask_size, CONFIG.mask_size)
    assert mask_difference(pair, masks, pair.official, 1 / (1 + np.exp(-masks))) > SEEN


def test_a_mask_embedding_takes_the_place_of_that_of_no_mask(pair):
    masks = 8 * normal(1, 1, CONFIG.mask_size, CONFIG.mask_size)
    ours, theirs = mask_embeddings(pair, masks, pair.official, masks)
    assert difference(ours, theirs) < TOLERANCE
    assert difference(ours, theirs + pair.official.prompt_encoder.no_mask_embed.weight) > SEEN


def mask_embeddings(pair, masks, official, official_masks):
    tokens = (np.zeros((1, 1, 0, 2)), np.zeros((1, 1, 0), int), np.zeros((1, 1, 0), bool))
    _, ours = embed(pair, Prompts(*tokens, masks, np.ones((1, 1), bool)))
    _, theirs = official.prompt_encoder(None, None, torch.from_numpy(official_masks))
    return ours[0], theirs.permute(0, 2, 3, 1)


def mask_difference(pair, masks, official, official_masks):
    return difference(*mask_embeddings(pair, masks, official, official_masks))


def test_a_token_that_is_not_a_point_has_no_position(pair):
    labels = np.array([1, -1, 0])
    ours, _ = embed(pair, one_prompt(POINTS, labels, BOX, 5))
    moved, _ = embed(pair, one_prompt(POINTS + np.array([[0], [9], [0]]), labels, BOX, 5))
    np.testing.assert_array_equal(ours, moved)
    encoding = pair.official.prompt_encoder.pe_layer.forward_with_coords(
        torch.from_numpy(POINTS)[None] + 0.5, (CONFIG.image_size, CONFIG.image_size)
    )
    theirs, _ = pair.official.prompt_encoder(official_points(POINTS, labels), torch.from_numpy(BOX)[None], None)
    theirs[:, 1] += encoding[:, 1]  # the embedding added to the encoding instead of taking its place
    assert difference(ours[0], theirs) > SEEN


def test_corners_of_a_box_are_not_sorted(pair):
    inverted = BOX[[2, 3, 0, 1]]
    ours, _ = embed(pair, one_prompt(*NO_POINTS, inverted, 2))
    theirs, _ = pair.official.prompt_encoder(None, torch.from_numpy(BOX)[None], None)
    assert difference(ours[0], theirs) > SEEN


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(lambda pe: torch.cat(pe.chunk(2, dim=1)[::-1], dim=1), id="cosines-first"),
        pytest.param(lambda pe: pe.transpose(2, 3), id="y-before-x"),
        pytest.param(lambda pe: torch.roll(pe, 1, dims=3), id="a-cell-beside"),
    ],
)
def test_mistakes_in_the_dense_positional_encoding_are_seen(pair, mistake):
    ours = ENCODER.apply({"params": pair.params["prompt_encoder"]}, method="get_dense_pe")
    theirs = mistake(pair.official.prompt_encoder.get_dense_pe())
    assert difference(ours[0], theirs.permute(0, 2, 3, 1)) > SEEN


def test_the_dense_positional_encoding_is_that_of_the_middle_of_cells(pair):
    ours = ENCODER.apply({"params": pair.params["prompt_encoder"]}, method="get_dense_pe")
    corners = np.arange(CONFIG.grid_size) / CONFIG.grid_size
    coords = torch.from_numpy(np.stack(np.meshgrid(corners, corners), axis=-1))
    assert difference(ours[0, 0], pair.official.prompt_encoder.pe_layer._pe_encoding(coords)) > SEEN


def test_the_gaussian_matrix_gets_no_gradient(pair):
    def loss(params):
        sparse, _ = ENCODER.apply({"params": params}, one_prompt(POINTS, LABELS, None, 4))
        return jnp.square(sparse).sum()

    gradient = jax.grad(loss)(pair.params["prompt_encoder"])
    assert not gradient["pe_layer"]["positional_encoding_gaussian_matrix"].any()
    assert gradient["point_embeddings_1"].any()


def test_a_box_is_two_tokens_after_the_points():
    coords, labels, valid = sparse_tokens(POINTS[:1], LABELS[:1], BOX, length=4)
    assert labels.tolist() == [1, 2, 3, -1]
    assert valid.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(coords, np.float32([POINTS[0], BOX[:2], BOX[2:], [0, 0]]))


def test_points_without_a_box_are_followed_by_one_token_that_is_attended_to():
    _, labels, valid = sparse_tokens(POINTS, LABELS, None, length=6)
    assert labels.tolist() == [1, 0, 1, -1, -1, -1]
    assert valid.tolist() == [True, True, True, True, False, False]


def test_a_prompt_of_nothing_has_no_tokens():
    assert not sparse_tokens(*NO_POINTS, None, length=3)[2].any()


def test_other_labels_are_refused():
    with pytest.raises(ValueError, match=r"0 \(background\) or -1 \(not a point\); got \[1, 2\]"):
        sparse_tokens(POINTS[:2], np.array([1, 2]), None, length=4)


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="4 tokens, more than the given length 3"):
        sparse_tokens(POINTS, LABELS, None, length=3)
