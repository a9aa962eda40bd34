"""Segments all objects of a picture without prompts (segment_anything/automatic_mask_generator.py).

Prompts with a grid of points, then drops masks with a low predicted IoU, masks that are unstable when the threshold
changes, masks that a crop cuts off, and duplicates. Masks are measured one by one at the size of the picture without
storing them; only the remaining ones are computed again at the end.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypedDict, get_args

import cv2
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from stablesam_jax.data import rle
from stablesam_jax.errors import InputError
from stablesam_jax.model.mask_decoder import Masks
from stablesam_jax.model.prompt_encoder import POSITIVE, Prompts, sparse_tokens
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.params import Params
from stablesam_jax.predict import compiled
from stablesam_jax.predict.postprocess import Axis, by_rows, padded_mask, upscaling_axes
from stablesam_jax.predict.preprocess import check_picture, preprocess, to_model_frame
from stablesam_jax.prompts import gt_box

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
Box = tuple[int, int, int, int]  # XYXY in pixels

EDGE_DISTANCE = 20  # pixels; a mask whose box is this close to the edge of a crop counts as cut off


class MaskRecord(TypedDict):
    """One mask, with the keys of the official records."""

    segmentation: np.ndarray | rle.RunLengths | rle.CompressedRunLengths  # (H, W) bool, or the form of `output_mode`
    area: int  # pixels of the mask
    bbox: list[int]  # XYWH, between inclusive pixel indices: one pixel has width 0; an empty mask has zeros
    predicted_iou: float  # the model's estimate of the mask's quality
    point_coords: list[list[float]]  # [[x, y]], the point of the prompt
    stability_score: float  # NaN if the mask is empty even at the lower threshold
    crop_box: list[int]  # XYWH, the crop that was prompted


class MaskGenerator:
    """Masks of whole pictures, with the arguments of SamAutomaticMaskGenerator."""

    def __init__(
        self,
        sam: Sam,
        params: Params,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: OutputMode = "binary_mask",
    ):
        """Prepares the search. The defaults are the official ones, chosen for SAM with ViT-H.

        Args:
            sam: any model of the family; it gives three masks for a point, an HQ-SAM one.
            params: its parameters.
            points_per_side: of the grid on the picture; None if `point_grids` is given.
            points_per_batch: number of points that are decoded at once.
            pred_iou_thresh: masks must have a higher predicted IoU; 0 turns the filter off.
            stability_score_thresh: masks must have at least this stability score; 0 turns the filter off.
            stability_score_offset: in logits; the score is the IoU of the masks thresholded at +offset and at -offset.
            box_nms_thresh: largest IoU of the boxes of two masks of a crop; the one of lower predicted IoU is dropped.
            crop_n_layers: 0 segments the picture as a whole; layer i adds 2^i x 2^i crops of it.
            crop_nms_thresh: the same between crops, where the mask of the larger crop is dropped.
            crop_overlap_ratio: overlap of the crops of layer 1, as a share of the picture's short side; half as much
                in layer 2, and so on.
            crop_n_points_downscale_factor: the points per side of layer i are divided by this to the power of i.
            point_grids: a grid for the picture and one for each layer of crops, (n, 2) (x, y) as shares of the sides.
            min_mask_region_area: pixels; smaller holes are filled, smaller islands removed. 0 leaves masks as they are.
            output_mode: the form of masks, see `rle`.

        Raises:
            InputError: an argument is out of its range.
        """
        for name, number, least in (
            ("points_per_side", points_per_side, 1),
            ("points_per_batch", points_per_batch, 1),
            ("crop_n_layers", crop_n_layers, 0),
            ("crop_n_points_downscale_factor", crop_n_points_downscale_factor, 1),
            ("min_mask_region_area", min_mask_region_area, 0),
        ):
            if number is not None and number < least:
                raise InputError(f"{name} is {number}; it must be at least {least}.")
        if not 0 <= crop_overlap_ratio < 1:
            raise InputError(f"crop_overlap_ratio is {crop_overlap_ratio}; it must be at least 0 and below 1.")
        if output_mode not in get_args(OutputMode):
            raise InputError(f"output_mode is {output_mode!r}; it must be one of {', '.join(get_args(OutputMode))}.")
        self.sam = sam
        self.params = jax.device_put(params)
        self.point_grids = _point_grids(points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor)
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode

    def generate(self, image: np.ndarray) -> list[MaskRecord]:
        """Finds the masks of a picture.

        The model compiles on the first picture, postprocessing once for each pair of `postprocess.padded_side`.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            A record for each mask: smallest crops first, within a crop by falling predicted IoU. With
            `min_mask_region_area`, masks without small regions come before all others.

        Raises:
            InputError: another shape or dtype, or an empty picture.
        """
        check_picture(image)
        crops = crop_boxes(image.shape[:2], self.crop_n_layers, self.crop_overlap_ratio)
        found = [one for box, layer in crops for one in self._search(image, box, self.point_grids[layer])]
        if len(crops) > 1:
            areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one.crop.box for one in found)]
            kept = nms([one.box for one in found], 1 / np.array(areas, np.float32), self.crop_nms_thresh)
            found = [found[index] for index in kept]
        return self._records(found, image.shape[:2])

    def _records(self, found: Sequence["_Candidate"], size_hw: tuple[int, int]) -> list[MaskRecord]:
        """Draws masks, and removes small regions."""
        records, boxes, intact = [], [], []
        for one in found:
            mask, box, has_small_regions = one.draw(size_hw), one.box, False
            if self.min_mask_region_area > 0:
                mask, has_small_regions = without_small_regions(mask, self.min_mask_region_area)
            if has_small_regions:
                box = gt_box(mask).astype(np.int64)
            records.append(self._record(one, mask, box))
            boxes.append(box)
            intact.append(not has_small_regions)
        if self.min_mask_region_area > 0:
            kept = nms(boxes, np.array(intact, np.float32), max(self.box_nms_thresh, self.crop_nms_thresh))
            records = [records[index] for index in kept]
        return records

    def _search(self, image: np.ndarray, box: Box, grid: np.ndarray) -> list["_Candidate"]:
        """The masks of one crop without duplicates, by falling predicted IoU."""
        x0, y0, x1, y1 = box
        size_hw = y1 - y0, x1 - x0
        config = self.sam.config
        crop = _Crop(box, *upscaling_axes(size_hw, mask_size=config.mask_size, frame=config.frame))
        embedding = compiled.encoder(self.sam)(self.params, preprocess(image[y0:y1, x0:x1], config)[None])
        found: list[_Candidate] = []
        for points, prompts in self._batches(grid * size_hw[::-1], size_hw):
            found += self._survivors(self._decode(embedding, prompts), points, crop, image.shape[:2])
        scores = np.array([one.predicted_iou for one in found], np.float32)
        return [found[index] for index in nms([one.box for one in found], scores, self.box_nms_thresh)]

    def _decode(self, embedding: ImageEmbedding, prompts: Prompts) -> Masks:
        """The masks of each point, logits above 0."""
        return compiled.decoder(self.sam, "multi")(self.params, embedding, prompts)

    def _batches(self, points: np.ndarray, size_hw: tuple[int, int]) -> Iterator[tuple[np.ndarray, Prompts]]:
        """(n, 2) points in pixels of the crop -> points and prompts of each batch, padded by repeating the last."""
        in_model = to_model_frame(points, size_hw, self.sam.config.frame)
        tokens = [sparse_tokens(point[None], np.array([POSITIVE]), None, length=2) for point in in_model]
        size = min(self.points_per_batch, len(points))
        for start in range(0, len(points), size):
            batch = tokens[start : start + size]
            batch += [batch[-1]] * (size - len(batch))
            coords, labels, valid = (jnp.asarray(np.stack(column)[None]) for column in zip(*batch, strict=True))
            yield points[start : start + size], Prompts(coords=coords, labels=labels, valid=valid)

    def _survivors(
        self, masks: Masks, points: np.ndarray, crop: "_Crop", size_hw: tuple[int, int]
    ) -> Iterator["_Candidate"]:
        """The masks of a batch that pass the filters.

        Args:
            masks: of P prompts, M each.
            points: (p, 2) in pixels of the crop, p <= P; prompts after the p-th are padding.
            crop: of the masks.
            size_hw: of the picture.
        """
        low_res_masks, predicted_iou = masks.low_res_masks[0], np.asarray(masks.iou_predictions)[0]
        kept = np.broadcast_to(np.arange(len(predicted_iou))[:, None] < len(points), predicted_iou.shape)
        if self.pred_iou_thresh > 0:
            kept = kept & (predicted_iou > self.pred_iou_thresh)
        measures = jax.device_get(_measure(low_res_masks, kept, crop.rows, crop.columns, self.stability_score_offset))
        with np.errstate(invalid="ignore"):
            stability = measures.intersections.astype(np.float32) / measures.unions.astype(np.float32)
        if self.stability_score_thresh > 0:
            kept = kept & (stability >= self.stability_score_thresh)
        corner = np.array(crop.box[:2])
        boxes = measures.boxes + np.tile(corner, 2)
        kept = kept & ~cut_off(boxes, crop.box, size_hw)
        on_host = np.asarray(low_res_masks)
        for index in zip(*np.nonzero(kept), strict=True):
            yield _Candidate(
                low_res_mask=on_host[index].copy(),  # a copy: a view would keep the whole batch in memory
                predicted_iou=float(predicted_iou[index]),
                stability_score=float(stability[index]),
                box=boxes[index],
                point=points[index[0]] + corner,
                crop=crop,
            )

    def _record(self, candidate: "_Candidate", mask: np.ndarray, box: np.ndarray) -> MaskRecord:
        return {
            "segmentation": _FORMS[self.output_mode](mask),
            "area": int(mask.sum()),
            "bbox": _xywh(box.tolist()),
            "predicted_iou": candidate.predicted_iou,
            "point_coords": [candidate.point.tolist()],
            "stability_score": candidate.stability_score,
            "crop_box": _xywh(candidate.crop.box),
        }


def point_grid(points_per_side: int) -> np.ndarray:
    """(n^2, 2) float64 (x, y) in 0..1, row by row: the centres of n x n equal cells."""
    centres = np.linspace(1 / (2 * points_per_side), 1 - 1 / (2 * points_per_side), points_per_side)
    x, y = np.meshgrid(centres, centres)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def crop_boxes(size_hw: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
    """The picture and its crops, each with its layer.

    Args:
        size_hw: of the picture.
        layers: 0 for the picture alone; layer i has 2^i x 2^i crops.
        overlap_ratio: share of the short side by which crops of layer 1 overlap.

    Returns:
        Boxes and layers, column by column within a layer. Empty crops, which the official code makes of pictures of a
        few pixels, are left out.
    """
    height, width = size_hw
    boxes = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        number = 2**layer
        overlap = int(overlap_ratio * min(size_hw) * (2 / number))
        crop_width, crop_height = (math.ceil((overlap * (number - 1) + side) / number) for side in (width, height))
        for column, row in itertools.product(range(number), repeat=2):
            x0, y0 = (crop_width - overlap) * column, (crop_height - overlap) * row
            if x0 < width and y0 < height:
                boxes.append(((x0, y0, min(x0 + crop_width, width), min(y0 + crop_height, height)), layer))
    return boxes


def nms(boxes: Sequence[np.ndarray], scores: np.ndarray, threshold: float) -> list[int]:
    """Non-maximum suppression with the arithmetic of torchvision on a CPU, so that borderline cases agree.

    Args:
        boxes: n of (4,) XYXY in pixels.
        scores: (n,); ties keep their order.
        threshold: a box is dropped if its IoU with a kept box of higher score is above.

    Returns:
        Indices of the kept boxes, by falling score.
    """
    corners = np.reshape(boxes, (-1, 4)).astype(np.float32)
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    gone = np.zeros(len(corners), bool)
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        if gone[index]:
            continue
        kept.append(int(index))
        sides = np.minimum(corners[:, 2:], corners[index, 2:]) - np.maximum(corners[:, :2], corners[index, :2])
        overlap = np.maximum(sides, 0).prod(1)
        with np.errstate(invalid="ignore"):  # the IoU of two boxes without area is NaN, so both are kept
            iou = overlap / (areas[index] + areas - overlap)
        gone |= iou.astype(np.float64) > threshold
    return kept


def cut_off(boxes: np.ndarray, crop: Box, size_hw: tuple[int, int]) -> np.ndarray:
    """Whether boxes end near an edge of their crop that is not near the same edge of the picture.

    Args:
        boxes: (..., 4) XYXY in pixels of the picture.
        crop: in which they were found.
        size_hw: of the picture.

    Returns:
        (...) bool.
    """
    at_crop, at_picture = (
        np.abs(boxes - np.array(edges)) <= EDGE_DISTANCE for edges in (crop, (0, 0, size_hw[1], size_hw[0]))
    )
    return (at_crop & ~at_picture).any(-1)


def without_small_regions(mask: np.ndarray, least_area: int) -> tuple[np.ndarray, bool]:
    """Fills small holes, then removes small islands; if all islands are small, the largest is kept.

    Args:
        mask: (H, W) bool.
        least_area: pixels of the smallest region that is kept; regions are 8-connected.

    Returns:
        The mask, and whether it had small regions; a single small island is kept, and counts as one.
    """
    labels, areas = regions(~mask)
    small_holes = areas < least_area
    mask = mask | small_holes[labels]
    labels, areas = regions(mask)
    small_islands = areas < least_area
    has_small_regions = bool(small_holes.any() or small_islands.any())
    if has_small_regions and small_islands[1:].all():
        small_islands[1 + np.argmax(areas[1:])] = False
    return mask & ~small_islands[labels], has_small_regions


def regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8-connected regions of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        label of each pixel, and the area of each label; infinite for label 0, outside all regions.
    """
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA].astype(np.float64)
    areas[0] = np.inf
    return labels, areas


