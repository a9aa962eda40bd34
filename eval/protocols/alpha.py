"""`alpha`: what the router can know about a box, and what it makes of it.

The router reads a token of the decoder (eq. 5). If that token does not tell a sloppy box from a true one, no router
can: a linear reader of the token is trained to tell them, on other groups of pictures than it is tested on. Beside it
stand signals of a finished mask, which a second pass could be told, and the router's alpha_1 itself.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import tyro

from eval.identity import identity
from eval.journal import Record
from eval.loop import Protocol, Segmenter, Summary, prompt_objects, to_picture
from eval.prompt_kinds import PROMPTS_PER_OBJECT
from eval.protocols import systems
from stablesam_jax.config import MASK_TOKENS
from stablesam_jax.data.readers import LabelledPicture, Pictures
from stablesam_jax.data.sources import open_sources
from stablesam_jax.errors import InputError
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.ops.layers import one_by_one
from stablesam_jax.params import Params
from stablesam_jax.predict.explain import ATTENTIONS
from stablesam_jax.prompts import Prompt, box_iou, gt_box

METRICS = ("auc", "true", "sloppy")
KINDS = ("gt-box", "noisy-box")
FOLDS = 5
RIDGE = 1.0  # of a reader's squared weights, relative to a standardised input's variance


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlphaConfig(systems.Options):
    """How well tokens, signals of a mask and alpha tell true from sloppy boxes: area under the ROC curve, 50 is chance.

    Data: folders with im/ and gt/, COCO folders, built data sets, or NAME:DIR as dis5k-vd:/data/hq.
    """

    count: int = PROMPTS_PER_OBJECT
    """Number of sloppy boxes for each object."""


class Seen(NamedTuple):
    """Output of a system for N prompts."""

    low_res_masks: np.ndarray | jax.Array  # (N, 4G, 4G)
    predicted_iou: np.ndarray | jax.Array  # (N,)
    alpha: np.ndarray | jax.Array  # (N, A) float32, alpha_1 at each attention that the plugin resamples for; A may be 0
    tokens: np.ndarray | jax.Array  # (N, 3, 5 or 6, C) float32, own tokens before each attention to the image


class TokenReader(Segmenter):
    """A system that shows its tokens."""

    def __init__(self, sam: Sam, params: Params):
        """As of `Segmenter`."""
        super().__init__(sam, params)
        self._decode: Any = _reading(sam)


def alpha(config: Annotated[AlphaConfig, tyro.conf.arg(name="")]) -> None:
    """How well tokens, masks and the router tell exact boxes from sloppy ones."""
    if config.count < 1:
        raise InputError(f"--count {config.count}: must be at least 1.")
    systems.check_options(config, KINDS, KINDS)
    sources = open_sources(config.data_dir)
    protocol = Protocol(kinds=KINDS, prompts=config.count, seed=config.seed)

    def score(sam: Sam, params: Params, source: Pictures, each_picture: systems.EachPicture) -> systems.Found:
        def make(params: Params) -> systems.Begin:
            reader = TokenReader(sam, params)
            return lambda index: begin(reader, source[index], protocol)

        records = list(each_picture(make))
        return systems.Found(summary=summarise(records, config.choice.groups(source)), lines=lines_of(records))

    systems.run(config, sources, score, protocol="alpha", metrics=METRICS, lines_file="per_object.csv")


def begin(reader: TokenReader, labelled: LabelledPicture, protocol: Protocol) -> Callable[[], Record]:
    """Prompts with true and sloppy boxes for all objects of a picture.

    Returns:
        the rest of the work: a function that gives, for each box, whether it is true, its signals and its tokens.
    """
    prompted: Any = prompt_objects(reader, reader.encode(labelled.picture), labelled, protocol)
    attentions = sorted(reader.config.plugin.attentions) if reader.config.plugin else []

    def finish() -> Record:
        boxes, size_hw = [], labelled.picture.shape[:2]
        for one in prompted:
            seen = one.predictions
            for number, prompt in enumerate(one.prompts):
                signals: dict[str, float | None] = {"fit": fit(seen.low_res_masks[number], prompt, size_hw)}
                signals["predicted IoU"] = float(seen.predicted_iou[number])
                values = dict(zip(attentions, seen.alpha[number].tolist(), strict=True))
                signals |= {f"alpha {place}": values.get(place) for place in range(len(ATTENTIONS))}
                tokens = [[round(float(x), 5) for x in row] for row in seen.tokens[number].reshape(3, -1)]
                boxes.append(
                    {"object": one.object_id, "true": one.kind == "gt-box", "signals": signals, "tokens": tokens}
                )
        return {
            **identity(labelled.picture, labelled.masks),
            "picture": labelled.name,
            "t_o": reader.config.output_token,
            "boxes": boxes,
        }

    return finish


def fit(low_res: np.ndarray, prompt: Prompt, size_hw: tuple[int, int]) -> float:
    """IoU of the box that was asked with and the box around the mask; 0 for an empty mask."""
    mask = to_picture(low_res, size_hw)
    assert prompt.box is not None
    return float(box_iou(prompt.box, gt_box(mask))) if mask.any() else 0.0


@functools.cache
def _reading(sam: Sam) -> Callable[[Params, ImageEmbedding, Prompts], Seen]:
    """Compiles (parameters, image embedding of one picture, prompts) -> `Seen` on the device."""

    def decode(params: Params, embedding: ImageEmbedding, prompts: Prompts) -> Any:
        def read(coords: jax.Array, labels: jax.Array, valid: jax.Array) -> Seen:
            masks, state = sam.apply(
                {"params": params}, embedding, Prompts(coords=coords, labels=labels, valid=valid), masks="single",
                hq_token_only=sam.config.hq, method="decode", mutable=["intermediates", "tokens"],
            )  # fmt: skip
            shown = state["tokens"]["mask_decoder"]["transformer"]
            places = [functools.reduce(operator.getitem, path, shown)["queries"][0] for path in ATTENTIONS]
            tokens = jnp.stack([place[:, :, : _own_tokens(sam.config.output_token)] for place in places], axis=2)
            if sam.config.plugin is None:
                alphas = jnp.zeros((*masks.iou_predictions.shape[:2], 0))
            else:
                alphas = jnp.stack([one[..., 0] for one in state["intermediates"]["plugin"]["alpha"]], axis=-1)
            return Seen(masks.low_res_masks[:, :, 0], masks.iou_predictions[:, :, 0], alphas, tokens)

        return jax.tree.map(lambda x: x[0], one_by_one(read)(prompts.coords, prompts.labels, prompts.valid))

    return jax.jit(decode)


def summarise(records: Sequence[Record], groups: Sequence[str]) -> Summary:
    """Area under the ROC curve of each signal and each reader, and the mean of each signal for both kinds of boxes.

    Args:
        records: of the pictures.
        groups: of each picture; no group is in two folds.
    """
    boxes = [(box, group) for record, group in zip(records, groups, strict=True) for box in record["boxes"]]
    true = np.array([box["true"] for box, _ in boxes])
    fold = np.unique([group for _, group in boxes], return_inverse=True)[1] % FOLDS
    summary: dict[str, dict[str, float]] = {}
    for signal in boxes[0][0]["signals"]:
        values = np.array([box["signals"][signal] for box, _ in boxes], np.float64)  # None is nan
        means = {"true": float(values[true].mean()), "sloppy": float(values[~true].mean())}
        summary[signal] = {"auc": auc(values, true), **means}
    tokens = np.array([box["tokens"] for box, _ in boxes], np.float64)
    t_o = records[0]["t_o"]
    tokens = tokens.reshape(*tokens.shape[:2], _own_tokens(t_o), -1)  # (boxes, 3, 5 or 6, C)
    for place in range(tokens.shape[1]):
        for name, chosen in (("t_o", [t_o]), ("t_o and IoU token", [0, t_o]), ("five tokens", range(MASK_TOKENS.stop))):
            read = cross_read(tokens[:, place, list(chosen)].reshape(len(true), -1), true, fold)
            summary[f"{name} {place}"] = {"auc": read, "true": np.nan, "sloppy": np.nan}
    return summary


def _own_tokens(t_o: int) -> int:
    """Number of the decoder's own tokens: IoU token and mask tokens, and of an HQ-SAM its token, which is t_o."""
    return max(MASK_TOKENS.stop, t_o + 1)


