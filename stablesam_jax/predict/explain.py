"""Explains the plugin's effect on a prompt: sampled positions, mixing weights, attention with and without it."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from stablesam_jax.errors import InputError
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.ops.numerics import to_float32
from stablesam_jax.predict import compiled
from stablesam_jax.predict.picture import Picture
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.preprocess import in_model_frame, resized_size
from stablesam_jax.predict.user_prompts import Points
from stablesam_jax.prompts import Prompt

# The three token-to-image attentions, numbered as in PluginConfig.attentions.
ATTENTIONS = (
    ("layers_0", "cross_attn_token_to_image"),
    ("layers_1", "cross_attn_token_to_image"),
    ("final_attn_token_to_image",),
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """One token-to-image attention of N prompts, on the h x w cells of the image embedding inside the picture.

    Positions are (x, y) in pixels of the picture, integers at the centres of pixels. Attention is that of the single
    mask's token, or of the HQ token of an HQ-SAM, averaged over heads. It sums to 1 over all cells, hence to less
    inside the picture if the padding gets a share.
    """

    prompts: tuple[Prompt, ...]  # in pixels of the picture
    cells: np.ndarray  # (h, w, 2) float32, centres: where SAM reads the features
    positions: np.ndarray  # (N, h, w, 2) float32, p + delta p: where the plugin reads in place of each cell
    # (N, 2) float32, alpha before `PluginConfig.strength`: weights of the sampled features and of the cell's own.
    alpha: np.ndarray
    before: np.ndarray  # (N, h, w) float32, attention of the same tokens to the features without resampling
    after: np.ndarray  # (N, h, w) float32, attention with it


def explain(
    predictor: Predictor,
    point_coords: Points | None = None,
    point_labels: Points | None = None,
    box: ArrayLike | None = None,
    mask_input: ArrayLike | None = None,
    *,
    attention: int | None = None,
    group: int = 0,
    image_index: int | None = None,
    picture: Picture | None = None,
) -> Explanation:
    """Decodes prompts and returns the intermediates of one token-to-image attention.

    Args:
        predictor: of a model with a plugin, with a picture set.
        point_coords, point_labels, box, mask_input, image_index, picture: as in `Predictor.predict`; one prompt makes
            N = 1.
        attention: index of the token-to-image attention: 0 or 1, in the decoder's layers, or 2, the final one. None:
            the last one that the plugin resamples for.
        group: index of the offsets, if `PluginConfig.groups` is above 1.

    Raises:
        InputError: as `predict`; or the plugin does not resample for that attention or has no such group.
    """
    sam = predictor.sam
    if sam.config.plugin is None:
        raise InputError("the model has no plugin to explain; load one as BASE+PLUGIN_FILE.")
    hooked = sorted(sam.config.plugin.attentions)
    attention = hooked[-1] if attention is None else attention
    if attention not in hooked:
        raise InputError(f"the plugin does not resample for attention {attention}; choose from {hooked}.")
    if not 0 <= group < sam.config.plugin.groups:
        raise InputError(f"the plugin has no group {group} of offsets; it has {sam.config.plugin.groups}, from 0.")

    picture = predictor._chosen(picture, image_index)
    prompts, _ = predictor._prompts(picture, point_coords, point_labels, box, mask_input)
    if prompts:
        look = compiled.of_decoder(sam, _looking)
        in_frame = [in_model_frame(prompt, picture.original_size, sam.config.frame) for prompt in prompts]
        answers = predictor.slots.answer(lambda batch: look(predictor._params, picture.embedding, batch), in_frame)
        seen = answers[attention]
        seen = seen._replace(positions=seen.positions[:, group])
    else:
        grid = sam.config.grid_size, sam.config.grid_size
        seen = _Seen(*(np.zeros((0, *shape), np.float32) for shape in ((*grid, 2), (2,), grid, grid)))

    # Maps centres to centres: the pixels of the picture and of the model's input differ in size.
    input_hw = np.array(resized_size(picture.original_size, sam.config.frame), np.float32)
    pixels = sam.config.encoder.patch_size * (picture.original_size / input_hw)[::-1].astype(np.float32)
    rows, columns = np.maximum(np.rint(input_hw / sam.config.encoder.patch_size), 1).astype(int)
    return Explanation(
        prompts=tuple(prompts),
        cells=(_cells(sam.config.grid_size)[:rows, :columns] + 0.5) * pixels - 0.5,
        positions=(seen.positions[:, :rows, :columns] + 0.5) * pixels - 0.5,
        alpha=seen.alpha,
        before=seen.before[:, :rows, :columns],
        after=seen.after[:, :rows, :columns],
    )


class _Seen(NamedTuple):
    """Intermediates of N prompts on one picture, on all G x G cells."""

    positions: jax.Array | np.ndarray  # (N, groups, G, G, 2), (x, y) in cells; of one group (N, G, G, 2)
    alpha: jax.Array | np.ndarray  # (N, 2)
    before: jax.Array | np.ndarray  # (N, G, G)
    after: jax.Array | np.ndarray  # (N, G, G)


@functools.lru_cache(compiled.KEPT)
def _looking(sam: Sam) -> Callable[[compiled.Variables, ImageEmbedding, Prompts], dict[int, _Seen]]:
    """Compiles (variables, image embedding of one picture, prompts) -> attention -> intermediates, without masks."""
    plugin = sam.config.plugin
    cells = _cells(sam.config.grid_size)

    def look(variables: compiled.Variables, embedding: ImageEmbedding, prompts: Prompts) -> dict[int, _Seen]:
        collections = ["intermediates", "attention"]
        _, state = sam.apply(variables, embedding, prompts, method="decode", mutable=collections)
        shown = state["intermediates"]["plugin"]  # one entry per call; of positions one per call and group
        unmoved = [cells[None, None]] * plugin.groups * len(plugin.attentions)  # spatial attention moves no positions
        positions = iter(shown.get("positions", unmoved))
        seen = {}
        for attention, alpha in zip(sorted(plugin.attentions), shown["alpha"], strict=True):
            weights = functools.reduce(
                operator.getitem, ATTENTIONS[attention], state["attention"]["mask_decoder"]["transformer"]
            )
            before, after = (
                to_float32(x[0][0, :, :, sam.config.output_token]).mean(axis=1)
                for x in (weights["before"], weights["after"])
            )
            read = jnp.stack([next(positions)[0] for _ in range(plugin.groups)], axis=1)
            seen[attention] = _Seen(jnp.broadcast_to(read, (len(after), *read.shape[1:])), alpha[0], before, after)
        return seen

    return jax.jit(look)


def _cells(side: int) -> np.ndarray:
    """(G, G, 2) float32, (x, y) of every cell, from 0."""
    return np.stack(np.meshgrid(*[np.arange(side, dtype=np.float32)] * 2), axis=-1)
