"""sam_nano for PyTorch: a SAM of 512 px on EfficientNet-Lite0, with the interface of segment_anything.modeling.Sam.

    sam = NanoSam()
    sam.load_state_dict(torch.load("sam_nano.pth", weights_only=True))
    stabilise(sam, load_plugin_state("stable_sam_nano.pth"))  # if wanted

The package imports only torch and can be copied into any project. Prompt encoder and mask decoder are SAM's, with
the names of its state dict, so that whatever drives a SAM drives this one: SamPredictor, SamAutomaticMaskGenerator, the
exporter. The state is written by `python -m convert.flax_to_torch --checkpoint sam_nano --output sam_nano.pth`.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .layers import to_float32
from .nano_encoder import WIDTH, ImageEncoder, LayerNorm2d

HEADS = 8
MLP_WIDTH = 2048
PATCH_SIZE = 16  # pixels per cell of the image embedding
NOT_A_POINT, POINT_LABELS = -1, 4  # labels: -1 no point, 0 background, 1 foreground, 2 and 3 the corners of a box
MASK_TOKENS = 4  # the first makes the single mask, the others those of multimask_output
TRANSFORMER_EPS = 1e-5
PIXEL_MEAN, PIXEL_STD = 127.0, 128.0  # EfficientNet-Lite's own normalisation


class NanoSam(nn.Module):
    """A promptable segmenter: `image_encoder`, `prompt_encoder`, `mask_decoder`, and what SamPredictor asks of a SAM.

    Parameters are random until a state is loaded. After `stabilise`, `plugin` is a module of it too.
    """

    mask_threshold = 0.0
    image_format = "RGB"
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, image_size: int = 512):
        """Args: image_size, side of the input in pixels, a multiple of 32; the shipped weights are for 512."""
        super().__init__()
        if image_size < 32 or image_size % 32:
            raise ValueError(f"image_size {image_size}: must be a positive multiple of 32 pixels.")
        self.image_encoder = ImageEncoder(image_size)
        self.prompt_encoder = PromptEncoder(image_size)
        self.mask_decoder = MaskDecoder()
        for name, value in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            self.register_buffer(name, torch.full((3, 1, 1), value), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def preprocess(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises pixels, (..., 3, H, W) of 0..255 with the longer side image_size, and pads them to the square."""
        x = (x - self.pixel_mean) / self.pixel_std
        size = self.image_encoder.img_size
        return F.pad(x, (0, size - x.shape[-1], 0, size - x.shape[-2]))

    def postprocess_masks(
        self, masks: torch.Tensor, input_size: tuple[int, int], original_size: tuple[int, int]
    ) -> torch.Tensor:
        """Resizes logits to a picture.

        Args:
            masks: (N, M, 4G, 4G) logits.
            input_size: height and width of the picture in the model's input, without padding.
            original_size: of the picture.

        Returns:
            (N, M, H, W) logits; above `mask_threshold` is foreground.
        """
        size = self.image_encoder.img_size
        masks = F.interpolate(masks, (size, size), mode="bilinear", align_corners=False)
        masks = masks[..., : input_size[0], : input_size[1]]
        return F.interpolate(masks, original_size, mode="bilinear", align_corners=False)

    @torch.no_grad()
    def forward(self, batched_input: list[dict[str, Any]], multimask_output: bool) -> list[dict[str, torch.Tensor]]:
        """Masks for pictures and their prompts, in the form of segment_anything's Sam.

        Args:
            batched_input: one dictionary a picture: `image` (3, H, W), resized so that its longer side is image_size;
                `original_size` (H, W); and, each if there is one, `point_coords` (N, K, 2) with `point_labels` (N, K),
                `boxes` (N, 4) and `mask_inputs` (N, 1, 4G, 4G), coordinates in pixels of `image`.
            multimask_output: three masks a prompt instead of one.

        Returns:
            one dictionary a picture: `masks` (N, M, H, W) bool, `iou_predictions` (N, M), `low_res_logits`.
        """
        embeddings = self.image_encoder(torch.stack([self.preprocess(record["image"]) for record in batched_input]))
        outputs = []
        for record, embedding in zip(batched_input, embeddings, strict=True):
            points = (record["point_coords"], record["point_labels"]) if "point_coords" in record else None
            sparse, dense = self.prompt_encoder(points, record.get("boxes"), record.get("mask_inputs"))
            low_res, iou_predictions = self.mask_decoder(
                embedding[None], self.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output
            )
            logits = self.postprocess_masks(low_res, record["image"].shape[-2:], record["original_size"])
            masks = logits > self.mask_threshold
            outputs.append({"masks": masks, "iou_predictions": iou_predictions, "low_res_logits": low_res})
        return outputs


