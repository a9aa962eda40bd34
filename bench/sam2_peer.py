"""The official SAM 2 in the rows of inference: what its predictor does from a picture to low-resolution logits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from eval.parity.torch_sam2 import SAM2Base
from stablesam_jax.model.sam import ImageEmbedding


def encoding(model: SAM2Base) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pictures (B, 3, S, S) to image embeddings (B, C, G, G), and to the finer maps, which are not returned."""

    def encode(pictures: torch.Tensor) -> torch.Tensor:
        return model.image_encoder(pictures)["backbone_fpn"][-1] + model.no_mem_embed.reshape(1, -1, 1, 1)

    return encode


def decoding(model: SAM2Base, embedding: ImageEmbedding, device: torch.device) -> Callable[[torch.Tensor], Any]:
    """Boxes (N, 4) of a picture to low-resolution logits (N, 4G, 4G).

    The finer maps are projected once, as on our side, where `Sam.fuse` does it.
    """
    features, stride_4, stride_8 = (
        torch.tensor(np.asarray(maps, np.float32)).permute(0, 3, 1, 2).contiguous().to(device)
        for maps in (embedding.features, *embedding.early)
    )
    with torch.no_grad():
        high_res = [model.sam_mask_decoder.conv_s0(stride_4), model.sam_mask_decoder.conv_s1(stride_8)]

    def decode(boxes: torch.Tensor) -> torch.Tensor:
        corners = torch.tensor([[2, 3]], dtype=torch.int32, device=boxes.device).expand(len(boxes), 2)
        sparse, dense = model.sam_prompt_encoder((boxes.reshape(-1, 2, 2), corners), boxes=None, masks=None)
        masks, *_ = model.sam_mask_decoder(
            image_embeddings=features,
            image_pe=model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            repeat_image=True,
            high_res_features=high_res,
        )
        return masks[:, 0]

    return decode
