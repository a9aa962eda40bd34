"""Masks for the boxes or points of many pictures, and which of them a person should look at.

python -m predict photos --boxes boxes.csv --output masks

A picture is done whole or not at all. Killed work is continued by the same command. Exit status 0: every picture is
done. 1: some could not be; all others are. 2: bad input, nothing was written.
"""

import dataclasses
import hashlib
import os
import pathlib
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import rich.progress
import tyro
from rich.console import Console

from eval.journal import JOURNAL, Journal
from predict.prompt_files import Request, Requests, read_boxes, read_coco_boxes, read_points
from predict.results import FAULTS, OBJECTS, Done, write_mask, write_overlay, write_review, write_tables
from stablesam_jax.build import load_model
from stablesam_jax.commands import called, command_line
from stablesam_jax.data.coco import PICTURES
from stablesam_jax.data.picture_index import PictureIndex
from stablesam_jax.errors import InputError, exit_on_input_error, shown
from stablesam_jax.files.compilation_cache import keep_compiled_programs
from stablesam_jax.files.locks import owned
from stablesam_jax.files.picture_file import read_picture
from stablesam_jax.params import digest
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.stable import JITTERS, StableMask, review_limit

DUE = ".tables-due"  # in the output: pictures are done that are not in the tables yet

Faults = dict[str, str]  # name of a picture in the file of prompts -> what is wrong with it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Predicts a mask with its stability for every object of a file, sorted for review. Give one of --boxes, --points
    and --coco."""

    pictures: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the pictures, which may be in subfolders."""
    boxes: pathlib.Path | None = None
    """CSV file with the columns file,x1,y1,x2,y2 and optionally id and label (the category); pixels."""
    points: pathlib.Path | None = None
    """CSV file with the columns file,x,y,label,object; label is 1 on the object, 0 beside it."""
    coco: pathlib.Path | None = None
    """COCO json, of which only the boxes are used."""
    output: pathlib.Path
    """Folder for masks, overlays and tables. It has to be new, or of the same command, which is then continued."""
    system: str = "stable_sam_nano"
    """Shipped model, checkpoint folder, or BASE+PLUGIN_FILE."""
    jitters: int = JITTERS
    """Number of slightly different prompts that the stability of a mask is measured with."""
    threshold: float | None = None
    """Masks of lower stability need review. Default: 0.92, with --points 0.98 (results/review.md)."""
    seed: int = 0
    """Seed of these prompts."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    keep_compiled_programs()
    with exit_on_input_error():
        options = tyro.cli(Options, args=command_line(arguments), prog=called("predict"))
        try:
            return predict(options)
        except KeyboardInterrupt:
            print("interrupted; run the same command to continue", file=sys.stderr)
            return 130


def predict(options: Options) -> int:
    """Predicts what is not done yet, and writes the tables of all that is done.

    Returns:
        the exit status.

    Raises:
        InputError: options or files are bad, the output is of other work, or it cannot be written.
    """
    kind, path, requests = _read(options)
    _check(options)
    if options.threshold is None:
        options = dataclasses.replace(options, threshold=review_limit(has_box=kind != "points"))
    folder = options.pictures.resolve()
    files, faults = _find(folder, kind, requests.pictures)
    if not files:
        raise InputError(f"{path}: none of its pictures can be used. The first: {next(iter(faults.values()))}")
    with owned(options.output):
        _check_output(options.output)
        sam, params = load_model(options.system)
        predictor = Predictor(sam, params)
        settings = {
            "system": options.system,
            "config": dataclasses.asdict(sam.config),
            "parameters": digest(params),
            kind: hashlib.sha256(path.read_bytes()).hexdigest(),
            **{name: getattr(options, name) for name in ("jitters", "threshold", "seed")},
        }
        journal = Journal(options.output, settings)
        journal.begin()
        done: list[Done] = []
        due = options.output / DUE
        for index, request in _progress(list(enumerate(requests.pictures))):
            if request.file not in files:
                continue
            name = files[request.file].relative_to(folder).as_posix()
            record = journal.get(options.system, name, index)
            try:
                picture, sha256 = _picture(files[request.file], request)
                if record is not None and record["sha256"] != sha256:
                    raise InputError(f"{name}: has changed since its masks were made; give another --output.")
                masks = None if record is not None else _segment(predictor, picture, request, options)
            except InputError as error:
                faults[request.file] = str(error)
                if record is not None and "size_hw" in record:  # its masks are kept, and so are its lines
                    done.append(_done(name, request, record))
                continue
            if masks is not None:
                facts = _write(options.output, name, picture, request, masks)
                due.touch()  # before the record, so that a run that ends here leaves it to the next
                record = {"sha256": sha256, "size_hw": picture.shape[:2], "objects": facts}
                record = journal.add(options.system, name, index, record)
            assert record is not None
            done.append(_done(name, request, {"size_hw": picture.shape[:2], **record}))
        if due.exists() or not (options.output / OBJECTS).exists():  # else someone may have written into them
            write_tables(options.output, done, requests.categories)
            due.unlink(missing_ok=True)
        without = {file: text for file, text in faults.items() if file not in {one.request.file for one in done}}
        write_review(options.output, done, requests.categories, without)
    _report(options, done, faults, journal.found)
    return 1 if faults else 0


def _done(name: str, request: Request, record: Mapping[str, Any]) -> Done:
    height, width = record["size_hw"]
    return Done(name=name, request=request, size_hw=(height, width), objects=record["objects"])


def _read(options: Options) -> tuple[str, pathlib.Path, Requests]:
    """The kind and path of the file of prompts, and what it asks for."""
    given = {kind: path for kind in ("boxes", "points", "coco") if (path := getattr(options, kind)) is not None}
    if len(given) != 1:
        both = " and ".join(f"--{kind}" for kind in given)
        raise InputError(f"{both or 'no prompts'}: give one of --boxes, --points and --coco.")
    ((kind, path),) = given.items()
    if kind != "coco":
        return kind, path, (read_boxes if kind == "boxes" else read_points)(path)
    requests, crowds = read_coco_boxes(path)
    if crowds:
        print(f"{path}: holds {crowds} crowds; they are left out.", file=sys.stderr)
    return kind, path, requests


def _check(options: Options) -> None:
    """Raises InputError for options that no work can be done with."""
    if not 0 <= (options.threshold or 0) <= 1 or options.jitters < 1 or options.seed < 0:
        raise InputError("--threshold is a share from 0 to 1, --jitters at least 1, --seed at least 0.")
    if not options.pictures.is_dir():
        raise InputError(f"{options.pictures}: is no folder; give the folder of the pictures.")
    if options.output.resolve().is_relative_to(options.pictures.resolve()):
        raise InputError(
            f"--output {options.output}: is inside the folder of pictures, where masks would be taken for pictures; "
            "give another folder."
        )


def _check_output(folder: pathlib.Path) -> None:
    """Raises InputError where there is something that is not of this command."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: is a file; give a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL).exists():
        raise InputError(f"--output {folder}: holds other files, and nothing is overwritten; give a new folder.")


