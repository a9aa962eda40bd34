"""What `--data-dir` may name: one's own folders, built data sets, and official layouts as NAME:DIR."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from stablesam_jax.commands import called
from stablesam_jax.data import class_maps, coco
from stablesam_jax.data.built import BuiltClassMaps, BuiltPictures, is_built, open_built
from stablesam_jax.data.class_maps import ClassMapFiles, ClassMaps
from stablesam_jax.data.coco import CocoPictures
from stablesam_jax.data.datasets import GROUPS, Reader, open_dataset
from stablesam_jax.data.readers import Joined, PairsFolder, Pictures, Refused, settle
from stablesam_jax.errors import InputError

Spec = str | os.PathLike[str]
Named = TypeVar("Named", CocoPictures, ClassMaps)

FORMS = (
    "give a folder with im/ (pictures) and gt/ (masks), one with images/ and annotations.json (COCO), "
    f"one that `{called('build')}` has written, or NAME:DIR, an official layout below DIR, as hqseg-44k:/data/hq"
)


def source_name(spec: Spec) -> str:
    """What a source is called by: NAME of NAME:DIR, else the folder's own name, links resolved."""
    official, folder = _parse(spec)
    return official or folder.name


def open_data(specs: Sequence[Spec]) -> Joined:
    """The pictures of several sources, one after the other.

    Raises:
        InputError: as `open_sources`.
    """
    return Joined(list(open_sources(specs).values()))


def open_sources(specs: Sequence[Spec]) -> dict[str, Pictures]:
    """Sources of labelled pictures by name.

    Args:
        specs: each a folder whose form is recognised by its content, or NAME:DIR. All files are checked as far as their
            header.

    Raises:
        InputError: one cannot be used, or two have one name, so that their pictures could not be told apart.
    """
    sources: dict[str, Pictures] = {}
    for spec in specs:
        name, parts = _open(spec)
        pictures: list[Pictures] = []
        for part in parts:
            if isinstance(part, ClassMapFiles | BuiltClassMaps):
                raise InputError(f"{os.fspath(spec)}: holds class maps, not objects; {FORMS}.")
            if not isinstance(part, BuiltPictures):
                part.check()
            pictures.append(part)
        if name in sources:
            raise InputError(_twice(name))
        sources[name] = pictures[0] if len(pictures) == 1 else Joined(pictures)
    return sources


def open_instances(specs: Sequence[Spec]) -> dict[str, CocoPictures]:
    """COCO jsons by name, with the pictures that have no object.

    Args:
        specs: each a folder with `images/` and `annotations.json`, coco-val2017:DIR, sginw/NAME:DIR, or sginw:DIR for
            all 25. All pictures are checked as far as their header.

    Raises:
        InputError: one line with all that cannot be used, hold no boxes, crowds and areas, or have one name.
    """
    return _each(specs, _instances)


def open_all_class_maps(specs: Sequence[Spec]) -> dict[str, ClassMaps]:
    """Class maps by name.

    Args:
        specs: each as `open_class_maps` takes it, or mess:DIR for all sets.

    Raises:
        InputError: one line with all that cannot be used or have one name.
    """
    return _each(specs, open_class_maps)


def _instances(spec: Spec) -> CocoPictures:
    part = _open(spec)[1][0]
    if not isinstance(part, CocoPictures):
        raise InputError(
            f"{os.fspath(spec)}: holds no COCO json, whose boxes, areas and crowds are needed; give a folder with "
            "images/ and annotations.json, coco-val2017:DIR, sginw/NAME:DIR, or sginw:DIR for all sets of it."
        )
    part.check()
    return part.with_empty_pictures()


def _each(specs: Sequence[Spec], open_one: Callable[[Spec], Named]) -> dict[str, Named]:
    """What each of the specs names; a group's name stands for all of its sets."""
    spread: list[Spec] = []
    for spec in specs:
        official, folder = _parse(spec)
        spread += [f"{name}:{folder}" for name in GROUPS[official]] if official in GROUPS else [spec]
    sources: dict[str, Named] = {}
    faults: Refused = {}
    for spec in spread:
        try:
            source = open_one(spec)
        except InputError as error:
            faults[os.fspath(spec)] = str(error)
            continue
        if source.name in sources:
            faults[source.name] = _twice(source.name)
        sources[source.name] = source
    settle(faults, None)
    return sources


def open_class_maps(spec: Spec) -> ClassMaps:
    """Pictures with a class for every pixel.

    Args:
        spec: a folder with `im/`, `gt/` and `classes.json`, a built one, or mess/NAME:DIR.

    Raises:
        InputError: it cannot be used, or holds objects, not classes.
    """
    official, folder = _parse(spec)
    if official or is_built(folder):
        (part, *_) = _open(spec)[1]
    else:
        part = class_maps.open_folder(folder)
    if isinstance(part, ClassMapFiles):
        part.check()
    elif not isinstance(part, BuiltClassMaps):
        raise InputError(
            f"{os.fspath(spec)}: holds objects, not class maps; give a folder with im/, gt/ and classes.json, "
            f"one that `{called('build')}` has written of such, or mess/NAME:DIR."
        )
    return part


def _twice(name: str) -> str:
    return f"{name}: two data folders have this name; rename one, results are kept by that name."


def _parse(spec: Spec) -> tuple[str, pathlib.Path]:
    """NAME, or nothing, and the folder; the same folder however it is spelled."""
    path = pathlib.Path(spec)
    name, colon, folder = os.fspath(spec).partition(":")
    return (name, pathlib.Path(folder)) if colon and not path.exists() else ("", path.resolve())


def _open(spec: Spec) -> tuple[str, Sequence[Reader | PairsFolder | BuiltPictures | BuiltClassMaps]]:
    """The name of a source and its parts."""
    official, folder = _parse(spec)
    if official:
        return official, open_dataset(official, folder)
    if is_built(folder):
        built = open_built(folder)
        return built.name, [built]
    if (folder / coco.ANNOTATIONS).is_file():
        return folder.name, [CocoPictures(folder.name, folder / coco.PICTURES, folder / coco.ANNOTATIONS)]
    if folder.is_dir() and not any((folder / part).is_dir() for part in ("im", "gt")):
        raise InputError(f"{folder}: holds no data that is known; {FORMS}.")
    return folder.name, [PairsFolder(folder)]
