"""Converts any data set of the project, or a folder of the user, to ArrayRecord files.

python -m convert.build_dataset dis5k-tr --source /data/hq --data-dir runs/built
python -m convert.build_dataset pairs --source my_pictures --data-dir runs/built
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import tyro

from stablesam_jax.commands import called, check_choice, command_line
from stablesam_jax.data import built
from stablesam_jax.data.class_maps import ClassMapFiles
from stablesam_jax.data.datasets import NAMES, official_count
from stablesam_jax.data.findings import Findings, cannot_be_read
from stablesam_jax.data.forms import FORMS
from stablesam_jax.data.groups import GROUPS_FILE
from stablesam_jax.data.readers import Reader, on_all_cores
from stablesam_jax.data.sources import open_readers
from stablesam_jax.errors import InputError, exit_on_input_error, shown
from stablesam_jax.files.disk import sync, writing

AUTO = "auto"
OWN = tuple(form.name for form in FORMS if form.name != "built")
REFUSED_FILE = "refused.txt"
AT_ONCE = 32  # pictures that are decoded, and records that are written, at a time
SHARD = 2000  # records in a file
REPORT = 1000  # pictures between lines of progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Builds ArrayRecord files for the --data-dir of training and evaluation."""

    name: Annotated[str, tyro.conf.Positional]
    """auto, which recognises the format of a folder; a format (pairs, coco, labelme, sa-1b, yolo, beside, splits); or
    an official data set, such as hqseg-44k or mess/cwfid. See docs/data.md."""
    source: pathlib.Path
    """Folder of pictures and masks, or a COCO json; of an official data set, the folder that contains its paths."""
    data_dir: pathlib.Path
    """Folder to build in; the data set gets a subfolder."""


def open_source(name: str, source: pathlib.Path, findings: Findings) -> tuple[str, Sequence[Reader]]:
    """Opens the source: the name of the built data set and the readers. Unusable files go to `findings`.

    Raises:
        InputError: an unknown name, or a source that does not have its form.
    """
    check_choice(name, (AUTO, *OWN, *NAMES), "data set")
    if name in NAMES:
        title, readers = open_readers(f"{name}:{source}", findings)
    else:
        title, readers = open_readers(source, findings, form=None if name == AUTO else name)
    if isinstance(readers[0], built.BuiltPictures | built.BuiltClassMaps):
        raise InputError(f"{source}: is built already; give it to training as it is.")
    return title, readers


