"""The two-way transformer equals the official one in float64; hooks and padding do what they say."""

import jax
import numpy as np
import pytest
import torch

from stablesam_jax.model.transformer import NO_HOOKS, TwoWayAttentionBlock, TwoWayTransformer
from tests.reference.sam_pair import CONFIG, SEEN, TOLERANCE, difference, float64_pair, normal

GRID = 5  # any map does; a small one is quick
WIDTH = CONFIG.embedding_width
TOKENS = normal(1, 2, 7, WIDTH, seed=1)
KEYS = normal(1, 2, GRID, GRID, WIDTH, seed=2)
KEY_PE = normal(1, 1, GRID, GRID, WIDTH, seed=3)
ALL = np.ones((1, 2, 7), bool)


@pytest.fixture(scope="module")
def pair():
    with float64_pair() as pair:
        yield pair


def parameters(pair):
    return pair.params["mask_decoder"]["transformer"]


APPLY = jax.jit(TwoWayTransformer(WIDTH).apply, static_argnames=("hooks", "shared"))


def run(pair, keys=KEYS, tokens=TOKENS, valid=ALL, hooks=NO_HOOKS, shared=False):
    return APPLY({"params": parameters(pair)}, keys, KEY_PE, tokens, valid, hooks=hooks, shared=shared)


def as_map(x):
    """(1, N, G, G, C) -> (N, C, G, G)."""
    return torch.from_numpy(np.array(x[0])).permute(0, 3, 1, 2)


def run_official(pair):
    key_pe = as_map(np.broadcast_to(KEY_PE, KEYS.shape))
    return pair.official.mask_decoder.transformer(as_map(KEYS), key_pe, torch.from_numpy(TOKENS[0]))


def whole_difference(pair):
    tokens, keys = run(pair)
    official_tokens, official_keys = run_official(pair)
    keys = keys[0].reshape(2, -1, WIDTH)
    return max(difference(tokens[0], official_tokens), difference(keys, official_keys))


@pytest.mark.parametrize("index", [0, 1])
def test_layers_are_equal(pair, index):
    queries = normal(*TOKENS.shape, seed=4)
    block = TwoWayAttentionBlock(WIDTH, first=index == 0)
    variables = {"params": parameters(pair)[f"layers_{index}"]}
    ours = jax.jit(lambda *inputs: block.apply(variables, *inputs, None))(queries, KEYS, TOKENS, KEY_PE, ALL)
    theirs = pair.official.mask_decoder.transformer.layers[index](
        queries=torch.from_numpy(queries[0]),
        keys=torch.from_numpy(KEYS[0]).flatten(1, 2),
        query_pe=torch.from_numpy(TOKENS[0]),
        key_pe=torch.from_numpy(KEY_PE[0]).flatten(1, 2).expand(2, -1, -1),
    )
    assert difference(ours[0][0], theirs[0]) < TOLERANCE
    assert difference(ours[1][0].reshape(2, -1, WIDTH), theirs[1]) < TOLERANCE


def test_transformers_are_equal(pair):
    assert whole_difference(pair) < TOLERANCE


def eps_of_the_encoder(transformer):
    for module in transformer.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6


def first_layer_like_the_second(transformer):
    transformer.layers[0].skip_first_layer_pe = False


def gelu_for_relu(transformer):
    transformer.layers[0].mlp.act = torch.nn.GELU()


def positions_in_values(transformer):
    attention = transformer.layers[1].cross_attn_token_to_image
    forward = attention.forward
    attention.forward = lambda q, k, v: forward(q, k, k)


def positions_in_values_of_tokens(transformer):
    attention = transformer.layers[1].cross_attn_image_to_token
    forward = attention.forward
    attention.forward = lambda q, k, v: forward(q, k, k)


def positions_in_values_of_self_attention(transformer):
    attention = transformer.layers[1].self_attn
    forward = attention.forward
    attention.forward = lambda q, k, v: forward(q, k, k)


def no_positions_for_output_tokens(transformer):
    # As if only the prompt's tokens had a positional term, not the first five.
    layer = transformer.layers[1]
    forward = layer.forward
    present = (torch.arange(TOKENS.shape[2]) >= 5)[:, None]
    layer.forward = lambda queries, keys, query_pe, key_pe: forward(queries, keys, query_pe * present, key_pe)


