"""Both sides of the parity command: one picture and its prompts through our model and through the official one."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from convert.flax_to_torch import plugin_state
from convert.rules import VIDEO_MODULES, to_flax, to_torch
from eval.parity import sam2_twin, torch_sam, torch_sam2
from eval.parity.quantities import (
    DECODER,
    DENSE,
    EARLY,
    EMBEDDING,
    FULL_RES,
    GRADIENT,
    HQ_FEATURES,
    IMAGE_PE,
    INPUT,
    IOU,
    LOW_RES,
    OBJECT,
    QUANTITIES,
    SPARSE,
    STRIDE_4,
    STRIDE_8,
    TOKENS,
    Outputs,
)
from stablesam_jax.build import assemble, shapes
from stablesam_jax.config import SamConfig, ViTConfig
from stablesam_jax.model.encoders import encoder_of
from stablesam_jax.model.mask_decoder import Masks
from stablesam_jax.model.prompt_encoder import Prompts, sparse_tokens
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.model.sam2 import with_padding_point
from stablesam_jax.ops.layers import pixels
from stablesam_jax.params import Params, flatten
from stablesam_jax.predict.postprocess import upscale_logits
from stablesam_jax.predict.preprocess import preprocess, to_model_frame
from stablesam_jax.prompts import Prompt
from stablesam_torch import plugin as torch_plugin

SLOTS = 8  # tokens that every prompt is padded to on our side, so that the comparison covers padding


# Arguments with which `Sam.decode` is compared; HQ-SAM has one form more.
FORMS: tuple[dict[str, Any], ...] = ({"masks": "single"}, {"masks": "multi"})
HQ_FORMS: tuple[dict[str, Any], ...] = (*FORMS, {"masks": "single", "hq_token_only": True})


def in_order(outputs: Iterable[str]) -> list[str]:
    """Sorts names of quantities by the order of computation; gradients keep theirs and come last."""
    names = list(outputs)
    return [name for name in QUANTITIES if name in names] + [name for name in names if name.startswith(GRADIENT)]


class NoEncoder(torch.nn.Module):
    """Placeholder for an encoder without an official twin, such as sam_nano's."""

    def __init__(self, img_size: int):
        super().__init__()
        self.img_size = img_size


def official_parts(config: SamConfig) -> tuple[str, ...]:
    """The subtrees of our parameters that have an official twin."""
    decoding = ("prompt_encoder", "mask_decoder")
    return decoding if encoder_of(config).official is None else ("image_encoder", *decoding)


def build_official(config: SamConfig) -> torch_sam.Official:
    """Builds the official model of a configuration without its plugin; with `NoEncoder` if its encoder has no twin."""
    if encoder_of(config).official is not None:
        return torch_sam.build(config)
    any_encoder = ViTConfig(width=torch_sam.early_width(config), depth=1, heads=1, global_blocks=(0,))
    official = torch_sam.build(dataclasses.replace(config, encoder=any_encoder))
    official.image_encoder = NoEncoder(config.image_size)
    return official


def load_official(config: SamConfig, params: Params) -> torch_sam.Official:
    """Builds the official model with our weights, and with the PyTorch twin of the plugin if there is one."""
    official = build_official(config)
    state = to_torch({part: params[part] for part in official_parts(config)})
    tensors = {name: torch.tensor(array) for name, array in state.items()}
    # SAM 2 has modules for videos, too, which keep what they have.
    faults = official.load_state_dict(tensors, assign=True, strict=not config.sam2)
    assert not faults.unexpected_keys
    assert all(name.partition(".")[0] in VIDEO_MODULES for name in faults.missing_keys)
    if config.plugin is not None:
        torch_plugin.stabilise(official, plugin_state(params["plugin"], config.plugin, {}))
    return official


def convert(state: Mapping[str, torch.Tensor], config: SamConfig) -> Params:
    """Converts an official state dict to our parameters: the subtrees of `official_parts`."""
    target = shapes(assemble(config))
    return to_flax(
        {name: tensor.numpy() for name, tensor in state.items()},
        {part: target[part] for part in official_parts(config)},
    )


