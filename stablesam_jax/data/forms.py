"""The forms of data folders, recognised by their content. A form is a reader and a row of `FORMS`."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence

from stablesam_jax.commands import called
from stablesam_jax.data import coco, groups, labelme, sa1b, yolo
from stablesam_jax.data.annotated import AnnotatedFolder, Parse
from stablesam_jax.data.built import is_built, open_built
from stablesam_jax.data.coco import CocoPictures
from stablesam_jax.data.findings import Finding, Findings
from stablesam_jax.data.json_file import LABELME, SA1B, kind_of
from stablesam_jax.data.readers import GT, IM, Beside, PairsFolder, Reader, list_files
from stablesam_jax.data.user_study import UserStudy, is_user_study
from stablesam_jax.errors import shown
from stablesam_jax.files.picture_file import SUFFIXES

JSONS_IN = (".", "annotations", "labels", "json", "jsons")  # folders that may have a json for each picture
LOOKED_AT = 20  # jsons of a folder that are parsed to recognise the kind of all
SPLITS = ("train", "training", "valid", "val", "validation", "test", "testing")

Name = str  # of the set


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of folders."""

    name: str  # for the command `build`
    holds: str  # description for messages, after "a folder with"
    recognises: Callable[[pathlib.Path], bool]
    open: Callable[[pathlib.Path, Name, Findings], Sequence[Reader]]


def _built(folder: pathlib.Path, name: Name, findings: Findings) -> Sequence[Reader]:
    return [open_built(folder)]


def _coco(folder: pathlib.Path, name: Name, findings: Findings) -> Sequence[Reader]:
    files = coco.jsons(folder)
    names = [name if len(files) == 1 else f"{name}/{shown(file.stem)}" for file in files]
    return [CocoPictures(own, folder, file, findings) for own, file in zip(names, files, strict=True)]


def _are_pairs(folder: pathlib.Path) -> bool:
    return (folder / IM).is_dir() and (folder / GT).is_dir()


def _are_coco(folder: pathlib.Path) -> bool:
    return bool(coco.jsons(folder))


def _pairs(folder: pathlib.Path, name: Name, findings: Findings) -> Sequence[Reader]:
    return [PairsFolder(folder, findings, name=name)]


def _beside(folder: pathlib.Path, name: Name, findings: Findings) -> Sequence[Reader]:
    return [Beside(folder, findings, name=name)]


def _user_study(folder: pathlib.Path, name: Name, findings: Findings) -> Sequence[Reader]:
    return [UserStudy(folder, findings, name=name)]


def _are_beside(folder: pathlib.Path) -> bool:
    return not list_files(folder, {".png"}).keys().isdisjoint(list_files(folder, SUFFIXES - {".png"}))


def _jsons_in(folder: pathlib.Path, kind: str) -> pathlib.Path | None:
    """The folder that has a json of a kind for each picture, or None."""
    for place in (folder / part for part in JSONS_IN):
        files = (
            [file for of_stem in list_files(place, {".json"}).values() for file in of_stem] if place.is_dir() else []
        )
        if any(kind_of(file) == kind for file in itertools.islice(files, LOOKED_AT)):
            return place
    return None


def _one_json_each(kind: str, parse: Parse) -> Form:
    """A form with a json for each picture, in the same folder or in one of `JSONS_IN`."""

    def open_folder(folder: pathlib.Path, name: Name, findings: Findings) -> Sequence[Reader]:
        place = _jsons_in(folder, kind)
        assert place is not None
        return [AnnotatedFolder(name, folder, place, ".json", parse, findings)]

    return Form(
        kind, f"a json of {kind} for each picture", lambda folder: _jsons_in(folder, kind) is not None, open_folder
    )


def _are_yolo(folder: pathlib.Path) -> bool:
    if (folder / yolo.IMAGES).is_dir() and (folder / yolo.LABELS).is_dir():
        return bool(list_files(folder / yolo.LABELS, {".txt"}, within=True))
    texts = list_files(folder, {".txt"})
    files = [texts[stem][0] for stem in list_files(folder, SUFFIXES) if stem in texts]
    return any(map(_is_yolo_text, files[:LOOKED_AT]))


def _is_yolo_text(file: pathlib.Path) -> bool:
    try:
        drawing = yolo.parse(file, (1, 1), classes={})
    except ValueError:
        return False
    return bool(drawing.objects or drawing.left_out)


def _yolo(folder: pathlib.Path, name: Name, findings: Findings) -> Sequence[Reader]:
    apart = (folder / yolo.IMAGES).is_dir() and (folder / yolo.LABELS).is_dir()
    places = (folder / yolo.IMAGES, folder / yolo.LABELS) if apart else (folder, folder)
    parse = functools.partial(yolo.parse, classes=yolo.read_classes(folder), keypoints=yolo.has_keypoints(folder))
    return [AnnotatedFolder(name, *places, ".txt", parse, findings)]


def _splits(folder: pathlib.Path) -> list[pathlib.Path]:
    """The subfolders for training, validation and test."""
    if not folder.is_dir():
        return []
    return [child for child in sorted(folder.iterdir()) if child.name.lower() in SPLITS and child.is_dir()]


def _are_splits(folder: pathlib.Path) -> bool:
    return any(recognise(part) for part in _splits(folder))


def _open_splits(folder: pathlib.Path, name: Name, findings: Findings) -> Sequence[Reader]:
    forms = {part: form for part in _splits(folder) if (form := recognise(part)) is not None}
    if len(forms) > 1:
        text = (
            f"{', '.join(part.name for part in forms)} are taken together; give one of them to keep the others apart."
        )
        findings.append(Finding("parts", name, name, folder, text))
    return [reader for part, form in forms.items() for reader in open_form(form, part, f"{name}/{part.name}", findings)]


def open_form(form: Form, folder: pathlib.Path, name: Name, findings: Findings) -> Sequence[Reader]:
    """Opens a folder by the form that recognises it, with its groups; a built set has a name of its own."""
    readers = form.open(folder, name, findings)
    groups.assign(readers, folder, readers[0].name if form.name == "built" else name, findings)
    return readers


FORMS = (  # the first that recognises a folder opens it
    Form("pairs", "im/ (pictures) and gt/ (masks)", _are_pairs, _pairs),
    Form("coco", "a COCO json and its pictures, as Label Studio, CVAT and Roboflow export", _are_coco, _coco),
    Form("breps", "images/, masks/ and user_masks/ of BREPS's user study", is_user_study, _user_study),
    Form("built", f"what `{called('build')}` has written", is_built, _built),
    _one_json_each(LABELME, labelme.parse),
    _one_json_each(SA1B, sa1b.parse),
    Form("yolo", "images/ and labels/ of YOLO's segmentation", _are_yolo, _yolo),
    Form("beside", "masks NAME.png beside NAME.jpg", _are_beside, _beside),
    Form("splits", "such folders as train/, valid/ and test/", _are_splits, _open_splits),
)


def recognise(folder: pathlib.Path, name: str | None = None) -> Form | None:
    """Recognises the form of a folder; None if it has none of `FORMS`.

    Args:
        folder: may be missing.
        name: of the only form to try; None: all.

    Raises:
        InputError: the folder exists and cannot be listed.
    """
    meant = [form for form in FORMS if name in (None, form.name)]
    return next((form for form in meant if form.recognises(folder)), None) if folder.is_dir() else None
