"""Sam: encode(pictures), decode(embedding, prompts). Everything else is built from these two."""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.export
from jax.tree_util import Partial

from stablesam_jax.config import FirstPass, SamConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model.encoders import encoder_of
from stablesam_jax.model.first_pass import better_masks, poor_masks
from stablesam_jax.model.mask_decoder import MaskChoice, MaskDecoder, Masks, chosen_masks
from stablesam_jax.model.prompt_encoder import PromptEncoder, Prompts
from stablesam_jax.model.sam2 import with_padding_point
from stablesam_jax.model.transformer import Hooks


@flax.struct.dataclass
class ImageEmbedding:
    """Features of B pictures that do not depend on prompts, in the compute dtype."""

    features: jax.Array  # (B, G, G, C), SAM's image embedding
    # What the encoder gives beside them, until `Sam.fuse` projects it: for HQ-SAM (B, G, G, any), an early layer; for
    # SAM 2 a pair (B, 4G, 4G, C), (B, 2G, 2G, C).
    early: Any = None
    hq_features: jax.Array | None = None  # (B, 4G, 4G, C / 8) of HQ-SAM
    high_res_s0: jax.Array | None = None  # (B, G, G, 2, 2, 2, 2, C / 8) of SAM 2, see `Sam2Branch.picture_features`
    high_res_s1: jax.Array | None = None  # (B, G, G, 2, 2, C / 4) of SAM 2