def _find(folder: pathlib.Path, kind: str, requests: Sequence[Request]) -> tuple[Mapping[str, pathlib.Path], Faults]:
    """The file of each picture, and what is wrong with the others, both by the name in the file of prompts.

    A COCO json often has paths of another computer, which are found as in training. A CSV file must have the path in
    the folder: a picture of the same name elsewhere could be another one.
    """
    index = PictureIndex(folder, [folder / PICTURES])
    files: dict[str, pathlib.Path] = {}
    faults: Faults = {}
    names: dict[pathlib.Path, list[str]] = {}
    for request in requests:
        try:
            files[request.file] = index.find(request.file) if kind == "coco" else _in_folder(folder, request.file)
        except ValueError as error:
            faults[request.file] = f"{request.file}: {error}."
            continue
        names.setdefault(files[request.file], []).append(request.file)
    for file, several in names.items():
        for name in set(several) if len(several) > 1 else ():
            del files[name]
            both = f"is asked for as {' and '.join(several)}, both {file}; write one name"
            faults[name] = f"{name}: {both if len(set(several)) > 1 else 'is listed twice; list it once'}."
    return files, faults


def _in_folder(folder: pathlib.Path, said: str) -> pathlib.Path:
    """A file by its path in the folder.

    Raises:
        ValueError: it is not there; the message follows the name.
    """
    for form in (said, said.replace("\\", "/"), *(unicodedata.normalize(one, said) for one in ("NFC", "NFD"))):
        path = pathlib.Path(os.path.normpath(folder / form))
        if path.is_relative_to(folder) and os.path.isfile(path):
            return path
    raise ValueError(f"is missing in {folder}; write the path of the picture in that folder")