def cross_read(inputs: np.ndarray, true: np.ndarray, fold: np.ndarray) -> float:
    """Area under the ROC curve of ridge regressions, each tested on the fold that it has not seen.

    Args:
        inputs: (N, D).
        true: (N,) bool, what is read.
        fold: (N,) int.

    Returns:
        mean over the folds, weighted by their number of boxes; nan where a fold has boxes of one kind alone.
    """
    areas, sizes = [], []
    for number in np.unique(fold):
        inside, outside = fold == number, fold != number
        if not outside.any():
            return float("nan")
        mean, deviation = inputs[outside].mean(axis=0), inputs[outside].std(axis=0) + 1e-9
        seen = (inputs[outside] - mean) / deviation
        wanted = true[outside] - true[outside].mean()
        scale = RIDGE * len(seen)
        weights = np.linalg.solve(seen.T @ seen + scale * np.eye(seen.shape[1]), seen.T @ wanted)
        areas.append(auc(((inputs[inside] - mean) / deviation) @ weights, true[inside]))
        sizes.append(inside.sum())
    return float(np.average(areas, weights=sizes))


def auc(values: np.ndarray, true: np.ndarray) -> float:
    """Probability that a true box has a higher value than a sloppy one, ties by half; nan if either is missing."""
    if true.all() or not true.any() or np.isnan(values).any():
        return float("nan")
    above = scipy.stats.mannwhitneyu(values[true], values[~true]).statistic
    return float(above / (true.sum() * (~true).sum()))


def lines_of(records: Sequence[Record]) -> list[Mapping[str, object]]:
    """The signals of every box."""
    return [
        {"picture": record["picture"], "object": box["object"], "true": int(box["true"])}
        | {name: "" if value is None else f"{value:.6f}" for name, value in box["signals"].items()}
        for record in records
        for box in record["boxes"]
    ]