def positions_kept_in_the_image(transformer):
    layer = transformer.layers[0]
    forward = layer.forward
    layer.forward = lambda queries, keys, query_pe, key_pe: forward(queries, keys + key_pe, query_pe, key_pe)


def scale_of_the_encoder_width(transformer):
    attention = transformer.layers[1].cross_attn_token_to_image
    attention.q_proj.weight.div_(2**0.5)  # 1 / sqrt(32) for 1 / sqrt(16)


@pytest.mark.parametrize(
    "mistake",
    [
        eps_of_the_encoder,
        first_layer_like_the_second,
        gelu_for_relu,
        positions_in_values,
        positions_in_values_of_tokens,
        positions_in_values_of_self_attention,
        no_positions_for_output_tokens,
        positions_kept_in_the_image,
        scale_of_the_encoder_width,
    ],
)
def test_mistakes_are_seen(pair, mistake):
    assert whole_difference(pair.faulty(lambda sam: mistake(sam.mask_decoder.transformer))) > SEEN


def test_absent_tokens_change_nothing(pair):
    tokens, keys = run(pair)
    padded = np.concatenate([TOKENS, normal(1, 2, 3, WIDTH, seed=5)], axis=2)
    valid = np.broadcast_to(np.arange(10) < 7, (1, 2, 10))
    padded_tokens, padded_keys = run(pair, tokens=padded, valid=valid)
    np.testing.assert_allclose(padded_tokens[:, :, :7], tokens, rtol=0, atol=1e-12)
    np.testing.assert_allclose(padded_keys, keys, rtol=0, atol=1e-12)


def test_present_tokens_change_the_rest(pair):
    extended = np.concatenate([TOKENS, normal(1, 2, 3, WIDTH, seed=5)], axis=2)
    longer, _ = run(pair, tokens=extended, valid=np.ones((1, 2, 10), bool))
    assert np.abs(longer[:, :, :7] - run(pair)[0]).max() > 0.01


def double_keys(keys, key_pe, tokens):
    return 2 * keys, key_pe


@pytest.mark.parametrize("hooks", [NO_HOOKS, (double_keys, None, None)])
@pytest.mark.parametrize("shared", [False, True])
def test_features_shared_by_all_prompts_need_not_be_repeated(pair, shared, hooks):
    valid = ALL & (np.arange(7) < [[[7], [5]]])
    one = KEYS[:, :1]
    tokens, keys = run(pair, keys=one, valid=valid, hooks=hooks, shared=shared)
    repeated_tokens, repeated_keys = run(pair, keys=np.repeat(one, 2, axis=1), valid=valid, hooks=hooks)
    np.testing.assert_allclose(tokens, repeated_tokens, rtol=0, atol=1e-12)
    np.testing.assert_allclose(keys, repeated_keys, rtol=0, atol=1e-12)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_hook_serves_its_own_attention(pair, index):
    seen = []

    def double(keys, key_pe, tokens):
        seen.append((keys.shape, key_pe.shape, tokens.shape))
        return 2 * keys, key_pe

    hooks = [None, None, None]
    hooks[index] = double
    tokens, _ = run(pair, hooks=tuple(hooks))
    assert seen == [((1, 2, GRID, GRID, WIDTH), (1, 1, GRID, GRID, WIDTH), (1, 2, 7, WIDTH))]

    attention = [layer.cross_attn_token_to_image for layer in pair.official.mask_decoder.transformer.layers]
    attention.append(pair.official.mask_decoder.transformer.final_attn_token_to_image)
    positions = torch.from_numpy(KEY_PE[0]).flatten(1, 2)
    with pytest.MonkeyPatch.context() as patch:
        forward = attention[index].forward
        # k = keys + positions, v = keys: the hook doubles the keys and leaves the positions alone.
        patch.setattr(attention[index], "forward", lambda q, k, v: forward(q, k=2 * v + positions, v=2 * v))
        theirs, _ = run_official(pair)
    assert difference(tokens[0], theirs) < TOLERANCE
