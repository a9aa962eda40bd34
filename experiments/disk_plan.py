"""Which features of which views are worth their place on the disk.

Runs with the same frozen encoder, augmentation and seed see the same views, so that their features can be cached. A
view that one run alone sees once is never read again and is not worth a byte. The others are kept in the order of the
encoder calls that a byte saves, as far as they fit; everything else is encoded in the step that needs it.
"""

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence

from experiments.full_size import SYSTEMS_AT_FULL_SIZE, Model
from experiments.options import PaperConfig
from experiments.rates import encoder_flops
from stablesam_jax.config import MODELS
from stablesam_jax.model.encoders import encoder_of
from train.presets import PRESETS

FEATURES = "features"  # folder of the cached features, in --output
MARGIN = 1.1  # of the limit over the entries: `files.feature_cache` keeps some of it free


@dataclasses.dataclass(frozen=True)
class Group:
    """Views that several runs share: of one encoder and one augmentation."""

    backbone: str
    hq: bool  # with HQ-SAM's early features
    occluded: bool  # robust training

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.backbone}{'-hq' if self.hq else ''}-{'rts' if self.occluded else 'good'}"


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is cached of a group."""

    views: int  # the first of every picture
    limit: float  # GiB
    saved: int  # encoder calls


def group_of(config: PaperConfig, model: Model) -> Group:
    """The group of a run."""
    run = config.run_of(model)
    return Group(model.backbone, run.hq or _base_with_hq(model), run.occlusion > 0)


def passes(config: PaperConfig, model: Model, pictures: int) -> tuple[int, int]:
    """Pictures that a run uses of those that there are, and epochs."""
    run = config.run_of(model)
    return min(pictures, run.limit or pictures), math.ceil(run.epochs)


def room_for_features(config: PaperConfig) -> float:
    """GiB: --disk, or half of what is free or has features already."""
    if config.disk is not None:
        return config.disk
    place = next(folder for folder in (config.output, *config.output.absolute().parents) if folder.exists())
    taken = sum(path.stat().st_size for path in (config.output / FEATURES).rglob("*.safetensors"))
    return (shutil.disk_usage(place).free + taken) / 2**31


def plan_disk(config: PaperConfig, models: Sequence[Model], pictures: int, room: float) -> Mapping[Group, Kept]:
    """Chooses the views to keep.

    Args:
        config: of the command.
        models: that train.
        pictures: to train on.
        room: GiB.
    """
    uses: dict[Group, dict[int, list[int]]] = {}  # group -> view -> pictures of each run that sees it
    for model in models:
        used, epochs = passes(config, model, pictures)
        for view in range(epochs):
            uses.setdefault(group_of(config, model), {}).setdefault(view, []).append(used)

    def saved(group: Group, view: int) -> int:
        """Encoder calls. A run of fewer pictures has some of those of the others."""
        return sum(uses[group][view]) - max(uses[group][view])

    def size(group: Group, view: int) -> float:
        """Bytes."""
        return MARGIN * max(uses[group][view]) * _entry_bytes(config, group)

    def worth(place: tuple[Group, int]) -> float:
        """Arithmetic that a byte saves."""
        return saved(*place) * encoder_flops(config.scale.models[place[0].backbone]) / size(*place)

    kept: dict[Group, Kept] = {}
    left = room * 2**30
    places = [(group, view) for group, views in uses.items() for view in sorted(views)]
    for group, view in sorted(places, key=worth, reverse=True):
        before = kept.get(group, Kept(0, 0.0, 0))
        # Only the first views, without a gap.
        if saved(group, view) and size(group, view) <= left and view == before.views:
            left -= size(group, view)
            kept[group] = Kept(view + 1, before.limit + size(group, view) / 2**30, before.saved + saved(group, view))
    return kept


def _base_with_hq(model: Model) -> bool:
    base = model.base
    return bool(base.system) and PRESETS[SYSTEMS_AT_FULL_SIZE[base.system].preset][1].hq


def _entry_bytes(config: PaperConfig, group: Group) -> int:
    return features_bytes(config.scale.models[group.backbone], hq=group.hq, image_size=config.scale.image_size)


def features_bytes(model: str, *, hq: bool, image_size: int | None) -> int:
    """Bytes of the cached features of one view, float16."""
    config = MODELS[model]
    cells = config.grid_size if image_size is None else image_size // config.encoder.patch_size
    width = encoder_of(config).early_width
    early = width(config.encoder) if hq and width is not None else 0
    return 2 * cells**2 * (config.embedding_width + early)
