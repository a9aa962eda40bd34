"""Data sets as ArrayRecord files: encoding and decoding of a record. `convert.build_dataset` writes them.

The bytes of a picture's file are kept unchanged. Objects are in layers, PNG files in which they are numbered from 1; an
object that overlaps the current layer begins a new one. Any tfds can read the files; TensorFlow is not needed.
"""

import functools
import io
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image

from stablesam_jax.commands import called
from stablesam_jax.data.class_maps import ClassMap
from stablesam_jax.data.findings import Findings
from stablesam_jax.data.label_file import SizeHW
from stablesam_jax.data.readers import LabelledPicture, Objects, Reader
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import read_picture

VERSION, SPLIT = "1.0.0", "pictures"
OBJECTS, CLASSES = "objects", "classes"  # kinds
MOST_NUMBERS = 255  # in a PNG of 8 bits
TFDS = "tensorflow_datasets."


def features(kind: str) -> Any:
    """The tfds features of a kind of record."""
    import tensorflow_datasets as tfds  # here, because it takes most of a second

    labels = {
        OBJECTS: {
            "masks": tfds.features.Sequence(tfds.features.Text()),  # PNG files; tfds cannot hand out Images undecoded
            "numbers": tfds.features.Sequence(np.int64),
            "categories": tfds.features.Sequence(tfds.features.Text()),
        },
        CLASSES: {"label": tfds.features.Text()},  # a PNG file
    }
    picture = tfds.features.Image(shape=(None, None, None), doc="the file as it was")
    return tfds.features.FeaturesDict({"name": tfds.features.Text(), "picture": picture, **labels[kind]})


def encode(item: LabelledPicture | ClassMap, picture_file: pathlib.Path) -> dict[str, Any]:
    """The record of a picture."""
    record = {"name": item.name, "picture": picture_file.read_bytes()}
    if isinstance(item, ClassMap):
        return {**record, "label": _png(item.label)}
    layers = [_png(layer) for layer in _layers(item.masks)]
    return {**record, "masks": layers, "numbers": list(item.numbers), "categories": list(item.categories)}


def is_built(folder: pathlib.Path) -> bool:
    """Whether a folder has the form of `convert.build_dataset`, or is the version folder inside one."""
    return (_versioned(folder) / "dataset_info.json").is_file()