class PositionEmbedding(nn.Module):
    """Random Fourier features of coordinates."""

    positional_encoding_gaussian_matrix: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, WIDTH // 2))

    def forward(self, size_hw: tuple[int, int]) -> torch.Tensor:
        """-> (256, H, W), the encoding of the centres of H x W cells."""
        matrix = self.positional_encoding_gaussian_matrix
        y, x = (to_float32((torch.arange(size, device=matrix.device) + 0.5).to(matrix)) / size for size in size_hw)
        return self._pe_encoding(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)).permute(2, 0, 1)

    def forward_with_coords(self, coords: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
        """(N, K, 2) (x, y) in pixels -> (N, K, 256)."""
        return self._pe_encoding(coords / coords.new_tensor([size_hw[1], size_hw[0]]))

    def _pe_encoding(self, coords: torch.Tensor) -> torch.Tensor:
        # In float32 at least: half precision loses the pixel. SAM's exporter calls it by this name.
        matrix = self.positional_encoding_gaussian_matrix
        angles = 2 * math.pi * ((2 * coords - 1).to(to_float32(matrix)) @ to_float32(matrix))
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(matrix)


class PromptEncoder(nn.Module):
    """Points, boxes and masks to embeddings."""

    def __init__(self, image_size: int):
        super().__init__()
        grid = image_size // PATCH_SIZE
        self.embed_dim = WIDTH
        self.input_image_size = (image_size, image_size)
        self.image_embedding_size = (grid, grid)
        self.mask_input_size = (4 * grid, 4 * grid)
        self.num_point_embeddings = POINT_LABELS
        self.pe_layer = PositionEmbedding()
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, WIDTH) for _ in range(POINT_LABELS))
        self.not_a_point_embed = nn.Embedding(1, WIDTH)
        self.no_mask_embed = nn.Embedding(1, WIDTH)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, stride=2),
            LayerNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, 2, stride=2),
            LayerNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, WIDTH, 1),
        )

    def get_dense_pe(self) -> torch.Tensor:
        """(1, 256, G, G), the encoding of the cells' centres."""
        return self.pe_layer(self.image_embedding_size)[None]

    def forward(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeds N prompts.

        Args:
            points: coordinates (N, K, 2), (x, y) in pixels of the model's input, and labels (N, K).
            boxes: (N, 4) XYXY in pixels of the model's input.
            masks: (N, 1, 4G, 4G) logits.

        Returns:
            sparse embeddings (N, tokens, 256) and dense embeddings (N, 256, G, G).
        """
        given = (points and points[0], boxes, masks)
        count = next((len(part) for part in given if part is not None), 1)
        empty = self.no_mask_embed.weight
        tokens = [empty.new_zeros(count, 0, WIDTH)]
        if points is not None:
            coords, labels = points
            if boxes is None:  # SAM ends points without a box with a token that is no point
                coords, labels = F.pad(coords, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=NOT_A_POINT)
            tokens.append(self.embed_tokens(coords, labels))
        if boxes is not None:
            corners = torch.arange(2, 4, device=boxes.device).expand(count, 2)
            tokens.append(self.embed_tokens(boxes.reshape(-1, 2, 2), corners))
        if masks is not None:
            return torch.cat(tokens, dim=1), self.mask_downscaling(masks)
        return torch.cat(tokens, dim=1), empty.reshape(1, -1, 1, 1).expand(count, -1, *self.image_embedding_size)

    def embed_tokens(self, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(N, K, 2) coordinates and (N, K) labels, -1 to 3 -> (N, K, 256)."""
        # Coordinates name pixels by their corner; the encoding is of the pixel's centre.
        encoding = self.pe_layer.forward_with_coords(coords + 0.5, self.input_image_size)
        encoding = encoding.masked_fill((labels == NOT_A_POINT)[..., None], 0)
        table = torch.cat([self.not_a_point_embed.weight, *(point.weight for point in self.point_embeddings)])
        return encoding + table[labels.long() + 1]


class Attention(nn.Module):
    """Multi-head attention with an inner width of its own."""

    def __init__(self, inner_width: int):
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, inner_width)
        self.k_proj = nn.Linear(WIDTH, inner_width)
        self.v_proj = nn.Linear(WIDTH, inner_width)
        self.out_proj = nn.Linear(inner_width, WIDTH)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """(N, queries, 256), (N, keys, 256) twice -> (N, queries, 256)."""
        projected = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        heads = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in projected)
        return self.out_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1 = nn.Linear(WIDTH, MLP_WIDTH)
        self.lin2 = nn.Linear(MLP_WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., 256) -> the same."""
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP, image to tokens; all norms after the residual."""

    def __init__(self, first: bool):
        super().__init__()
        self.first = first  # the first block has neither positional terms nor residual in its self-attention
        self.self_attn = Attention(WIDTH)
        self.cross_attn_token_to_image = Attention(WIDTH // 2)
        self.cross_attn_image_to_token = Attention(WIDTH // 2)
        self.mlp = MLP()
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(WIDTH, TRANSFORMER_EPS) for _ in range(4))

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, query_pe: torch.Tensor, key_pe: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (N, T, 256), cells (N, G * G, 256) and their positional terms -> tokens and cells, updated."""
        if self.first:
            queries = self.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q=q, k=q, v=queries)
        queries = self.norm1(queries)
        # The plugin's hooks replace k and v of the attentions from tokens to the image, which are passed by name.
        seen = self.cross_attn_token_to_image(q=queries + query_pe, k=keys + key_pe, v=keys)
        queries = self.norm2(queries + seen)
        queries = self.norm3(queries + self.mlp(queries))
        update = self.cross_attn_image_to_token(q=keys + key_pe, k=queries + query_pe, v=queries)
        return queries, self.norm4(keys + update)


class TwoWayTransformer(nn.Module):
    """Two blocks and a final attention from tokens to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(first=index == 0) for index in range(2))
        self.final_attn_token_to_image = Attention(WIDTH // 2)
        self.norm_final_attn = nn.LayerNorm(WIDTH, TRANSFORMER_EPS)

    def forward(
        self, image_embedding: torch.Tensor, image_pe: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 256, G, G) features, their positional encoding, (N, T, 256) -> (N, T, 256) and (N, G * G, 256)."""
        keys, key_pe = (maps.flatten(2).transpose(1, 2) for maps in (image_embedding, image_pe))
        queries = tokens
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, key_pe)
        seen = self.final_attn_token_to_image(q=queries + tokens, k=keys + key_pe, v=keys)
        return self.norm_final_attn(queries + seen), keys


class HeadMLP(nn.Module):
    """Three layers with ReLU between them: hypernetworks and IoU head."""

    def __init__(self, outputs: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, outputs)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., 256) -> (..., outputs)."""
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


class MaskDecoder(nn.Module):
    """Tokens, two-way transformer, upscaling, choice of masks."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_dim = WIDTH
        self.num_mask_tokens = MASK_TOKENS
        self.transformer = TwoWayTransformer()
        self.iou_token = nn.Embedding(1, WIDTH)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, WIDTH)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, WIDTH // 4, 2, stride=2),
            LayerNorm2d(WIDTH // 4),
            nn.GELU(),
            nn.ConvTranspose2d(WIDTH // 4, WIDTH // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(HeadMLP(WIDTH // 8) for _ in range(MASK_TOKENS))
        self.iou_prediction_head = HeadMLP(MASK_TOKENS)

    def forward(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicts the single mask of N prompts, or three masks with `multimask_output`; arguments of `predict_masks`.

        Returns:
            logits (N, M, 4G, 4G) and predicted IoU (N, M).
        """
        masks, iou_predictions = self.predict_masks(
            image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
        )
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return masks[:, chosen], iou_predictions[:, chosen]

    def predict_masks(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicts all four masks.

        Args:
            image_embeddings: (1, 256, G, G), of one picture.
            image_pe: (1, 256, G, G).
            sparse_prompt_embeddings: (N, tokens, 256).
            dense_prompt_embeddings: (N, 256, G, G).

        Returns:
            logits (N, 4, 4G, 4G) and predicted IoU (N, 4).
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse_prompt_embeddings), -1, -1), sparse_prompt_embeddings], dim=1)
        maps = image_embeddings + dense_prompt_embeddings
        tokens, cells = self.transformer(maps, image_pe.expand_as(maps), tokens)
        upscaled = self.output_upscaling(cells.transpose(1, 2).view_as(maps))
        networks = enumerate(self.output_hypernetworks_mlps, start=1)  # after the IoU token
        weights = torch.stack([network(tokens[:, index]) for index, network in networks], dim=1)
        masks = (weights @ upscaled.flatten(2)).unflatten(-1, upscaled.shape[-2:])
        return masks, self.iou_prediction_head(tokens[:, 0])