def run_ours(sam: Sam, params: Params, picture: np.ndarray, prompts: Sequence[Prompt]) -> Outputs:
    """Runs our model, all prompts at once.

    Args:
        sam: our module.
        params: its parameters.
        picture: (H, W, 3) uint8.
        prompts: N of them, in pixels of the picture; masks are (4G, 4G) logits.

    Returns:
        float32 arrays: model input (S, S, 3), image embedding (G, G, C), sparse embeddings (tokens of all prompts, C),
        dense embeddings (N, G, G, C), dense positional encoding (G, G, C), low-resolution logits (N, M, 4G, 4G) of all
        FORMS concatenated, IoU predictions (N, M), full-resolution logits (N, M, H, W). "decoder alone" equals the
        low-resolution logits here. HQ-SAM: early features (G, G, any), HQ features (4G, 4G, C / 8), and logits of each
        token (N, 5, 4G, 4G), the HQ token last. SAM 2: features at stride 4 (4G, 4G, C / 8) and 8 (2G, 2G, C / 4),
        logits of each token (N, 4, 4G, 4G), and object scores (N,). With a plugin: the gradient of each of its
        parameters; the loss is the mean square of the low-resolution logits.
    """
    variables = {"params": jax.device_put(params)}
    size_hw = picture.shape[:2]
    model_input = preprocess(picture, sam.config)
    batch = stack_prompts(prompts, size_hw, sam.config)
    encode, decode, differentiate = _programs(sam)
    embedding = encode(variables, model_input[None])
    outputs = {INPUT: model_input, EMBEDDING: embedding.features[0]}
    if sam.config.hq:
        outputs[EARLY] = embedding.early[0]
    outputs |= decode(variables, embedding, batch)
    if sam.config.plugin is not None:
        gradients = flatten(differentiate(variables["params"], embedding, batch))
        outputs |= {GRADIENT + path: gradient for path, gradient in gradients.items()}
    outputs = {name: np.array(array, np.float32) for name, array in outputs.items()}
    valid = with_padding_point(batch).valid if sam.config.sam2 else batch.valid
    outputs[SPARSE] = outputs[SPARSE][np.asarray(valid[0])]
    full_res = upscale_logits(outputs[LOW_RES], size_hw, sam.config.frame)
    return outputs | {DECODER: outputs[LOW_RES], FULL_RES: full_res}


@functools.cache
def _programs(sam: Sam) -> tuple[Callable, Callable, Callable]:
    """Compiles three functions: encode pictures, decode prompts to all quantities, differentiate by the plugin."""

    def decode_forms(sam: Sam, embedding: ImageEmbedding, batch: Prompts) -> list[Masks]:
        # XLA computes once what the forms have in common.
        return [sam.decode(embedding, batch, **form) for form in (HQ_FORMS if sam.config.hq else FORMS)]

    def decode(sam: Sam, embedding: ImageEmbedding, batch: Prompts) -> dict[str, jax.Array]:
        embedding = sam.fuse(embedding)
        decoded = decode_forms(sam, embedding, batch)
        sparse, dense = sam.prompt_encoder(with_padding_point(batch) if sam.config.sam2 else batch)
        outputs = {
            SPARSE: sparse[0],
            DENSE: dense[0],
            IMAGE_PE: sam.prompt_encoder.get_dense_pe()[0, 0],
            LOW_RES: jnp.concatenate([masks.low_res_masks[0] for masks in decoded], axis=1),
            IOU: jnp.concatenate([masks.iou_predictions[0] for masks in decoded], axis=1),
        }
        if sam.config.hq:
            every = sam.decode(embedding, batch, masks="all")
            assert embedding.hq_features is not None
            assert every.hq_masks is not None
            outputs[HQ_FEATURES] = embedding.hq_features[0]
            outputs[TOKENS] = jnp.concatenate([every.low_res_masks[0], every.hq_masks[0]], axis=1)
        if sam.config.sam2:
            every = sam.decode(embedding, batch, masks="all")
            assert embedding.high_res_s0 is not None
            assert embedding.high_res_s1 is not None
            assert every.object_scores is not None
            rows = embedding.high_res_s1[0].swapaxes(1, 2)  # (G, 2, G, 2, C / 4)
            outputs[STRIDE_4] = pixels(embedding.high_res_s0)[0]
            outputs[STRIDE_8] = rows.reshape(2 * len(rows), 2 * len(rows), -1)
            outputs |= {TOKENS: every.low_res_masks[0], OBJECT: every.object_scores[0]}
        return outputs

    def loss(plugin: Params, params: Params, embedding: ImageEmbedding, batch: Prompts) -> jax.Array:
        decoded = sam.apply({"params": params | {"plugin": plugin}}, embedding, batch, method=decode_forms)
        return jnp.mean(jnp.square(jnp.concatenate([masks.low_res_masks for masks in decoded], axis=2)))

    def differentiate(params: Params, embedding: ImageEmbedding, batch: Prompts) -> Params:
        return {"plugin": jax.grad(loss)(params["plugin"], params, embedding, batch)}

    encode = functools.partial(sam.apply, method="encode")
    return jax.jit(encode), jax.jit(functools.partial(sam.apply, method=decode)), jax.jit(differentiate)


