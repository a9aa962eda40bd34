"""What the paper's tables need: official weights, data sets, boxes of detectors; and what of it is there."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from experiments.full_size import BACKBONES, DETECTORS, HQ_SETS, TRAINING
from stablesam_jax.data import datasets
from stablesam_jax.data.datasets import GROUPS, INSTANCES, JOINED, MESS, ONE_OBJECT, official_count
from stablesam_jax.files.checkpoint import MANIFEST

COCO, SGINW, MESS_GROUP = "coco-val2017", "sginw", "mess"
# Where the count of pictures is not in `datasets`: COCO's own, and the sum of HQ-SAM's log for SGinW, where sets of
# fewer than 30 pictures count as 15.
OTHER_COUNTS = {COCO: 5000, SGINW: 2400}
SETS_OF_PROTOCOL = {
    "hq": HQ_SETS,
    "coco": (COCO,),
    **{f"coco-{detector}": (COCO,) for detector in DETECTORS},
    "sginw": (SGINW,),
    "mess": (MESS_GROUP,),
}


@dataclasses.dataclass(frozen=True)
class Needed:
    """A file or a folder that the tables need."""

    what: str
    path: pathlib.Path
    there: bool
    pictures: int = 0  # files in the folder, where it is one of pictures
    expected: int | None = None  # their number in the official release

    @property
    def line(self) -> str:
        """For the plan."""
        if not self.there:
            return f"{self.what}: missing, expected at {self.path}"
        if self.expected is not None and self.pictures != self.expected:
            return f"{self.what}: {self.pictures:,} pictures in {self.path}, the release has {self.expected:,}"
        return f"{self.what}: there"


def weights_of(folder: pathlib.Path, backbone: str) -> Needed:
    """The official file of a backbone, or a checkpoint folder under the model's name, in the user's folder."""
    row = BACKBONES[backbone]
    converted = folder / row.model
    path = converted if (converted / MANIFEST).exists() else folder / row.weights
    return Needed(f"weights of {row.model}", path, path.exists())


def boxes_of(data: pathlib.Path, detector: str) -> Needed:
    """The boxes of a detector on COCO, in COCO's result format: Table 4 needs them."""
    path = data / "detections" / f"{detector}.json"
    return Needed(f"boxes of {detector} on COCO val2017 (Table 4)", path, path.is_file())


def folders_of(data: pathlib.Path, name: str) -> Iterator[Needed]:
    """Every folder and json of a data set, or of all sets of a group."""
    for one in (*JOINED.get(name, ()), *GROUPS.get(name, ())):
        yield from folders_of(data, one)
    if name in ONE_OBJECT:
        row = ONE_OBJECT[name]
        yield _folder(f"{name}, pictures", data / row.pictures, ".jpg", row.count)
        yield _folder(f"{name}, masks", data / row.masks, ".png", row.count)
    elif name in INSTANCES:
        of = INSTANCES[name]
        yield _folder(f"{name}, pictures", data / of.pictures, ".jpg", OTHER_COUNTS.get(name))
        path = data / of.annotations
        yield Needed(f"{name}, annotations", path, path.is_file())
    elif name in MESS:
        maps = MESS[name]
        expected = None if maps.more_pictures else maps.count
        yield _folder(f"{name}, pictures", data / maps.pictures, maps.picture_suffix, expected)
        yield _folder(f"{name}, class maps", data / maps.labels, maps.label_suffix, maps.count)


def is_there(data: pathlib.Path, name: str) -> bool:
    """Whether every folder of a data set is there."""
    return all(needed.there for needed in folders_of(data, name))


def pictures_of(data: pathlib.Path, name: str) -> int:
    """Pictures of a data set or a group: those in its folders, or where these are missing those of the release."""
    members = JOINED.get(name) or GROUPS.get(name)
    if members and all(is_there(data, one) for one in members):
        return sum(pictures_of(data, one) for one in members)
    if not members and is_there(data, name):
        masks = [needed for needed in folders_of(data, name) if not needed.what.endswith("pictures")]
        return masks[0].pictures or next(folders_of(data, name)).pictures
    counted = OTHER_COUNTS.get(name) or official_count(name)
    return counted if counted is not None else sum(row.count for row in datasets.MESS.values())


def missing(data: pathlib.Path, names: Sequence[str]) -> list[Needed]:
    """What is not there of these data sets, and folders with another number of pictures than the release."""
    every = [needed for name in dict.fromkeys(names) for needed in folders_of(data, name)]
    return [needed for needed in every if not needed.line.endswith(": there")]


def training_files(data: pathlib.Path) -> int:
    """Bytes of the training pictures and masks; 0 where they are missing."""
    folders = {needed.path for needed in folders_of(data, TRAINING) if needed.there}
    return sum(path.stat().st_size for folder in folders for path in folder.iterdir() if path.is_file())


def _folder(what: str, path: pathlib.Path, suffix: str, expected: int | None) -> Needed:
    if not path.is_dir():
        return Needed(what, path, False, expected=expected)
    return Needed(what, path, True, sum(1 for file in path.iterdir() if file.name.endswith(suffix)), expected)