@flax.struct.dataclass
class _Measures:
    """Measurements of masks for the filters."""

    intersections: jax.Array  # (...) int32, pixels above +offset
    unions: jax.Array  # (...) int32, pixels above -offset
    boxes: jax.Array  # (..., 4) int32 XYXY of the pixels above 0, inclusive; zeros if there are none


@dataclasses.dataclass(frozen=True, eq=False)
class _Crop:
    box: Box
    rows: Axis
    columns: Axis


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Candidate:
    """A mask that has passed the filters, as low-resolution logits; coordinates in pixels of the picture."""

    low_res_mask: np.ndarray  # (4G, 4G) float32 logits
    predicted_iou: float
    stability_score: float
    box: np.ndarray  # (4,) int XYXY
    point: np.ndarray  # (2,) float64 (x, y)
    crop: _Crop

    def draw(self, size_hw: tuple[int, int]) -> np.ndarray:
        """(H, W) bool."""
        x0, y0, x1, y1 = self.crop.box
        mask = np.zeros(size_hw, bool)
        drawn = np.asarray(padded_mask(self.low_res_mask, self.crop.rows, self.crop.columns))
        mask[y0:y1, x0:x1] = drawn[: y1 - y0, : x1 - x0]
        return mask


@jax.jit
def _measure(low_res_masks: jax.Array, wanted: jax.Array, rows: Axis, columns: Axis, offset: float) -> _Measures:
    """Measures (P, M, 4G, 4G) logits at the size of the picture, one mask at a time, where `wanted` (P, M) is True."""

    def measure_rows(logits: jax.Array) -> tuple[jax.Array, ...]:
        # Maxima, because any(logits > 0) takes several times as long on a CPU.
        return (*((logits > cut).sum(dtype=jnp.int32) for cut in (offset, -offset)), logits.max(1) > 0, logits.max(0))

    def measure(low_res_mask: jax.Array) -> _Measures:
        intersections, unions, rows_present, columns_max = by_rows(measure_rows, low_res_mask, rows, columns)
        (y0, y1), (x0, x1) = _span(rows_present.reshape(-1)), _span(columns_max.max(0) > 0)
        box = jnp.stack([x0, y0, x1, y1]).astype(jnp.int32)
        return _Measures(intersections.sum(dtype=jnp.int32), unions.sum(dtype=jnp.int32), box)

    def skip(_: jax.Array) -> _Measures:
        return _Measures(jnp.int32(0), jnp.int32(0), jnp.zeros(4, jnp.int32))

    def one(mask_and_wanted: tuple[jax.Array, jax.Array]) -> _Measures:
        return jax.lax.cond(mask_and_wanted[1], measure, skip, mask_and_wanted[0])

    return jax.lax.map(lambda masks_of_point: jax.lax.map(one, masks_of_point), (low_res_masks, wanted))


