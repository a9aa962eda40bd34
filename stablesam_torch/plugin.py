"""Stable-SAM's plugin for PyTorch: makes a model of segment_anything or segment_anything_hq stable in one line.

    sam = stabilise(sam_model_registry["vit_b"](checkpoint="sam_vit_b_01ec64.pth"), load_plugin_state("plugin.pth"))
    masks, scores, logits = SamPredictor(sam).predict(...)  # and everything else as before

The package imports only torch and can be copied into any project. The official packages are not edited: forward
hooks replace keys and values of the two-way transformer's token-to-image attentions. The state is written by `python -m
convert.flax_to_torch --checkpoint plugin.safetensors --output plugin.pth`. Parameters have the names and axes of
stablesam_jax, with dots: kernels are (in, out), that of the depthwise convolution is (k, k, C).
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from .plugin_config import CONFIG_KEY, Config, FirstPass, packed, unpacked
from .resampling import ChannelPooledAttention, CoordinateAttention, LinearMaps, OffsetNetwork, Router, sample

MASK_TOKENS = slice(1, 5)  # after the IoU token; the first is that of the single mask
SAM2_MASK_TOKENS = slice(2, 6)  # of a SAM 2, which has its object token before these
HQ_TOKEN = 5  # of an HQ-SAM, which is trained on this token's mask alone

Model = TypeVar("Model", bound=nn.Module)


def load_plugin_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file of convert.flax_to_torch or of `torch.save(sam.plugin.state_dict(), path)`, for `stabilise`."""
    return torch.load(path, map_location="cpu", weights_only=True)


def stabilise(sam: Model, state: Mapping[str, Any]) -> Model:
    """Adds a plugin to a SAM, in place.

    The SAM must be the base that the plugin was trained on, which `unpacked(state["_extra_state"])["metadata"]` names.
    Load the base's weights first: afterwards the model's state dict also has the plugin's entries, under `plugin.`.

    Args:
        sam: from segment_anything, segment_anything_hq or a package with their mask decoder; or a SAM2Base of sam2.
        state: from `load_plugin_state`, or the state dict of a `Plugin`.

    Returns:
        sam, with the plugin as its module `plugin`, in the dtype and on the device of the mask decoder. To train the
        plugin alone, freeze everything else.

    Raises:
        ValueError: the state is not of a supported plugin, the model has a plugin, or their widths differ.
    """
    if hasattr(sam, "plugin"):
        raise ValueError("The model has a plugin already; build the model again to add another one.")
    if not isinstance(state.get(CONFIG_KEY), Mapping | torch.Tensor):
        raise ValueError(f"This is no state of a plugin: it has no {CONFIG_KEY!r}. Write one by convert.flax_to_torch.")
    decoder = sam.sam_mask_decoder if hasattr(sam, "sam_mask_decoder") else sam.mask_decoder
    plugin = Plugin(**unpacked(state[CONFIG_KEY]))
    if decoder.transformer_dim != plugin.config.embedding_width:
        raise ValueError(
            f"The plugin is {plugin.config.embedding_width} channels wide, the mask decoder {decoder.transformer_dim}. "
            "Give the base that it was trained on."
        )
    plugin.to(decoder.iou_token.weight).load_state_dict(state)
    if hasattr(decoder, "obj_score_token"):
        if plugin.config.first_pass is not None:
            raise ValueError("A plugin with first_pass does not work on SAM 2 in PyTorch, which hands it no boxes.")
        plugin.mask_tokens = SAM2_MASK_TOKENS
    plugin.output_token = HQ_TOKEN if hasattr(decoder, "hf_token") else plugin.mask_tokens.start
    plugin.hook(decoder.transformer)
    if plugin.config.first_pass is not None:
        plugin.hook_first_pass(sam.prompt_encoder, decoder)
    sam.plugin = plugin
    return sam


