"""Opens what `--data-dir` may name: folders of the user, built data sets, COCO jsons, official layouts as NAME:DIR.

Training, evaluation, building and checking all open data here.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from stablesam_jax.commands import called
from stablesam_jax.data import class_maps, coco, groups
from stablesam_jax.data.built import BuiltClassMaps, is_built
from stablesam_jax.data.class_maps import ClassMapFiles, ClassMaps
from stablesam_jax.data.coco import CocoPictures
from stablesam_jax.data.datasets import GROUPS, open_dataset
from stablesam_jax.data.findings import Finding, Findings, refuse, tell
from stablesam_jax.data.forms import FORMS, open_form, recognise
from stablesam_jax.data.json_file import COCO, kind_of
from stablesam_jax.data.readers import GT, IM, Joined, Pictures, Reader, folder_name, list_files
from stablesam_jax.errors import InputError, shown
from stablesam_jax.files.picture_file import SUFFIXES, read_picture

Spec = str | os.PathLike[str]
Named = TypeVar("Named", CocoPictures, ClassMaps)

ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})  # as annotation tools export
KNOWN = (
    f"give a folder with {'; or '.join(form.holds for form in FORMS)}; or a COCO json; or NAME:DIR, an official layout "
    "below DIR, as hqseg-44k:/data/hq"
)


def source_name(spec: Spec) -> str:
    """The name of a source: NAME of NAME:DIR, else that of the folder, with links resolved, or of the json."""
    official, path = _parse(spec)
    return official or (shown(path.stem) if path.is_file() else folder_name(path))


def open_data(specs: Sequence[Spec], findings: Findings | None = None, *, check: bool = True) -> Joined:
    """The concatenated pictures of several sources; arguments and errors as of `open_sources`."""
    return Joined(list(open_sources(specs, findings, check=check).values()))


def open_sources(specs: Sequence[Spec], findings: Findings | None = None, *, check: bool = True) -> dict[str, Pictures]:
    """Opens sources of labelled pictures, by name. The headers of all files are read.

    Args:
        specs: each a folder whose form is recognised by its content, a COCO json, or NAME:DIR.
        findings: gets unusable files, and the others are opened. None: unusable files raise, and hints are warnings.
        check: whether faults of headers count. A caller that reads all files before use needs the hints alone.

    Raises:
        InputError: a source cannot be used, or two have the same name, so that names of pictures would be ambiguous.
    """
    sources: dict[str, Pictures] = {}
    found: Findings = []
    for spec in specs:
        name, readers = open_readers(spec, found)
        for reader in readers:
            if isinstance(reader, ClassMapFiles | BuiltClassMaps):
                raise InputError(f"{os.fspath(spec)}: holds class maps, not objects; {KNOWN}.")
            headers: Findings = []
            reader.check(headers)
            found += [finding for finding in headers if check or finding.severity == "hint"]
        if name in sources:
            raise InputError(_twice(name))
        sources[name] = readers[0] if len(readers) == 1 else Joined(readers)
    if findings is None:
        tell(found)
    else:
        findings += found
    for spec, source in zip(specs, sources.values(), strict=True):
        if not len(source):
            raise InputError(f"{os.fspath(spec)}: holds no picture with an object.")
    return sources


def open_readers(spec: Spec, findings: Findings, *, form: str | None = None) -> tuple[str, Sequence[Reader]]:
    """Opens a source: its name and the readers of its parts.

    Args:
        spec: a folder, a COCO json or NAME:DIR.
        findings: gets unusable files, and hints.
        form: name of the form that a folder must have; None: any that recognises it.

    Raises:
        InputError: it does not exist, has no known form, or cannot be read.
    """
    official, path = _parse(spec)
    try:
        if official:
            return official, open_dataset(official, path, findings)
        name = source_name(spec)
        if path.is_file():
            if path.suffix.lower() in ARCHIVES:
                raise InputError(f"{path}: is an archive; unpack it, and give the folder.")
            if kind_of(path) != COCO:
                raise InputError(f"{path}: is no COCO json; {KNOWN}.")
            return name, [CocoPictures(name, coco.root_of(path), path, findings)]
        found = recognise(path, form)
        if found is None and form is not None and (other := recognise(path)) is not None:
            raise InputError(f"{path}: is a folder with {other.holds}; give {other.name} instead of {form}.")
        if found is None:
            raise InputError(_unknown(path))
        readers = open_form(found, path, name, findings)
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be read ({error.strerror}).") from None
    _check_apart(readers)
    return readers[0].name if found.name == "built" else name, readers


@dataclasses.dataclass(frozen=True)
class Found:
    """A source that `find` has found."""

    path: pathlib.Path
    readers: Sequence[Reader]  # empty for pictures without a known form
    pictures: list[tuple[pathlib.Path, Callable[[], np.ndarray]]]  # all, see `Reader.every_picture`


def find(spec: Spec, findings: Findings) -> list[Found]:
    """Finds every source in a folder and its subfolders, in the order of paths; or opens the json or NAME:DIR.

    Args:
        spec: as of `open_readers`, or a folder that contains such folders.
        findings: gets unusable files, and hints.

    Raises:
        InputError: it does not exist, cannot be read, or holds no picture.
    """
    official, path = _parse(spec)
    if official or not path.is_dir():
        _, readers = open_readers(spec, findings)
        return [_found(pathlib.Path(spec) if official else path, readers)]
    try:
        found = list(_walk(path, frozenset(), findings))
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be listed ({error.strerror}); check its rights.") from None
    if not found:
        raise InputError(f"{path}: holds no picture ({', '.join(sorted(SUFFIXES))}).")
    return found


def _walk(path: pathlib.Path, above: frozenset[str], findings: Findings) -> Iterator[Found]:
    """Sources in a folder. `above` has the real paths of its parents, because a symbolic link may form a loop."""
    form = recognise(path)
    if form is not None and form.name != "splits":
        readers = open_form(form, path, folder_name(path), findings)
        _check_apart(readers)
        yield _found(path, readers)
        return
    files = [file for of_stem in list_files(path, SUFFIXES).values() for file in of_stem]
    if files:
        text = f"holds {len(files)} pictures, but no im/ with gt/ and no masks or annotations that are known."
        findings.append(Finding("not checked", folder_name(path), folder_name(path), path, text))
        yield Found(path, (), [(file, functools.partial(read_picture, file)) for file in files])
    above |= {os.path.realpath(path)}
    for child in sorted(path.iterdir()):
        if child.is_dir() and not child.name.startswith(".") and os.path.realpath(child) not in above:
            yield from _walk(child, above, findings)


def _found(path: pathlib.Path, readers: Sequence[Reader]) -> Found:
    return Found(path, readers, [picture for reader in readers for picture in reader.every_picture()])


def open_instances(specs: Sequence[Spec]) -> dict[str, CocoPictures]:
    """Opens COCO jsons by name, including pictures without objects.

    Args:
        specs: each a folder with one COCO json, the json itself, coco-val2017:DIR, sginw/NAME:DIR, or sginw:DIR for all
            25. The headers of all pictures are read.

    Raises:
        InputError: one line with all specs that cannot be used, lack boxes, crowds and areas, or have the same name.
    """
    return _each(specs, _instances)


def open_all_class_maps(specs: Sequence[Spec]) -> dict[str, ClassMaps]:
    """Opens class maps by name.

    Args:
        specs: each as of `open_class_maps`, or mess:DIR for all sets.

    Raises:
        InputError: one line with all specs that cannot be used or have the same name.
    """
    return _each(specs, open_class_maps)


def _instances(spec: Spec) -> CocoPictures:
    found: Findings = []
    _, readers = open_readers(spec, found)
    (*more, reader) = readers
    if not isinstance(reader, CocoPictures) or more:
        raise InputError(
            f"{os.fspath(spec)}: holds {'several COCO jsons' if more else 'no COCO json'}, whose boxes, areas and "
            "crowds are needed; give a folder with one, the json itself, coco-val2017:DIR, sginw/NAME:DIR, or "
            "sginw:DIR for all sets of it."
        )
    every = reader.with_empty_pictures()
    every.check(found)
    every.check_for_detection(found)
    tell(finding for finding in found if finding.kind not in ("no object", "crowds"))  # average precision counts both
    if not len(reader):
        raise InputError(f"{os.fspath(spec)}: holds no picture with an object.")
    return every


def _each(specs: Sequence[Spec], open_one: Callable[[Spec], Named]) -> dict[str, Named]:
    """Opens each spec; the name of a group stands for all its sets."""
    spread: list[Spec] = []
    for spec in specs:
        official, folder = _parse(spec)
        spread += [f"{name}:{folder}" for name in GROUPS[official]] if official in GROUPS else [spec]
    sources: dict[str, Named] = {}
    faults: dict[str, str] = {}
    for spec in spread:
        try:
            source = open_one(spec)
        except InputError as error:
            faults[os.fspath(spec)] = str(error)
            continue
        if source.name in sources:
            faults[source.name] = _twice(source.name)
        sources[source.name] = source
    refuse(list(faults.values()))
    return sources


def open_class_maps(spec: Spec) -> ClassMaps:
    """Opens pictures with a class for every pixel.

    Args:
        spec: a folder with `im/`, `gt/` and `classes.json`, a built one, or mess/NAME:DIR.

    Raises:
        InputError: it cannot be used, or holds objects, not classes.
    """
    official, folder = _parse(spec)
    found: Findings = []
    reader: Reader
    if official or is_built(folder):
        _, (reader, *_) = open_readers(spec, found)
    else:
        reader = class_maps.open_folder(folder, found)
        groups.assign([reader], folder, reader.name, found)
    if not isinstance(reader, ClassMapFiles | BuiltClassMaps):
        raise InputError(
            f"{os.fspath(spec)}: holds objects, not class maps; give a folder with im/, gt/ and classes.json, "
            f"one that `{called('build')}` has written of such, or mess/NAME:DIR."
        )
    reader.check(found)
    tell(found)
    return reader


def _twice(name: str) -> str:
    return f"{name}: two data folders have this name; rename one, results are kept by that name."


def _check_apart(readers: Sequence[Reader]) -> None:
    """Raises an InputError if two readers have the same picture, since each may have only some of its objects."""
    if len(readers) < 2:
        return
    place: dict[pathlib.Path, pathlib.Path] = {}
    for reader in readers:
        for index in range(len(reader)):
            other = place.setdefault(reader.picture_file(index), reader.label_file(index))
            if other != reader.label_file(index):
                raise InputError(
                    f"{other} and {reader.label_file(index)} are both labels of "
                    f"{reader.picture_file(index).name}; give one of these files as the data."
                )


def _unknown(path: pathlib.Path) -> str:
    """The message for a folder that cannot be opened."""
    if not path.is_dir():
        return f"{path}: no such folder; give the folder of the pictures and their masks."
    if not any(path.iterdir()):
        return f"{path}: is empty; give the folder of the pictures and their masks."
    there = [part for part in (IM, GT) if (path / part).is_dir()]
    if there:
        (missing,) = {IM, GT} - set(there)
        return f"{path}: holds no {missing}/; pictures go to im/NAME.jpg, their masks to gt/NAME.png."
    return f"{path}: holds no data that is known; {KNOWN}."


def _parse(spec: Spec) -> tuple[str, pathlib.Path]:
    """NAME, or "", and the normalised path."""
    name, colon, folder = os.fspath(spec).partition(":")
    if colon and not os.path.exists(spec):
        return name, pathlib.Path(folder)
    return "", pathlib.Path(os.path.realpath(spec))
