"""keras-hub's SAM on JAX with our parameters, as a side of the benchmark.

Its public `predict` encodes the picture again for every prompt, so its encoder and decoder are compiled separately
here. It supports ViT encoders and no HQ-SAM; the comparison is in float32.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bench.case import Options, Work, prepared
from eval.parity.__main__ import draw_params
from stablesam_jax.config import SamConfig, ViTConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.params import flatten

# Our names in the order of keras-hub's weights; a name stands for a leaf, or for its kernel or scale followed by bias.
_BLOCK = ("norm1", "norm2", "attn/qkv", "attn/proj", "attn/rel_pos_h", "attn/rel_pos_w", "mlp/lin1", "mlp/lin2")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_LAYER = (
    *(f"self_attn/{name}" for name in _ATTENTION),
    "norm1",
    *(f"cross_attn_token_to_image/{name}" for name in _ATTENTION),
    "norm2",
    "mlp/lin1",
    "mlp/lin2",
    "norm3",
    *(f"cross_attn_image_to_token/{name}" for name in _ATTENTION),
    "norm4",
)
_PROMPTS = (
    "pe_layer/positional_encoding_gaussian_matrix",
    *(f"point_embeddings_{label}" for label in (1, 0, 2, 3)),  # keras-hub has the foreground first
    "not_a_point_embed",
    *(f"mask_downscaling_{index}" for index in (0, 1, 3, 4, 6)),
    "no_mask_embed",
)
_MASKS = (
    *(f"transformer/layers_{layer}/{name}" for layer in range(2) for name in _LAYER),
    *(f"transformer/final_attn_token_to_image/{name}" for name in _ATTENTION),
    "transformer/norm_final_attn",
    "iou_token",
    "mask_tokens",
    *(f"output_upscaling_{index}" for index in (0, 1, 3)),
    *(f"output_hypernetworks_mlps_{token}/layers_{layer}" for token in range(4) for layer in range(3)),
    *(f"iou_prediction_head/layers_{layer}" for layer in range(3)),
)


def keras_encoder(options: Options, config: SamConfig, pixels: np.ndarray) -> dict[str, Work]:
    """The side that encodes (B, S, S, 3) normalised pixels to (B, S / 16, S / 16, 256); none without --keras-hub.

    Raises:
        InputError: keras-hub has no such model. If keras-hub is not installed, the work itself raises one.
    """

    def prepare() -> Work:
        encoder = _encoder(config)
        state = _state(encoder)
        encode = jax.jit(lambda state, pictures: encoder.stateless_call(*state, pictures)[0])
        # keras-hub's model takes pixels in [0, 1] and normalises them itself.
        pictures = (pixels * np.array(config.pixel_std) + np.array(config.pixel_mean)).astype(np.float32) / 255
        pictures = jax.device_put(pictures)
        return lambda: encode(state, pictures)

    return _side(options, config, prepare)


def keras_decoder(
    options: Options, config: SamConfig, embed: Callable[[SamConfig], ImageEmbedding], boxes: np.ndarray
) -> dict[str, Work]:
    """The side that decodes (N, 4) boxes to (N, 4 G, 4 G) low-resolution logits; none without --keras-hub.

    Raises:
        InputError: as `keras_encoder`.
    """

    def prepare() -> Work:
        prompt_encoder, mask_decoder = _decoder(config)
        features = embed(config).features
        state = _state(prompt_encoder), _state(mask_decoder)

        @jax.jit
        def decode(state: Any, features: jax.Array, boxes: jax.Array) -> jax.Array:
            prompts, _ = prompt_encoder.stateless_call(*state[0], boxes=boxes)
            found, _ = mask_decoder.stateless_call(*state[1], image_embeddings=features, **prompts)
            return found["masks"][:, 0]

        return lambda: decode(state, features, boxes.reshape(-1, 1, 2, 2))

    return _side(options, config, prepare)


def _side(options: Options, config: SamConfig, prepare: Callable[[], Work]) -> dict[str, Work]:
    if not options.keras_hub:
        return {}
    if not isinstance(config.encoder, ViTConfig) or config.dtype != "float32":
        raise InputError("--keras-hub: supports SAM's ViT-B, L and H in float32; choose such a model and dtype.")
    return {"keras-hub": prepared(prepare)}


def _encoder(config: SamConfig) -> Any:
    vit = config.encoder
    assert isinstance(vit, ViTConfig)  # checked in `_side`
    encoder = _import_keras_hub().models.ViTDetBackbone(
        hidden_size=vit.width,
        num_layers=vit.depth,
        intermediate_dim=4 * vit.width,
        num_heads=vit.heads,
        global_attention_layer_indices=list(vit.global_blocks),
        image_shape=(config.image_size, config.image_size, 3),
    )
    leaves = flatten(draw_params(config, seed=0)["image_encoder"])
    blocks = [[f"blocks_{index}/{name}" for name in _BLOCK] for index in range(vit.depth)]
    parts = [["patch_embed/proj"], ["pos_embed"], *blocks, [f"neck/{index}" for index in range(4)]]
    for layer, names in zip([layer for layer in encoder.layers if layer.weights], parts, strict=True):
        _fill(layer, leaves, names)
    return encoder


def _decoder(config: SamConfig) -> tuple[Any, Any]:
    layers, size, grid = _import_keras_hub().layers, config.image_size, config.image_size // 16
    prompt_encoder = layers.SAMPromptEncoder(
        hidden_size=256, image_embedding_size=(grid, grid), input_image_size=(size, size), mask_in_channels=16
    )
    mask_decoder = layers.SAMMaskDecoder(
        hidden_size=256, num_layers=2, intermediate_dim=2048, num_heads=8, embedding_dim=256
    )
    params = draw_params(config, seed=0)
    for part, layer, names in (("prompt_encoder", prompt_encoder, _PROMPTS), ("mask_decoder", mask_decoder, _MASKS)):
        layer.build()
        _fill(layer, flatten(params[part]), names)
    return prompt_encoder, mask_decoder


def _fill(layer: Any, leaves: Mapping[str, jax.Array], names: Sequence[str]) -> None:
    """Sets a layer's weights from our parameters."""
    values = []
    for name in names:
        of_name = [path for path in (name, f"{name}/kernel", f"{name}/scale", f"{name}/bias") if path in leaves]
        values += [np.asarray(leaves[path]) for path in of_name]
    # A transposed convolution's kernel has its output channels before its input channels.
    layer.set_weights(
        [
            value if value.shape == variable.shape else value.swapaxes(-1, -2)
            for value, variable in zip(values, layer.weights, strict=True)
        ]
    )


def _state(layer: Any) -> tuple[list[jax.Array], list[jax.Array]]:
    """The first two arguments of `stateless_call`."""
    return (
        [variable.value for variable in layer.trainable_variables],
        [variable.value for variable in layer.non_trainable_variables],
    )


def _import_keras_hub() -> Any:
    os.environ["KERAS_BACKEND"] = "jax"  # keras reads it on import
    try:
        import keras_hub
    except ImportError as error:
        raise InputError(f"--keras-hub: {error}; try: pip install keras-hub") from error
    return keras_hub
