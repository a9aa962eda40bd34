"""The PyTorch modules of a SAM 2 that are exported to ONNX, with the interface of samexporter's export_sam2.py.

samexporter and X-AnyLabeling read the side of the input from the encoder, so any size works without scaling inside.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from convert.onnx_graph import NOT_A_POINT, embedded
from stablesam_jax.model.sam2 import LOGIT_LIMIT

MAPS = ("high_res_feats_0", "high_res_feats_1", "image_embed")  # the encoder's outputs, in the clients' order


class Sam2Encoder(nn.Module):
    """Pictures to the maps that the decoder reads."""

    def __init__(self, sam: Any):
        """Args: sam, a SAM2Base of a fixed size from now on."""
        super().__init__()
        self.sam = sam
        trunk, cells = sam.image_encoder.trunk, sam.image_size // 4
        positions = trunk._get_pos_embed((cells, cells)).detach()
        trunk._get_pos_embed = lambda _: positions  # a constant of the graph: runtimes resize it less exactly

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Encodes a picture.

        Args:
            image: (1, 3, S, S), stretched to S x S and normalised by ImageNet's mean and standard deviation.

        Returns:
            `MAPS`: (1, C / 8, 4G, 4G), (1, C / 4, 2G, 2G) and (1, C, G, G) float32.
        """
        stride_4, stride_8, embedding = self.sam.forward_image(image)["backbone_fpn"][-3:]
        return stride_4, stride_8, embedding + self.sam.no_mem_embed.reshape(1, -1, 1, 1)


class Sam2Decoder(nn.Module):
    """Maps and prompts to masks, with the inputs and outputs of samexporter's decoder."""

    def __init__(self, sam: Any, *, single: bool):
        """Args: sam, a SAM2Base with or without a plugin; single, see `forward`."""
        super().__init__()
        self.sam = sam
        self.single = single

    def forward(
        self,
        image_embed: torch.Tensor,
        high_res_feats_0: torch.Tensor,
        high_res_feats_1: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decodes N prompts.

        Args:
            image_embed, high_res_feats_0, high_res_feats_1: of `Sam2Encoder`.
            point_coords: (N, K, 2) (x, y) in the frame of the model, S x S.
            point_labels: (N, K) float: 0 and 1 points, 2 and 3 the corners of a box, -1 nothing. One more token of
                that kind is added, as SAM2ImagePredictor does.
            mask_input: (N, 1, 4G, 4G) logits.
            has_mask_input: (N,) or (1,), above 0 if there is a mask input.

        Returns:
            `masks` (N, M, 4G, 4G) logits within -32 to 32, and `iou_predictions` (N, M). M = 3; with `single`, M = 1:
            of a single point the best of the three, else the single mask, unless that is unstable.
        """
        encoder, decoder = self.sam.sam_prompt_encoder, self.sam.sam_mask_decoder
        coords, labels = F.pad(point_coords, (0, 0, 0, 1)), F.pad(point_labels, (0, 1), value=float(NOT_A_POINT))
        sparse = embedded(encoder, coords, labels)
        dense = torch.where(
            has_mask_input.reshape(-1, 1, 1, 1) > 0,
            encoder.mask_downscaling(mask_input),
            encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
        )
        masks, iou_predictions, _, _ = decoder.predict_masks(
            image_embeddings=image_embed.expand(sparse.shape[0], -1, -1, -1),
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=[high_res_feats_0, high_res_feats_1],
        )
        three, their_iou = masks[:, 1:], iou_predictions[:, 1:]
        if self.single:
            best = their_iou.argmax(dim=1, keepdim=True)
            ambiguous = (point_labels != NOT_A_POINT).sum(dim=1, keepdim=True) <= 1
            one, its_iou = decoder._dynamic_multimask_via_stability(masks, iou_predictions)
            cells = best[..., None, None].expand(-1, -1, *masks.shape[2:])
            three = torch.where(ambiguous[..., None, None], three.gather(1, cells), one)
            their_iou = torch.where(ambiguous, their_iou.gather(1, best), its_iou)
        return three.clamp(-LOGIT_LIMIT, LOGIT_LIMIT), their_iou