@torch.no_grad()
def run_official(
    official: torch_sam.Official, picture: np.ndarray, prompts: Sequence[Prompt], ours: Outputs
) -> Outputs:
    """Runs the official model, one prompt at a time.

    Args:
        official: from `load_official`, or of `to_float64`.
        picture: (H, W, 3) uint8.
        prompts: N of them.
        ours: of `run_ours`; "decoder alone" decodes its embedding and early features.

    Returns:
        the arrays of `run_ours`, without those of an encoder that has no twin.
    """
    if isinstance(official, torch_sam2.SAM2Base):
        return sam2_twin.run(official, picture, prompts, ours)
    dtype = official.mask_decoder.iou_token.weight.dtype
    size_hw = picture.shape[:2]
    transform = torch_sam.ResizeLongestSide(official.image_encoder.img_size)
    resized = torch.from_numpy(transform.apply_image(picture)).permute(2, 0, 1).contiguous()
    pixels = official.preprocess(resized[None])
    outputs = {INPUT: pixels[0].permute(1, 2, 0)}

    # As the official encoder returns them: the embedding is channels-first, the early features are channels-last.
    our_features = _to_map(ours[EMBEDDING]).to(dtype)
    our_early = torch.from_numpy(ours[EARLY])[None].to(dtype) if EARLY in ours else None
    if isinstance(official.image_encoder, NoEncoder):
        features, early = our_features, our_early
    else:
        features, early = _encode(official, pixels.to(dtype))
        outputs[EMBEDDING] = features[0].permute(1, 2, 0)
        if early is not None:
            outputs[EARLY] = early[0]
    if early is not None:
        fused = torch_sam.picture_features(official.mask_decoder, features, early)
        outputs[HQ_FEATURES] = fused[0].permute(1, 2, 0)

    image_pe = official.prompt_encoder.get_dense_pe()
    lists: dict[str, list[torch.Tensor]] = {name: [] for name in (SPARSE, DENSE, DECODER, LOW_RES, IOU)}
    if early is not None:
        lists[TOKENS] = []

    def to_model(coords: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(transform.apply_coords(coords, size_hw)).float().to(dtype)[None]

    parameters = {name: leaf for name, leaf in official.named_parameters() if name.startswith("plugin.")}
    gradients: list[tuple[torch.Tensor, ...]] = []
    for prompt in prompts:
        points = (to_model(prompt.points), torch.from_numpy(prompt.labels)[None]) if len(prompt.labels) else None
        boxes = None if prompt.box is None else to_model(prompt.box.reshape(2, 2)).reshape(1, 4)
        masks = None if prompt.mask is None else torch.from_numpy(prompt.mask)[None, None].to(dtype)
        sparse, dense = official.prompt_encoder(points, boxes, masks)
        lists[SPARSE].append(sparse[0])
        lists[DENSE].append(dense.permute(0, 2, 3, 1))
        with torch.set_grad_enabled(len(parameters) > 0):
            logits, iou = _decode_forms(official.mask_decoder, features, early, image_pe, sparse, dense)
            loss = logits.square().mean() / len(prompts)
        if parameters:
            gradients.append(torch.autograd.grad(loss, list(parameters.values())))
        lists[LOW_RES].append(logits.detach())
        lists[IOU].append(iou.detach())
        alone, _ = _decode_forms(official.mask_decoder, our_features, our_early, image_pe, sparse, dense)
        lists[DECODER].append(alone)
        if early is not None:
            logits, _ = official.mask_decoder.predict_masks(features, image_pe, sparse, dense, fused)
            lists[TOKENS].append(logits)
    outputs |= {name: torch.cat(tensors) for name, tensors in lists.items()}
    for name, *of_prompts in zip(parameters, *gradients, strict=True):
        outputs[GRADIENT + name.replace(".", "/")] = torch.stack(of_prompts).sum(dim=0)
    outputs[IMAGE_PE] = image_pe[0].permute(1, 2, 0)
    outputs[FULL_RES] = official.postprocess_masks(outputs[LOW_RES], resized.shape[1:], size_hw)
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def stack_prompts(prompts: Sequence[Prompt], size_hw: tuple[int, int], config: SamConfig) -> Prompts:
    """Pads and stacks N prompts of one picture."""

    def tokens(prompt: Prompt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        points = to_model_frame(prompt.points, size_hw, config.frame)
        box = None if prompt.box is None else to_model_frame(prompt.box.reshape(2, 2), size_hw, config.frame)
        return sparse_tokens(points, prompt.labels, box, length=SLOTS)

    coords, labels, valid = (jnp.stack(arrays)[None] for arrays in zip(*map(tokens, prompts), strict=True))
    absent = np.zeros((config.mask_size, config.mask_size), np.float32)
    masks = jnp.stack([absent if prompt.mask is None else prompt.mask for prompt in prompts])[None]
    masks_valid = jnp.array([[prompt.mask is not None for prompt in prompts]])
    return Prompts(coords=coords, labels=labels, valid=valid, masks=masks, masks_valid=masks_valid)


def to_float64(official: torch_sam.Official) -> torch_sam.Official:
    """Converts the official model to float64, in place. It still normalises pictures in float32, as our side does."""
    if isinstance(official, torch_sam2.SAM2Base):
        official.double()
        official.sam_prompt_encoder.pe_layer = _Float64Positions(official.sam_prompt_encoder.pe_layer)
        torch_sam2.float64_neck(official.image_encoder.neck)
        return official
    mean, deviation = official.pixel_mean, official.pixel_std
    official.double()  # converts the two buffers as well
    official.pixel_mean, official.pixel_std = mean, deviation
    official.prompt_encoder.pe_layer = _Float64Positions(official.prompt_encoder.pe_layer)
    return official


class _Float64Positions(torch.nn.Module):
    """The official positional encoding without its casts of coordinates to float32 (modeling/prompt_encoder.py)."""

    def __init__(self, official: torch.nn.Module):
        super().__init__()
        self.official = type(official)
        self.register_buffer("positional_encoding_gaussian_matrix", official.positional_encoding_gaussian_matrix)

    def _pe_encoding(self, coords: torch.Tensor) -> torch.Tensor:
        return self.official._pe_encoding(self, coords)

    def forward(self, size_hw: tuple[int, int]) -> torch.Tensor:
        """-> (C, H, W) float64, of the centres of H x W cells."""
        y, x = ((torch.arange(size, dtype=torch.float64) + 0.5) / size for size in size_hw)
        centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        return self._pe_encoding(centres).permute(2, 0, 1)

    def forward_with_coords(self, coords: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """(B, N, 2) pixels (x, y) -> (B, N, C) float64."""
        height, width = image_size
        return self._pe_encoding(coords.double() / torch.tensor([width, height]))


def _to_map(features: np.ndarray) -> torch.Tensor:
    """(G, G, C) -> (1, C, G, G)."""
    return torch.from_numpy(features).permute(2, 0, 1)[None].contiguous()


def _encode(official: torch_sam.Official, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(1, 3, S, S) -> image embedding (1, C, G, G), and early features (1, G, G, any) of HQ-SAM."""
    encoded = official.image_encoder(pixels)
    return (encoded[0], encoded[1][0]) if isinstance(encoded, tuple) else (encoded, None)


def _decode_forms(
    decoder: torch.nn.Module,
    features: torch.Tensor,
    early: torch.Tensor | None,
    image_pe: torch.Tensor,
    sparse: torch.Tensor,
    dense: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (1, M, 4G, 4G) and predicted IoU (1, M) of one prompt, for all FORMS concatenated."""
    decoded = []
    for form in FORMS if early is None else HQ_FORMS:
        multi = form["masks"] == "multi"
        more = () if early is None else (form.get("hq_token_only", False), [early])
        decoded.append(decoder(features, image_pe, sparse, dense, multi, *more))
    logits, iou = zip(*decoded, strict=True)
    return torch.cat(logits, dim=1), torch.cat(iou, dim=1)