def _picture(file: pathlib.Path, request: Request) -> tuple[np.ndarray, str]:
    """A picture, (H, W, 3) uint8, upright, and the SHA-256 of its file."""
    picture = read_picture(file)
    height, width = picture.shape[:2]
    if request.size not in (None, (width, height)):
        raise InputError(
            f"{file}: is {width} x {height} pixels upright, and {request.size[0]} x {request.size[1]} in the json, "
            "whose boxes are then of another picture; make them equal."
        )
    with open(file, "rb") as opened:
        return picture, hashlib.file_digest(opened, "sha256").hexdigest()


def _segment(predictor: Predictor, picture: np.ndarray, request: Request, options: Options) -> list[StableMask]:
    encoded, threshold = predictor.encode(picture), options.threshold
    assert threshold is not None  # chosen by `predict`
    found = []
    for target in request.targets:
        prompt = target.prompt
        points, labels = (prompt.points, prompt.labels) if len(prompt.points) else (None, None)
        try:
            mask = predictor.predict_stable(
                points,
                labels,
                prompt.box,
                jitters=options.jitters,
                threshold=threshold,
                seed=options.seed,
                picture=encoded,
            )
        except InputError as error:
            raise InputError(f"{request.file}, object {target.name}: {error}") from None
        found.append(mask)
    return found


def _write(
    output: pathlib.Path, name: str, picture: np.ndarray, request: Request, masks: Sequence[StableMask]
) -> list[dict[str, Any]]:
    """Writes masks and overlays of a picture; returns what the tables need, as values that JSON can hold."""
    facts = []
    for place, (target, found) in enumerate(zip(request.targets, masks, strict=True), start=1):
        lengths = write_mask(output, name, place, found.mask)
        write_overlay(output, name, place, picture, target.prompt, found.mask)
        facts.append(
            {
                "segmentation": lengths,
                "stability": found.stability,
                "needs_review": found.needs_review,
                "predicted_iou": found.iou_prediction,
            }
        )
    return facts


def _progress(items: Sequence[Any]) -> Iterator[Any]:
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return iter(rich.progress.track(items, "predicting", console=console, transient=True, disable=hidden))


def _report(options: Options, done: Sequence[Done], faults: Mapping[str, str], found: int) -> None:
    for fault in faults.values():
        print(f"fault: {shown(fault)}", file=sys.stderr)
    objects = [facts for picture in done for facts in picture.objects]
    review = sum(facts["needs_review"] for facts in objects)
    before = f" ({found} of the pictures were done before)" if found else ""
    made = f"{_plural(len(done), 'picture')}, {_plural(len(objects), 'object')}"
    print(f"{made}, {review} of them need review{before}: {options.output}")
    if faults:
        print(f"{_plural(len(faults), 'picture')} could not be done: {options.output / FAULTS}", file=sys.stderr)


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    sys.exit(main())