def _span(present: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(n,) bool -> indices of the first and the last True; zeros if there is none."""
    last = len(present) - 1 - jnp.argmax(present[::-1])
    return jnp.argmax(present), jnp.where(present.any(), last, 0)


def _xywh(box: Sequence[int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


_FORMS: dict[OutputMode, Callable] = {
    "binary_mask": lambda mask: mask,
    "uncompressed_rle": rle.encode,
    "coco_rle": lambda mask: rle.compress(rle.encode(mask)),
}


def _point_grids(
    points_per_side: int | None, point_grids: Sequence[np.ndarray] | None, layers: int, downscale_factor: int
) -> list[np.ndarray]:
    """The grid of the picture and of each layer of crops, (n, 2) float64 each."""
    if points_per_side is not None and point_grids is None:
        sides = [int(points_per_side / downscale_factor**layer) for layer in range(layers + 1)]
        if sides[-1] == 0:
            raise InputError(
                f"crop_n_points_downscale_factor {downscale_factor} leaves the crops of layer {layers} without a point "
                f"of points_per_side {points_per_side}; give a smaller factor or fewer layers."
            )
        return [point_grid(side) for side in sides]
    if points_per_side is not None or point_grids is None:
        raise InputError("points_per_side and point_grids exclude each other; give one, and None for the other.")
    grids = [np.asarray(grid, np.float64) for grid in point_grids]
    if len(grids) != layers + 1:
        raise InputError(f"point_grids has {len(grids)} grids; crop_n_layers {layers} needs {layers + 1}.")
    for index, grid in enumerate(grids):
        if grid.ndim != 2 or grid.shape[1] != 2 or len(grid) == 0 or not ((grid >= 0) & (grid <= 1)).all():
            raise InputError(
                f"point_grids[{index}] has shape {grid.shape}; expected (n, 2) with n > 0 and numbers in 0..1, "
                "x and y as shares of the sides."
            )
    return grids
