"""Differences between two runs of one model, quantity by quantity, and their bounds."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from eval.parity import quantities, twins
from eval.parity.quantities import Outputs


@dataclasses.dataclass(frozen=True)
class Bound:
    """Bounds of a difference: maximum, and root mean square, which detects small faults in many elements."""

    largest: float
    rms: float
    relative: bool  # in units of the reference's standard deviation


# For float32 against float32 on one input: 2 to 4 times the error of PyTorch's float32 against its float64.
BOUNDS = {
    quantities.INPUT: Bound(0, 0, relative=False),
    quantities.EMBEDDING: Bound(4e-5, 3e-6, relative=True),
    quantities.EARLY: Bound(4e-5, 3e-6, relative=True),
    quantities.HQ_FEATURES: Bound(4e-5, 3e-6, relative=True),
    quantities.STRIDE_4: Bound(4e-5, 3e-6, relative=True),
    quantities.STRIDE_8: Bound(4e-5, 3e-6, relative=True),
    quantities.SPARSE: Bound(5e-6, 1e-6, relative=False),
    # The mask path's first norm has 4 channels. Where they are nearly equal, both sides are up to 3e-6 off float64.
    quantities.DENSE: Bound(1e-5, 1e-6, relative=False),
    quantities.IMAGE_PE: Bound(5e-6, 1e-6, relative=False),
    quantities.DECODER: Bound(1.5e-5, 3e-6, relative=True),
    quantities.TOKENS: Bound(2.5e-5, 4e-6, relative=True),
    quantities.LOW_RES: Bound(2.5e-5, 4e-6, relative=True),
    quantities.IOU: Bound(2e-6, 2e-6, relative=False),
    quantities.OBJECT: Bound(1e-5, 3e-6, relative=False),
    quantities.FULL_RES: Bound(1.5e-4, 1.5e-5, relative=True),
    # The derivative of bilinear sampling is discontinuous at cell borders, which positions may cross by rounding.
    quantities.GRADIENT: Bound(3e-4, 3e-5, relative=True),
}
# SAM 2's picture is resized in float32, where PyTorch fuses multiplications and additions as the processor allows.
SAM2_BOUNDS = BOUNDS | {quantities.INPUT: Bound(2e-6, 3e-7, relative=False)}
FLIPS = 1e-5  # share of mask pixels that may differ, each with a logit below the bound of full-resolution logits
BFLOAT16_FLIPS = 1e-2  # likewise for bfloat16, whatever their logits; it has no other bound
OWN_ERROR = 4  # the difference from float64 may be this many times that of the official model in float32


@dataclasses.dataclass(frozen=True)
class Row:
    """Difference of one quantity. A bound of None always holds."""

    quantity: str
    deviation: float  # s, standard deviation of the reference; of a gradient, which may be a scalar, about zero
    largest: float
    rms: float
    largest_bound: float | None
    rms_bound: float | None

    @property
    def ok(self) -> bool:
        """Whether both bounds hold. NaN exceeds any bound."""
        return _within(self.largest, self.largest_bound) and _within(self.rms, self.rms_bound)


@dataclasses.dataclass(frozen=True)
class MaskRow:
    """Difference of masks at the picture's own size."""

    pixels: int
    differing: int
    largest_logit: float  # of the reference where the masks differ
    share_bound: float
    logit_bound: float | None

    @property
    def share(self) -> float:
        """Share of the pixels that differ."""
        return self.differing / self.pixels

    @property
    def ok(self) -> bool:
        """Whether few pixels differ, and only where the reference's logit is close to the threshold."""
        return _within(self.share, self.share_bound) and _within(self.largest_logit, self.logit_bound)


def _within(value: float, bound: float | None) -> bool:
    return bound is None or value <= bound


def compare(
    ours: Outputs, theirs: Outputs, *, own: Outputs | None = None, bounds: Mapping[str, Bound] = BOUNDS
) -> list[Row]:
    """Compares each quantity that both have, in the order of computation.

    Args:
        ours: from `twins.run_ours`.
        theirs: from `twins.run_official`.
        own: from `twins.run_official` in float32, if theirs is in float64.
        bounds: by quantity; other quantities have none.
    """
    rows = []
    for quantity in twins.in_order(theirs):
        reference = theirs[quantity]
        is_gradient = quantity.startswith(quantities.GRADIENT)
        deviation = (
            _difference(reference, np.zeros_like(reference))[1]
            if is_gradient
            else float(reference.std(dtype=np.float64))
        )
        largest, rms = _difference(ours[quantity], reference)
        largest_bound = rms_bound = None
        if bound := bounds.get(quantities.GRADIENT if is_gradient else quantity):
            unit = deviation if bound.relative else 1.0
            largest_bound, rms_bound = bound.largest * unit, bound.rms * unit
            if own is not None:
                own_largest, own_rms = _difference(own[quantity], reference)
                largest_bound = max(largest_bound, OWN_ERROR * own_largest)
                rms_bound = max(rms_bound, OWN_ERROR * own_rms)
        rows.append(Row(quantity, deviation, largest, rms, largest_bound, rms_bound))
    return rows


def compare_masks(
    ours: Outputs, theirs: Outputs, *, own: Outputs | None = None, share_bound: float, logit_bound: float | None
) -> MaskRow:
    """Compares masks at the picture's own size; arguments as of `compare`.

    Args:
        ours: from `twins.run_ours`.
        theirs: from `twins.run_official`.
        own: from `twins.run_official` in float32, if theirs is in float64.
        share_bound: share of the pixels that may differ.
        logit_bound: the largest logit that a differing pixel may have.
    """
    logits = theirs[quantities.FULL_RES]
    differs = (ours[quantities.FULL_RES] > 0) != (logits > 0)
    if own is not None:
        share_bound = max(share_bound, OWN_ERROR * float(np.mean((own[quantities.FULL_RES] > 0) != (logits > 0))))
    largest = float(np.abs(logits[differs]).max(initial=0.0))
    return MaskRow(differs.size, int(differs.sum()), largest, share_bound, logit_bound)


def _difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Maximum and root mean square, in float64, one entry of the first axis at a time to save memory."""
    largest, squares = 0.0, 0.0
    for our, their in zip(np.atleast_1d(ours), np.atleast_1d(theirs), strict=True):
        difference = our.astype(np.float64) - their
        largest = float(np.maximum(largest, np.abs(difference).max()))  # max() of Python would drop NaN
        squares += float(np.square(difference).sum())
    return largest, (squares / theirs.size) ** 0.5
