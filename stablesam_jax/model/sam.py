"""Sam: encode(pictures), decode(embedding, prompts). Everything else is built from these two."""

import flax.linen as nn
import flax.struct
import jax

from stablesam_jax.config import LiteConfig, SamConfig
from stablesam_jax.model.image_encoder import ImageEncoderViT
from stablesam_jax.model.lite_encoder import ImageEncoderLite
from stablesam_jax.model.mask_decoder import MaskChoice, MaskDecoder
from stablesam_jax.model.prompt_encoder import PromptEncoder, Prompts
from stablesam_jax.model.transformer import Hooks


@flax.struct.dataclass
class Masks:
    """What the decoder predicts for N prompts of B pictures."""

    low_res_masks: jax.Array  # (B, N, M, 4G, 4G) logits; above 0 is foreground
    iou_predictions: jax.Array  # (B, N, M), the model's estimate of each mask's IoU; may leave 0..1


class Sam(nn.Module):
    """A promptable segmenter, with the plugin of Stable-SAM where one is given.

    Parameters lie in `image_encoder`, `prompt_encoder`, `mask_decoder` and, with a plugin, `plugin`.
    """

    config: SamConfig
    plugin: nn.Module | None = None  # called as a `Resample`
    plugin_attentions: tuple[int, ...] = ()  # token-to-image attentions that it serves: 0, 1, and 2 for the final one

    def setup(self):
        config = self.config
        self.image_encoder: nn.Module
        if isinstance(config.encoder, LiteConfig):
            self.image_encoder = ImageEncoderLite(config.encoder, config.embedding_width)
        else:
            self.image_encoder = ImageEncoderViT(config.encoder, config.grid_size, config.embedding_width)
        self.prompt_encoder = PromptEncoder(config.embedding_width, config.grid_size, config.image_size)
        self.mask_decoder = MaskDecoder(config.embedding_width)

    def encode(self, pictures: jax.Array) -> jax.Array:
        """Computes what depends on the picture alone.

        Args:
            pictures: (B, S, S, 3) float32, normalised and padded by `preprocess`, S = config.image_size.

        Returns:
            (B, G, G, C) image embedding.
        """
        return self.image_encoder(pictures)

    def decode(self, image_embeddings: jax.Array, prompts: Prompts, *, masks: MaskChoice = "single") -> Masks:
        """Answers prompts.

        Args:
            image_embeddings: (B, G, G, C) from `encode`.
            prompts: N prompts for each picture.
            masks: which mask tokens to decode (static).

        Returns:
            `Masks` with M = 1, 3 or 4.
        """
        sparse, dense = self.prompt_encoder(prompts)
        low_res_masks, iou_predictions = self.mask_decoder(
            image_embeddings,
            self.prompt_encoder.get_dense_pe(),
            sparse,
            dense,
            prompts.valid,
            masks=masks,
            hooks=self._hooks(),
        )
        return Masks(low_res_masks=low_res_masks, iou_predictions=iou_predictions)

    def __call__(self, pictures: jax.Array, prompts: Prompts) -> Masks:
        """`decode(encode(pictures), prompts)`: one pass through every parameter, as initialisation needs."""
        return self.decode(self.encode(pictures), prompts)

    def _hooks(self) -> Hooks:
        first, second, final = (self.plugin if index in self.plugin_attentions else None for index in range(3))
        return first, second, final