def facts(folder: pathlib.Path) -> dict[str, Any]:
    """Metadata that was written when a data set was built; empty if it cannot be read."""
    try:
        return dict(json.loads((_versioned(folder) / "metadata.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def open_built(folder: pathlib.Path) -> "BuiltPictures | BuiltClassMaps":
    """Opens a built data set.

    Args:
        folder: that `convert.build_dataset` has written.

    Raises:
        InputError: it is another data set of tfds, or damaged.
    """
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    place = _versioned(folder)
    try:
        metadata = json.loads((place / "metadata.json").read_bytes())
        names = metadata["names"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("names that are no list of texts")
        _refuse_other_code(json.loads((place / "features.json").read_bytes()))
        builder = tfds.builder_from_directory(place)
        records = builder.as_data_source(SPLIT, decoders={"picture": tfds.decode.SkipDecoding()})
        if len(records) != len(metadata["names"]):
            raise ValueError(f"{len(records)} records, {len(metadata['names'])} names")
        for end in itertools.accumulate(builder.info.splits[SPLIT].shard_lengths):
            records[end - 1]  # a truncated file is detected only when it is first read
        if metadata["kind"] == OBJECTS:
            return BuiltPictures(place, records, metadata)
        return BuiltClassMaps(place, records, metadata)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, ParseError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise InputError(
            f"{folder}: no data set that `{called('build')}` has written, or damaged ({reason}); build it."
        ) from None


def _refuse_other_code(features: Any) -> None:
    """Refuses features of other modules than those of tfds, which imports the module that a file names.

    Raises:
        ValueError: there is one.
    """
    if isinstance(features, dict):
        name = features.get("pythonClassName", TFDS)
        if not str(name).startswith(TFDS):
            raise ValueError(f"features of {name}")
    for value in features.values() if isinstance(features, dict) else features if isinstance(features, list) else ():
        _refuse_other_code(value)


class _Records(Reader):
    """Base of both kinds of built data sets."""

    own_labels = False

    def __init__(self, folder: pathlib.Path, records: Any, metadata: dict[str, Any]):
        self.folder, self.records = folder, records
        self.name: str = metadata["name"]
        self.names: list[str] = metadata["names"]

    def picture_file(self, index: int) -> pathlib.Path:
        """The folder and the name of the record."""
        return self.folder / self.names[index]

    def label_file(self, index: int) -> pathlib.Path:
        """The folder and the name of the record."""
        return self.folder / self.names[index]

    def files(self) -> Iterable[pathlib.Path]:
        """All files of the folder."""
        return sorted(file for file in self.folder.iterdir() if file.is_file())

    def look(self, index: int) -> Findings:
        """Nothing: everything was checked when the set was built."""
        return []

    def picture(self, index: int, reduce: int = 1) -> np.ndarray:
        """See `Reader.picture`."""
        return self._decoded(index, functools.partial(_picture, reduce=reduce))

    def _decoded(self, index: int, decode: Callable[[dict[str, Any]], Any]) -> Any:
        name = self.names[index]
        try:
            return decode(self.records[range(len(self))[index]])  # tfds does not support negative indices
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).split("\n")[0].rstrip(".")
            raise InputError(f"{self.folder}: the record of {name} is damaged ({reason}); build it again.") from None


class BuiltPictures(_Records):
    """Labelled pictures from ArrayRecord files, in the order of their source."""

    def __getitem__(self, index: int) -> LabelledPicture:
        picture, objects = self._decoded(index, lambda record: (_picture(record), _objects(record)))
        return LabelledPicture(self.names[index], picture, objects.masks, objects.numbers, objects.categories)

    def label(self, index: int, size_hw: SizeHW | None) -> Objects:
        """The objects of a picture."""
        return self._decoded(index, _objects)


class BuiltClassMaps(_Records):
    """Class maps from ArrayRecord files, in the order of their source."""

    def __init__(self, folder: pathlib.Path, records: Any, metadata: dict[str, Any]):
        super().__init__(folder, records, metadata)
        self.classes: int = metadata["classes"]
        self.background: int | None = metadata["background"]

    def __getitem__(self, index: int) -> ClassMap:
        return ClassMap(self.names[index], *self._decoded(index, lambda record: (_picture(record), _classes(record))))

    def label(self, index: int, size_hw: SizeHW | None) -> np.ndarray:
        """The class of each pixel, (H, W) uint8."""
        return self._decoded(index, _classes)


def _versioned(folder: pathlib.Path) -> pathlib.Path:
    return folder / VERSION if (folder / VERSION).is_dir() else folder


def _layers(masks: np.ndarray) -> Iterable[np.ndarray]:
    """(M, H, W) bool -> layers (H, W) with objects numbered from 1; a layer of one object is (H, W) bool."""
    begin = 0
    taken = masks[0].copy()
    for end in range(1, len(masks) + 1):
        if end == len(masks) or end - begin == MOST_NUMBERS or (taken & masks[end]).any():
            yield taken if end - begin == 1 else _numbered(masks[begin:end])
            begin = end
            taken = masks[end].copy() if end < len(masks) else taken
        else:
            taken |= masks[end]


def _numbered(masks: np.ndarray) -> np.ndarray:
    label = np.zeros(masks.shape[1:], np.uint8)
    for number, mask in enumerate(masks, start=1):
        label[mask] = number
    return label


def _masks(label: np.ndarray) -> np.ndarray:
    """The objects of a layer, (M, H, W) bool."""
    return label[None] == np.arange(1, int(label.max()) + 1)[:, None, None]


def _picture(record: dict[str, Any], reduce: int = 1) -> np.ndarray:
    return read_picture(io.BytesIO(record["picture"]), reduce=reduce)


def _objects(record: dict[str, Any]) -> Objects:
    return Objects(
        np.concatenate([_masks(_read_png(layer)) for layer in record["masks"]]),
        tuple(map(int, record["numbers"])),
        tuple(text.decode() for text in record["categories"]),
    )


def _classes(record: dict[str, Any]) -> np.ndarray:
    return _read_png(record["label"])


def _png(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


def _read_png(data: bytes) -> np.ndarray:
    """(H, W) uint8; bits are 0 and 1."""
    return np.asarray(Image.open(io.BytesIO(data))).astype(np.uint8)