class Sam(nn.Module):
    """A promptable segmenter, with HQ-SAM's or SAM 2's branch and the plugin of Stable-SAM as its configuration says.

    Parameters are in `image_encoder`, `prompt_encoder`, `mask_decoder` and, with a plugin, `plugin`. `build.assemble`
    makes one from a configuration.
    """

    config: SamConfig
    plugin: nn.Module | None = None  # that of config.plugin, called as a `Resample`

    def setup(self):
        config = self.config
        self.image_encoder = encoder_of(config).module(config.encoder, config.embedding_width)
        self.prompt_encoder = PromptEncoder(config.embedding_width, config.grid_size, config.image_size)
        self.mask_decoder = MaskDecoder(config.embedding_width, config.hq, config.sam2)

    def encode(self, pictures: jax.Array) -> ImageEmbedding:
        """Computes what depends on the picture alone and is frozen in training.

        Args:
            pictures: (B, S, S, 3) float32, normalised and padded by `preprocess`, S = config.image_size.

        Returns:
            the image embedding, with the early features where HQ-SAM or SAM 2 needs them.
        """
        return self._embedding(*self.image_encoder(self._cast(pictures)))

    def finish(self, backbone_features: Any) -> ImageEmbedding:
        """`encode` from the features of an encoder's backbone, for training the neck over a frozen backbone.

        Args:
            backbone_features: what the encoder's `backbone` returns; only encoders `in_two_steps` have one.
        """
        return self._embedding(*self.image_encoder.finish(backbone_features))

    def fuse(self, embedding: ImageEmbedding) -> ImageEmbedding:
        """Replaces the early features by those that HQ-SAM's or SAM 2's decoder reads; without any returns its input.

        `decode` calls it where it has not been called. For a picture with many prompts it is cheaper to call it once.
        """
        if embedding.early is None:
            return embedding
        if self.config.sam2:
            s0, s1 = self.mask_decoder.high_resolution(*embedding.early)
            return ImageEmbedding(embedding.features, high_res_s0=s0, high_res_s1=s1)
        hq_features = self.mask_decoder.picture_features(embedding.features, embedding.early)
        return ImageEmbedding(embedding.features, hq_features=hq_features)

    def decode(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts,
        *,
        masks: MaskChoice = "single",
        hq_token_only: bool = False,
        at_once: bool = False,
        remat: bool = False,
    ) -> Masks:
        """Predicts masks for prompts.

        Args:
            embedding: of B pictures, from `encode` or `fuse`.
            prompts: N prompts for each picture.
            masks: which mask tokens to decode (static).
            hq_token_only: HQ-SAM's mask alone instead of its sum with SAM's (static).
            at_once: decode all prompts together, as a gradient wants it; otherwise the CPU takes one after the other,
                for which it needs half the time and the memory of one (static).
            remat: see `TwoWayTransformer` (static).

        Returns:
            `Masks` with M = 1, 3 or 4; of HQ-SAM M = 1, or 4 and the HQ masks apart.

        Raises:
            InputError: HQ-SAM or SAM 2 is given an embedding of SAM.
        """
        embedding = self.fuse(embedding)
        if self.config.hq and embedding.hq_features is None:
            raise InputError("the embedding has no early features, which HQ-SAM needs; encode the picture with HQ-SAM.")
        if self.config.sam2:
            if embedding.high_res_s0 is None or embedding.high_res_s1 is None:
                raise InputError("the embedding has no finer maps, which SAM 2 needs; encode the picture with SAM 2.")
            high_res = embedding.high_res_s0, embedding.high_res_s1
            prompts = with_padding_point(prompts)
        else:
            high_res = None
        dtype = embedding.features.dtype
        sparse, dense = self.prompt_encoder(prompts)
        run = functools.partial(
            self.mask_decoder,
            embedding.features,
            self.prompt_encoder.get_dense_pe().astype(dtype),
            sparse.astype(dtype),
            dense.astype(dtype),
            prompts.valid,
            hq_features=embedding.hq_features,
            high_res=high_res,
            at_once=at_once,
            remat=remat,
        )
        plugin = self.config.plugin
        if plugin is None or plugin.first_pass is None or self.is_initializing():
            return run(masks=masks, hq_token_only=hq_token_only, hooks=self._hooks())
        limits, size = FirstPass(*plugin.first_pass), self.config.image_size
        compared: MaskChoice = "single" if masks == "single" or self.config.hq else "all"  # with the single mask first
        alone = run(masks=compared)
        share = poor_masks(alone, prompts, size, limits)
        changed = run(masks=compared, hooks=self._hooks(), share=share)
        share = share * better_masks(changed, alone, prompts, size, limits)
        if self.config.hq and (masks != "single" or hq_token_only):
            return run(masks=masks, hq_token_only=hq_token_only, hooks=self._hooks(), share=share)
        return chosen_masks(Masks.where(share > 0, changed, alone), masks)

    def __call__(self, pictures: jax.Array, prompts: Prompts) -> Masks:
        """`decode(encode(pictures), prompts)`: one pass through every parameter, as initialisation needs."""
        return self.decode(self.encode(pictures), prompts)

    def _embedding(self, features: jax.Array, early: Any) -> ImageEmbedding:
        return ImageEmbedding(features, early if self.config.hq or self.config.sam2 else None)

    def _cast(self, pictures: jax.Array) -> jax.Array:
        # float64, which only tests use, stays what it is.
        return pictures.astype(self.config.dtype) if self.config.dtype != "float32" else pictures

    def _hooks(self) -> Hooks:
        attentions = self.config.plugin.attentions if self.config.plugin is not None else ()
        # The plugin is an argument of the hook, not closed over: nn.remat lifts modules that it finds among arguments.
        first, second, final = (
            Partial(functools.partial(_call, index), self.plugin)
            if self.plugin is not None and index in attentions
            else None
            for index in range(3)
        )
        return first, second, final


def _call(attention: int, plugin: nn.Module, *args: jax.Array, **options: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The plugin as a hook of an attention, see `Resample`."""
    return plugin(*args, attention=attention, **options)


# So that programs of these structures can be serialised by jax.export. They have no static fields.
for _structure in (Prompts, ImageEmbedding, Masks):
    jax.export.register_pytree_node_serialization(
        _structure,
        serialized_name=f"stablesam_jax.{_structure.__name__}",
        serialize_auxdata=lambda _: b"",
        deserialize_auxdata=lambda _: (),
    )