class Plugin(nn.Module):
    """Deformable sampling and dynamic routing (sec. 4.2, 4.3). Kernels and biases are zero until a state is loaded."""

    def __init__(self, config: Mapping[str, Any], metadata: Mapping[str, Any]):
        super().__init__()
        try:
            limits = config.get("first_pass")
            as_tuples = {"attentions": tuple(config["attentions"]), "first_pass": limits and tuple(limits)}
            self.config = Config(**{**config, **as_tuples})
        except (KeyError, TypeError) as error:
            raise ValueError(f"stablesam_torch does not support this plugin ({error}). Get a newer version.") from None
        self.metadata = dict(metadata)
        if self.config.resample == "deform":
            self.dsp = OffsetNetwork(self.config)
        elif self.config.resample == "cbam":
            self.spatial = ChannelPooledAttention()
        elif self.config.resample == "linear":
            self.linear = LinearMaps(self.config)
        else:
            self.spatial = CoordinateAttention(self.config.embedding_width)
        if self.config.router:
            self.drp = Router(self.config)
        self.mask_tokens = MASK_TOKENS  # `stabilise` sets those of a SAM 2
        self.output_token = MASK_TOKENS.start  # index of the router's token; `stabilise` sets another one
        self._boxes: tuple[torch.Tensor, torch.Tensor] | None = None  # see `set_boxes`
        self._alone = False  # whether the decoder runs without the plugin
        self._forget()

    def forward(
        self, keys: torch.Tensor, key_pe: torch.Tensor, tokens: torch.Tensor, attention: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixes deformable and original features: alpha_1 * x*_{p + delta p} + alpha_2 * x_p (eq. 6).

        A strength s below 1 interpolates between x_p, at 0, and this mixture, at 1.

        Args:
            keys: (N, H, W, C), image features of N prompts, without their positional encoding.
            key_pe: (N, H, W, C), their positional encoding.
            tokens: (N, T, C), after the layer's self-attention.
            attention: which of `config.attentions` it is, for the linear form; None: the first.

        Returns:
            keys and key_pe for the attention, (N, H, W, C) each. The keys are also its values.
        """
        # s (alpha_1 x* + alpha_2 x) + (1 - s) x has the weights (s alpha_1, s alpha_2 + 1 - s).
        alpha = self._alpha(tokens)
        shares = self.config.strength * alpha + alpha.new_tensor([0, 1 - self.config.strength])
        weights = shares.to(keys.dtype)[:, None, None, :, None]

        def mix(resampled: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
            return weights[..., 0, :] * resampled + weights[..., 1, :] * original

        if self.config.resample == "linear":
            of_keys, of_values = self.linear(keys, key_pe, attention)
            by = weights[..., 0, :]
            return keys + by * of_values, key_pe + by * (of_keys - of_values)
        if self.config.resample != "deform":
            return mix((keys * self.spatial(keys)).to(keys.dtype), keys), key_pe
        amplitudes, offsets = self.dsp(keys)
        mixed = mix(sample(amplitudes, offsets, self.config.padding), keys)
        if self.config.positions == "resampled":
            key_pe = mix(sample(key_pe, offsets, self.config.padding), key_pe)
        return mixed, key_pe

    def _alpha(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, T, C) -> (N, 2); without a router (1, 0) for all prompts, as (1, 2)."""
        if not self.config.router:
            return tokens.new_tensor([[1, 0]])
        if self.config.router_token == "mean":
            return self.drp(tokens[:, self.mask_tokens].mean(dim=1))
        return self.drp(tokens[:, self.output_token])

    def hook(self, transformer: nn.Module) -> None:
        """Registers hooks before the token-to-image attentions of a TwoWayTransformer that the configuration names.

        Attentions get queries and keys with their positional encodings added, and subtracting these again would lose
        digits. So other hooks record the encodings and the tokens where the transformer has them separately.
        """
        layers = transformer.layers
        attentions = [*(layer.cross_attn_token_to_image for layer in layers), transformer.final_attn_token_to_image]
        token_sources = [*(layer.norm1 for layer in layers), layers[-1]]
        transformer.register_forward_pre_hook(self._keep_positions)
        for index in self.config.attentions:
            token_sources[index].register_forward_hook(self._keep_tokens)
            attentions[index].register_forward_pre_hook(functools.partial(self._resample, index), with_kwargs=True)
        transformer.register_forward_hook(self._forget)

    def hook_first_pass(self, prompt_encoder: nn.Module, decoder: nn.Module) -> None:
        """Lets the decoder predict without and with the plugin, and keep the plugin's masks where it should act."""
        self._image_size = prompt_encoder.input_image_size[0]
        prompt_encoder.register_forward_pre_hook(self._keep_boxes, with_kwargs=True)
        decoder.predict_masks = functools.partial(self._predict_twice, decoder)

    def set_boxes(self, has_box: torch.Tensor, boxes: torch.Tensor) -> None:
        """Says which boxes the next prompts have, for decoding what the model's prompt encoder has not embedded.

        Only plugins with a first pass read it. The prompt encoder's hook sets it from `boxes` of each call.

        Args:
            has_box: (N,) bool, or (1,) for all prompts.
            boxes: (N, 4) or (1, 4) XYXY in pixels of the model's input.
        """
        self._boxes = has_box, boxes

    def get_extra_state(self) -> torch.Tensor:
        """Configuration and metadata, see `packed`."""
        return packed(dataclasses.asdict(self.config), self.metadata)

    def set_extra_state(self, state: torch.Tensor | Mapping[str, Any]) -> None:
        """Sets the metadata from a state. The configuration was used when the module was built."""
        self.metadata = dict(unpacked(state)["metadata"])

    # Hooks are bound methods, not closures: deepcopy of a model binds them to the copy's plugin.

    def _keep_positions(self, transformer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        _, image_pe, _ = args  # (N, C, H, W)
        self._key_pe = image_pe.permute(0, 2, 3, 1)

    def _keep_tokens(self, module: nn.Module, args: Any, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        self._tokens = output[0] if isinstance(output, tuple) else output

    def _resample(
        self, index: int, attention: nn.Module, args: tuple[()], kwargs: dict[str, torch.Tensor]
    ) -> tuple[tuple[()], dict[str, torch.Tensor]]:
        if self._alone:
            return args, kwargs
        # Values are the image features alone; keys already have the positional encoding added.
        keys, key_pe = self(kwargs["v"].view_as(self._key_pe), self._key_pe, self._tokens, index)
        return args, kwargs | {"k": (keys + key_pe).flatten(1, 2), "v": keys.flatten(1, 2)}

    def _forget(self, *_: Any) -> None:
        self._key_pe = self._tokens = None

    def _keep_boxes(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        boxes = kwargs.get("boxes", args[1] if len(args) > 1 else None)
        if boxes is None:
            zeros = next(encoder.parameters()).new_zeros(1, 4)
            self.set_boxes(zeros[:, 0] > 0, zeros)
        else:
            boxes = torch.as_tensor(boxes).reshape(-1, 4)
            self.set_boxes(torch.ones_like(boxes[:, 0], dtype=torch.bool), boxes)

    def _predict_twice(self, decoder: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        """`predict_masks` of the decoder. Both results are computed and chosen by arithmetic, so that a graph can."""
        predict = functools.partial(type(decoder).predict_masks, decoder, *args, **kwargs)
        self._alone = True
        try:
            alone = predict()
        finally:
            self._alone = False
        changed = predict()
        acts = self._acts(*(masks.detach() for masks in (alone[0], alone[1], changed[0])))
        return tuple(
            torch.where(acts.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(changed, alone, strict=True)
        )

    def _acts(self, before: torch.Tensor, predicted_iou: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """(N,) bool: the mask without the plugin is poor, and that with it has not run away from the prompt's box."""
        assert self.config.first_pass is not None
        if self._boxes is None or len(self._boxes[0]) not in (1, len(before)):
            raise RuntimeError("This plugin needs the prompts' boxes: call the prompt encoder first, or set_boxes.")
        limits = FirstPass(*self.config.first_pass)
        has_box, boxes = self._boxes
        earlier, fits = (
            box_iou(mask_boxes(self._single(masks), self._image_size), boxes.to(masks)) for masks in (before, after)
        )
        # By "and" and "or": onnxruntime has no `where` of booleans.
        poor = (has_box & (earlier < limits.fit)) | (~has_box & (predicted_iou[:, 0] < limits.predicted_iou))
        return poor & (~has_box | (fits >= limits.least_fit) & (fits >= earlier - limits.lost_fit))

    def _single(self, masks: torch.Tensor) -> torch.Tensor:
        """(N, all, S, S) -> (N, S, S), the single mask; of HQ-SAM with that of its own token."""
        return masks[:, 0] + masks[:, -1] if self.output_token == HQ_TOKEN else masks[:, 0]


def mask_boxes(low_res_masks: torch.Tensor, image_size: int) -> torch.Tensor:
    """The boxes around masks (N, S, S) of logits, in pixels of the model's input: (N, 4) XYXY; no area if empty."""
    side = low_res_masks.shape[-1]
    edges = []
    for axis in (-2, -1):  # columns, then rows
        line = (low_res_masks > 0).any(dim=axis)
        first = line.float().argmax(dim=-1)
        last = side - line.flip(-1).float().argmax(dim=-1)
        scale = image_size / side
        edges.append((first * scale, torch.where(line.any(dim=-1), last * scale - 1, first * scale)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=-1)


def box_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """IoU of boxes (N, 4) XYXY, pair by pair; 0 where both have no area."""
    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(dim=1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-6)
