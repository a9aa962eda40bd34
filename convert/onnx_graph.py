"""The PyTorch modules that are exported to ONNX: an encoder and a decoder with the interface of SAM's own exporter.

Clients of SAM's ONNX files hard-code the sizes of SAM: coordinates in a frame of FRAME pixels, image embeddings of
EMBEDDING and mask inputs of MASKS cells. A model of fewer pixels, S = FRAME / r, is served inside the graph:

- The encoder reads the picture in the clients' frame and resizes it as Pillow does, rounded to 8 bits after either
  pass, which is what our `preprocess` computes from the same picture, but for a grey level where Pillow's integer
  weights round otherwise.
- Each cell of its image embedding is repeated r x r times, and the decoder reads every r-th: exactly what was encoded.
- Coordinates, and the size of the picture without padding, are divided by r. Sizes are rounded in the clients' frame
  first, as the client that resized the picture did.
- Low-resolution logits are enlarged r times bilinearly. A mask input is read back by the inverse: around the centre of
  a cell the enlarged values are linear to either side, so that a cell is 3/2 of the sample beside its centre minus 1/2
  of the next one, and the mean of both sides is taken. What the decoder returned comes back to float32 rounding.
- Full-size masks come from the model's own logits, as `postprocess_masks` computes them.

HQ-SAM has one tensor more, the early features, by the name and with the shape of its own exporter and of X-AnyLabeling
(segment_anything/utils/onnx.py of SysCV/sam-hq): the encoder returns those of one layer, (1, 64, 64, W), and the
decoder reads the first of any number of layers, (L, 1, 64, 64, W).

The tokens "not a point" (label -1) that clients send are replaced by what SamPredictor has: one after points without a
box, none with a box. So it does not matter whether and how often a client pads.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

FRAME = 1024  # pixels of the longer side of a picture, as clients resize it
EMBEDDING, MASKS = 64, 256  # cells of the image embedding and of mask inputs, as clients hard-code them
EARLY = "interm_embeddings"  # the name of HQ-SAM's early features
NOT_A_POINT, TOP_LEFT, BOTTOM_RIGHT = -1, 2, 3
SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # by which clients normalise pixels


class Encoder(nn.Module):
    """Pictures to image embeddings."""

    def __init__(self, sam: Any, *, normalised: bool):
        """Args: sam, with an image encoder of FRAME / r pixels; normalised, see `forward`."""
        super().__init__()
        self.encoder = sam.image_encoder
        self.normalised = normalised
        self.side = sam.image_encoder.img_size
        self.register_buffer("mean", sam.pixel_mean.clone().reshape(3, 1, 1))
        self.register_buffer("std", sam.pixel_std.clone().reshape(3, 1, 1))

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Encodes a picture.

        Args:
            picture: (H, W, 3) float32 RGB of 0..255, of any size; or, with `normalised`, (1, 3, FRAME, FRAME), its
                longer side FRAME pixels, normalised by SAM's mean and standard deviation, then padded with zeros.

        Returns:
            the image embedding (1, 256, EMBEDDING, EMBEDDING) float32; of HQ-SAM also the early features (1, EMBEDDING,
            EMBEDDING, W).
        """
        if self.normalised:
            encoded = self.encoder(self._from_normalised(picture))
        else:
            channels = picture.permute(2, 0, 1)
            encoded = self.encoder(self._fitted(channels, *_size(channels)))
        features, layers = encoded if isinstance(encoded, tuple) else (encoded, [])  # HQ-SAM's encoders return a pair
        times = EMBEDDING // features.shape[-1]
        early = [repeat_cells(layer.permute(0, 3, 1, 2), times).permute(0, 2, 3, 1) for layer in layers[:1]]
        return (repeat_cells(features, times), *early)

    def _from_normalised(self, picture: torch.Tensor) -> torch.Tensor:
        """(1, 3, FRAME, FRAME) -> (1, 3, S, S)."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (SAM_MEAN, SAM_STD))
        if self.side == FRAME and torch.equal(self.mean, mean) and torch.equal(self.std, std):
            return picture
        # No pixel has the mean colour, which is no whole number: zeros in all channels are padding.
        inside = (picture[0] != 0).any(dim=0)
        places = torch.arange(1, FRAME + 1)
        height, width = ((inside.any(dim=axis) * places).amax().double() for axis in (1, 0))
        pixels = torch.floor(picture[0] * std + mean + 0.5)
        return self._fitted(pixels, height, width)

    def _fitted(self, pixels: torch.Tensor, height: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        """Resizes, normalises and pads pixels (3, >= H, >= W) of a picture of H x W: (1, 3, S, S)."""
        new_height, new_width = model_size(height, width, self.side)
        columns = resize_matrix(width, new_width, pixels.shape[2], self.side)
        rows = resize_matrix(height, new_height, pixels.shape[1], self.side)
        resized = to_8_bits(rows @ to_8_bits(pixels @ columns.T))  # Pillow's order
        places = torch.arange(self.side)
        inside = (places < new_height)[:, None] & (places < new_width)
        return torch.where(inside, (resized - self.mean) / self.std, torch.zeros(()))[None]


class Decoder(nn.Module):
    """Image embeddings and prompts to masks, with the inputs and outputs of SAM's exporter."""

    def __init__(self, sam: Any, *, single: bool, boxes: bool, low_res: bool):
        """Args: sam, with or without a plugin; the others, see `forward`."""
        super().__init__()
        self.sam = sam
        self.single, self.boxes, self.low_res = single, boxes, low_res
        self.side = sam.image_encoder.img_size

    def forward(
        self,
        image_embeddings: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
        orig_im_size: torch.Tensor,
        interm_embeddings: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Decodes one prompt.

        Args:
            image_embeddings: (1, 256, EMBEDDING, EMBEDDING), of `Encoder`.
            point_coords: (1, K, 2) (x, y) in the clients' frame.
            point_labels: (1, K) float: 0 and 1 points, 2 and 3 the corners of a box, -1 nothing.
            mask_input: (1, 1, MASKS, MASKS) logits.
            has_mask_input: (1,), above 0 if there is a mask input.
            orig_im_size: (2,) height and width of the picture.
            interm_embeddings: (L, 1, EMBEDDING, EMBEDDING, W) early features, of which the first are read; HQ-SAM needs
                them.

        Returns:
            `masks` (1, M, H, W) logits, `iou_predictions` (1, M) and, with `low_res`, `low_res_masks` (1, M, MASKS,
            MASKS). With `single`, M = 1: of a single point the best of three masks, else the single mask; otherwise
            M = 4, the single mask first. Each mask of HQ-SAM has that of the HQ token added. With `boxes`, `masks` are
            uint8, 0 or 1, and cropped to the box around them, and its edges follow, each a scalar: `xtl`, `ytl`, `xbr`,
            `ybr`, the last two inclusive.
        """
        height, width = orig_im_size.double().unbind()
        frame_size = model_size(height, width, FRAME)
        inner_size = model_size(height, width, self.side)
        scale = torch.stack([inner / outer for inner, outer in zip(inner_size[::-1], frame_size[::-1], strict=True)])
        coords, labels, has_box = tokens_as_predicted(point_coords * scale.float(), point_labels)

        encoder, decoder = self.sam.prompt_encoder, self.sam.mask_decoder
        plugin = getattr(self.sam, "plugin", None)
        if plugin is not None:
            corners = [(coords * (labels == label)[..., None]).sum(dim=1) for label in (TOP_LEFT, BOTTOM_RIGHT)]
            plugin.set_boxes(has_box, torch.cat(corners, dim=1))
        cells = EMBEDDING // encoder.image_embedding_size[0]
        features = image_embeddings[:, :, ::cells, ::cells]
        of_hq = {}
        if interm_embeddings is not None:
            early = interm_embeddings[0, :, ::cells, ::cells].permute(0, 3, 1, 2)
            of_hq["hq_features"] = decoder.embedding_encoder(features) + decoder.compress_vit_feat(early)
        logits, iou_predictions = decoder.predict_masks(
            image_embeddings=features,
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=embedded(encoder, coords, labels),
            dense_prompt_embeddings=torch.where(
                has_mask_input > 0,
                encoder.mask_downscaling(shrunk(mask_input, cells)),
                encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
            ),
            **of_hq,
        )
        if of_hq:  # four masks of SAM, then that of the HQ token
            logits = logits[:, :4] + logits[:, 4:]
        if self.single:
            ambiguous = (point_labels != NOT_A_POINT).sum() <= 1
            of_three = torch.tensor([-1e3, 0, 0, 0])
            best = torch.argmax(iou_predictions + torch.where(ambiguous, of_three, -of_three), dim=1)
            logits, iou_predictions = logits[:, best], iou_predictions[:, best]
        low_res = F.interpolate(logits, (MASKS, MASKS), mode="bilinear", align_corners=False) if cells > 1 else logits
        masks = self._full_size(logits, inner_size, orig_im_size)
        outputs = (iou_predictions, low_res) if self.low_res else (iou_predictions,)
        return cropped(masks, outputs) if self.boxes else (masks, *outputs)

    def _full_size(
        self, logits: torch.Tensor, inner_size: tuple[torch.Tensor, torch.Tensor], orig_im_size: torch.Tensor
    ) -> torch.Tensor:
        """(1, M, 4G, 4G) -> (1, M, H, W)."""
        square = F.interpolate(logits, (self.side, self.side), mode="bilinear", align_corners=False)
        rows, columns = (size.long() for size in inner_size)
        height, width = orig_im_size.long().unbind()
        return F.interpolate(square[..., :rows, :columns], (height, width), mode="bilinear", align_corners=False)


def embedded(encoder: Any, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Prompt tokens, as an official prompt encoder embeds them; it has no function that takes corners as points.

    Args:
        encoder: of segment_anything or sam2.
        coords: (N, T, 2) in the frame of the model.
        labels: (N, T), as of `Decoder.forward`.

    Returns:
        (N, T, C).
    """
    encoding = encoder.pe_layer._pe_encoding((coords + 0.5) / encoder.input_image_size[0])
    table = torch.cat([encoder.not_a_point_embed.weight, *(point.weight for point in encoder.point_embeddings)])
    return encoding * (labels != NOT_A_POINT)[..., None] + table[labels.long() + 1]


def model_size(height: torch.Tensor, width: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Size of a picture in a model's input of FRAME / r pixels, without padding: resized to FRAME, then divided by r.

    Float64 scalars, rounded where the official code rounds; no side is below 1.
    """
    scale = FRAME / torch.maximum(height, width)
    frame = (torch.floor(length * scale + 0.5).clamp(min=1) for length in (height, width))
    rows, columns = (torch.floor(length * side / FRAME + 0.5).clamp(min=1) for length in frame)
    return rows, columns


def resize_matrix(source: torch.Tensor, target: torch.Tensor, columns: int, rows: int) -> torch.Tensor:
    """Pillow's bilinear resize of one axis from `source` to `target` pixels, antialiased where it shrinks.

    Args:
        source, target: float64 scalars.
        columns: at least the source's pixels; what is beyond them gets no weight.
        rows: at least the target's; the rows beyond are zero.

    Returns:
        (rows, columns) float32 weights.
    """
    scale = source / target
    places, rows_at = torch.arange(columns).double() + 0.5, torch.arange(rows).double() + 0.5
    distances = (places - rows_at[:, None] * scale).abs() / scale.clamp(min=1)
    inside = (places < source) & (rows_at < target)[:, None]
    weights = (1 - distances).clamp(min=0) * inside
    return (weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)).float()


def to_8_bits(pixels: torch.Tensor) -> torch.Tensor:
    """Rounds to whole numbers of 0..255, halves up."""
    return torch.floor(pixels + 0.5).clamp(0, 255)


def tokens_as_predicted(coords: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tokens that SamPredictor makes of a prompt: one that is no point after points without a box, else none.

    Args:
        coords: (1, K, 2).
        labels: (1, K), with any number of -1.

    Returns:
        coords (1, T, 2), labels (1, T), whether there is a box (1,).
    """
    has_box = (labels == TOP_LEFT).any(dim=1)
    padded = F.pad(labels, (0, 1), value=NOT_A_POINT)
    is_last = F.pad(torch.zeros_like(labels), (0, 1), value=1.0) > 0
    keep = ((padded != NOT_A_POINT) | (is_last & ~has_box[:, None]))[0].nonzero()[:, 0]
    return F.pad(coords, (0, 0, 0, 1))[:, keep], padded[:, keep], has_box


def repeat_cells(maps: torch.Tensor, times: int) -> torch.Tensor:
    """(B, C, G, G) -> (B, C, times G, times G), each cell repeated along both axes."""
    if times == 1:
        return maps
    batch, channels, rows, columns = maps.shape
    cells = maps[:, :, :, None, :, None].expand(-1, -1, -1, times, -1, times)
    return cells.reshape(batch, channels, rows * times, columns * times)


def shrunk(masks: torch.Tensor, times: int) -> torch.Tensor:
    """The inverse of bilinear enlarging (half-pixel centres): (B, 1, times S, times S) -> (B, 1, S, S)."""
    if times == 1:
        return masks
    for axis in (2, 3):
        edges = (2, 2, 0, 0) if axis == 3 else (0, 0, 2, 2)
        padded = F.pad(masks, edges, mode="replicate")
        count = masks.shape[axis] // times
        taps = [padded.narrow(axis, times // 2 + tap, times * (count - 1) + 1) for tap in range(4)]
        every = (slice(None, None, times), slice(None)) if axis == 2 else (slice(None), slice(None, None, times))
        outer, left, right, last = (tap[:, :, *every] for tap in taps)
        masks = 0.75 * (left + right) - 0.25 * (outer + last)
    return masks


def cropped(masks: torch.Tensor, others: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """CVAT's outputs of (1, 1, H, W) logits: mask in its box, the others, edges of the box; see `Decoder.forward`."""
    foreground = (masks[0, 0] > 0).to(torch.uint8)
    edges = []
    for axis in (1, 0):  # rows, then columns
        line = foreground.amax(dim=axis).long()
        places = torch.arange(line.shape[0])
        last = (line * places).amax()
        first = last - (line * (last - places)).amax()
        edges.append((first, last))
    (ytl, ybr), (xtl, xbr) = edges
    return (foreground[ytl : ybr + 1, xtl : xbr + 1][None, None], *others, xtl, ytl, xbr, ybr)


def _size(channels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Height and width of (3, H, W), as tensors that an export records."""
    height, width = torch._shape_as_tensor(channels)[1:].double().unbind()
    return height, width