def build(name: str, source: pathlib.Path, data_dir: pathlib.Path) -> pathlib.Path:
    """Builds one data set and prints counts and refused files.

    Args:
        name: `AUTO`, one of `OWN` or one of `datasets.NAMES`.
        source: folder or json of the data.
        data_dir: gets the built folder, atomically.

    Returns:
        the built folder. If it exists and was built of the same pictures and masks, it is kept.

    Raises:
        InputError: the source does not have its form, none of it can be used, the existing folder was built of other
            data, or the disk fails.
    """
    findings: Findings = []
    title, readers = open_source(name, source, findings)
    # A user's folder is identified by its path, since names may repeat; hashed, because the result may be passed on.
    origin = name if name in NAMES else hashlib.sha256(os.fsencode(source.resolve())).hexdigest()
    facts = {"origin": origin, "sources": digest(source, readers)}
    target = data_dir / re.sub(r"\W+", "_", title).lower()  # tfds requires a Python identifier
    with writing(target), _alone(target) as work:
        if target.exists():
            _check_same(target, facts)
            print(f"kept: {target} (remove it to build again)")
            return target
        made = work / target.name
        written = _write(made, title, readers, findings, facts)
        left_out = [finding for finding in findings if finding.severity == "fault" or finding.kind == "no object"]
        lines = sorted(f"{finding.picture}: {finding.line}" for finding in left_out)
        (made / REFUSED_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if groups := _groups(title, readers):
            (made / GROUPS_FILE).write_text(json.dumps(groups, indent=1) + "\n")
        for path in (*made.rglob("*"), made):
            sync(path)
        made.rename(target)
        sync(data_dir)
    released = f" of {count:,} in the release" if (count := official_count(name)) else ""
    for finding in findings:
        if finding not in left_out:
            print(f"hint: {finding.line}")
    for line in lines:
        print(f"refused: {line}")
    print(f"written: {target}, {written:,} pictures{released}; refused: {len(lines):,} ({target / REFUSED_FILE})")
    return target


def digest(source: pathlib.Path, readers: Sequence[Reader]) -> str:
    """SHA-256 over the relative names and the contents of all files of a source."""
    groups = {*source.glob(GROUPS_FILE), *source.glob(f"*/{GROUPS_FILE}")}  # of parts, such as train/
    files = sorted({file for reader in readers for file in reader.files()} | groups)
    sha = hashlib.sha256()
    for file, content in zip(files, on_all_cores(_file_digest, files), strict=True):
        sha.update(os.fsencode(os.path.relpath(file, source)) + b"\0" + content)
    return sha.hexdigest()


def _groups(title: str, readers: Sequence[Reader]) -> dict[str, list[str]]:
    """The groups of all parts, in the form of groups.json."""
    found: dict[str, list[str]] = {}
    for picture, group in {name: group for reader in readers for name, group in reader.groups.items()}.items():
        own_name = group.removeprefix(f"{title}/").removesuffix("/*")
        found.setdefault(own_name, []).append(picture.removeprefix(f"{title}/"))
    return found


def _file_digest(file: pathlib.Path) -> bytes:
    """SHA-256 of a file; empty if it cannot be read."""
    try:
        if not file.is_file():  # opening a pipe would block
            return b""
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        return b""


def _check_same(target: pathlib.Path, facts: Mapping[str, str]) -> None:
    """Raises an InputError if the existing folder was not built of the same data."""
    if not built.is_built(target):
        raise InputError(f"{target}: exists and is not a built data set; remove it or give another --data-dir.")
    before = built.facts(target)
    told = "sources" if "sources" in before else "origin"  # older versions wrote "origin" only
    if before.get(told, facts[told]) != facts[told]:
        same_place = before.get("origin") == facts["origin"]
        what = "before its pictures, masks or annotations changed" if same_place else "of other data"
        raise InputError(f"{target}: was built {what}; remove it to build again, or give another --data-dir.")


def _write(
    folder: pathlib.Path,
    title: str,
    readers: Sequence[Reader],
    findings: Findings,
    facts: Mapping[str, str],
) -> int:
    """Writes the records below `folder` and returns their number."""
    import tensorflow_datasets as tfds

    kind = built.CLASSES if isinstance(readers[0], ClassMapFiles) else built.OBJECTS
    names: list[str] = []

    class Info(tfds.core.DatasetInfo):
        """Metadata that tfds writes beside the records."""

        def initialize_from_bucket(self) -> None:
            """Does nothing: tfds would search a bucket on the network and leave an empty temporary folder."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """The data set for tfds."""

        name = folder.name
        VERSION = tfds.core.Version(built.VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            metadata = tfds.core.MetadataDict(kind=kind, name=title, names=names, **facts)
            if isinstance(readers[0], ClassMapFiles):
                metadata |= {"classes": readers[0].classes, "background": readers[0].background}
            return Info(builder=self, features=built.features(kind), metadata=metadata, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, Any]]]:
            return {built.SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[str, Any]]:
            for record in _records(readers, findings):
                names.append(record["name"])
                yield record["name"], record

        def download_and_prepare(self, **options: Any) -> None:
            """Writes records in the order of the source.

            tfds's own method first sorts them in files that only TensorFlow can write if they exceed 1 GB.
            """
            pathlib.Path(self.data_dir).mkdir(parents=True)
            writer = tfds.core.SequentialWriter(self.info, max_examples_per_shard=SHARD, file_format="array_record")
            writer.initialize_splits([built.SPLIT])
            for examples in _chunks(self._split_generators(None)[built.SPLIT]):
                writer.add_examples({built.SPLIT: [example for _, example in examples]})
            writer.close_all()

    Builder(data_dir=folder.parent, file_format="array_record").download_and_prepare()
    if not names:
        reasons = (
            "; ".join(finding.line.rstrip(".") for finding in findings[:3]) or "it holds no picture with an object"
        )
        raise InputError(f"{title}: none of its pictures can be used: {reasons}.")
    return len(names)


def _records(readers: Sequence[Reader], findings: Findings) -> Iterator[dict[str, Any]]:
    """Yields the records of all usable pictures in order; `findings` gets the faults of the others, and hints."""
    total, done = sum(map(len, readers)), 0
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        for reader in readers:
            for start in range(0, len(reader), AT_ONCE):
                indices = range(start, min(start + AT_ONCE, len(reader)))
                for record, found in pool.map(functools.partial(_record, reader), indices):
                    findings += found
                    if record is not None:
                        yield record
                    done += 1
                    if done % REPORT == 0 or done == total:
                        print(f"read: {done:,} of {total:,} pictures", flush=True)


def _record(reader: Reader, index: int) -> tuple[dict[str, Any] | None, Findings]:
    name, file, label = reader.names[index], reader.picture_file(index), reader.label_file(index)
    try:
        return built.encode(reader[index], file), reader.look(index)
    except InputError as error:
        kind, where = ("mask", label) if str(error).startswith(shown(label)) else ("picture", file)
        return None, [cannot_be_read(kind, reader.name, name, where, error)]


def _chunks(items: Iterator[Any]) -> Iterator[list[Any]]:
    """Splits items into lists of `AT_ONCE`, because tfds rewrites its json after each list."""
    while chunk := list(itertools.islice(items, AT_ONCE)):
        yield chunk


@contextlib.contextmanager
def _alone(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Creates an empty folder beside `target` and locks it; other processes that build the same data wait.

    The operating system releases the lock of a killed process, and the next process empties its folder.
    """
    work = target.with_name(f".{target.name}.tmp")
    while True:
        work.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(work, os.O_RDONLY)
        except FileNotFoundError:  # another process has just renamed it
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that builds {target}", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        if work.exists() and os.path.samestat(os.fstat(handle), work.stat()):
            break
        os.close(handle)
    try:
        for leftover in work.iterdir():
            shutil.rmtree(leftover)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(handle)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; bad input exits with status 2."""
    with exit_on_input_error():
        options = tyro.cli(Options, args=command_line(arguments), prog=called("build"))
        build(options.name, options.source, options.data_dir)


if __name__ == "__main__":
    main()
