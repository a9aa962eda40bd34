"""Any data set of the project, or a folder of one's own, to ArrayRecord files.

python -m convert.build_dataset dis5k-tr --source /data/hq --data-dir runs/built
python -m convert.build_dataset pairs --source my_pictures --data-dir runs/built
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import tyro

from stablesam_jax.commands import called
from stablesam_jax.data import built, coco
from stablesam_jax.data.class_maps import ClassMapFiles
from stablesam_jax.data.coco import CocoPictures
from stablesam_jax.data.datasets import NAMES, Reader, official_count, open_dataset
from stablesam_jax.data.readers import PairsFolder, Refused, folder_name
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.disk import sync, writing

REFUSED_FILE = "refused.txt"
AT_ONCE = 32  # pictures that are read while as many are written
SHARD = 2000  # records in a file
REPORT = 1000  # pictures between lines of progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Builds ArrayRecord files, which training and evaluation take as --data-dir."""

    name: Annotated[str, tyro.conf.Positional]
    """pairs (im/ and gt/), coco (images/ and annotations.json), or an official data set, as hqseg-44k or mess/cwfid."""
    source: pathlib.Path
    """Folder of the pairs or the COCO files; of an official data set, the one that its paths lie below."""
    data_dir: pathlib.Path
    """Folder to build in: the data set gets a folder of its own there."""


def open_parts(name: str, source: pathlib.Path, refused: Refused) -> tuple[str, list[Reader | PairsFolder]]:
    """The name of the data set that is built and its readers; what they cannot use goes to `refused`.

    Raises:
        InputError: an unknown name, or a source that is not of its form.
    """
    own = folder_name(source)
    if name == "pairs":
        return own, [PairsFolder(source, refused)]
    if name == "coco":
        return own, [CocoPictures(own, source / coco.PICTURES, source / coco.ANNOTATIONS, refused)]
    if name in NAMES:
        return name, [*open_dataset(name, source, refused)]
    raise InputError(f"{name}: no data set of this name; known are pairs, coco, {', '.join(NAMES)}.")


def build(name: str, source: pathlib.Path, data_dir: pathlib.Path) -> pathlib.Path:
    """Builds one data set and prints what was read and what was refused.

    Args:
        name: `pairs`, `coco` or one of `datasets.NAMES`.
        source: where the data are.
        data_dir: gets the built folder; it appears there whole or not at all.

    Returns:
        the built folder. Where it is already, it is kept as it is.

    Raises:
        InputError: the source is not of its form, nothing of it can be used, what is there was built of other data, or
            the disk objects.
    """
    refused: Refused = {}
    title, parts = open_parts(name, source, refused)
    # Of a folder of one's own its place, which another of the same name has not; not in words, for who gets the files.
    origin = name if name in NAMES else hashlib.sha256(str(source.resolve()).encode()).hexdigest()
    target = data_dir / re.sub(r"\W+", "_", title).lower()  # tfds finds names that are Python's
    with writing(target), _alone(target) as work:
        if target.exists():
            if not built.is_built(target):
                raise InputError(f"{target}: exists and is no built data set; remove it or give another --data-dir.")
            if built.origin(target) not in (None, origin):
                raise InputError(f"{target}: was built of other data; remove it or give another --data-dir.")
            print(f"kept: {target} (remove it to build anew)")
            return target
        made = work / target.name
        written = _write(made, title, parts, refused, origin)
        lines = [f"{name}: {reason}" for name, reason in sorted(refused.items())]
        (made / REFUSED_FILE).write_text("".join(f"{line}\n" for line in lines))
        for path in (*made.rglob("*"), made):
            sync(path)
        made.rename(target)
        sync(data_dir)
    released = f" of {count:,} in the release" if (count := official_count(name)) else ""
    for line in lines:
        print(f"refused: {line}")
    print(f"written: {target}, {written:,} pictures{released}; refused: {len(lines):,} ({target / REFUSED_FILE})")
    return target


def _write(
    folder: pathlib.Path, title: str, parts: Sequence[Reader | PairsFolder], refused: Refused, origin: str
) -> int:
    """Writes the records below `folder`; how many."""
    import tensorflow_datasets as tfds

    kind = built.CLASSES if isinstance(parts[0], ClassMapFiles) else built.OBJECTS
    names: list[str] = []

    class Info(tfds.core.DatasetInfo):
        """What tfds keeps beside the records."""

        def initialize_from_bucket(self) -> None:
            """No bucket has this data set: tfds would look there, and leave an empty folder among temporary files."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """The data set as tfds sees it."""

        name = folder.name
        VERSION = tfds.core.Version(built.VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            metadata = tfds.core.MetadataDict(kind=kind, name=title, names=names, origin=origin)
            if isinstance(parts[0], ClassMapFiles):
                metadata |= {"classes": parts[0].classes, "background": parts[0].background}
            return Info(builder=self, features=built.features(kind), metadata=metadata, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, Any]]]:
            return {built.SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[str, Any]]:
            for record in _records(parts, refused):
                names.append(record["name"])
                yield record["name"], record

        def download_and_prepare(self, **options: Any) -> None:
            """Writes in the order of the source.

            tfds's own method sorts its records first, in files that only TensorFlow can write once they exceed a GB.
            """
            pathlib.Path(self.data_dir).mkdir(parents=True)
            writer = tfds.core.SequentialWriter(self.info, max_examples_per_shard=SHARD, file_format="array_record")
            writer.initialize_splits([built.SPLIT])
            for examples in _chunks(self._split_generators(None)[built.SPLIT]):
                writer.add_examples({built.SPLIT: [example for _, example in examples]})
            writer.close_all()

    Builder(data_dir=folder.parent, file_format="array_record").download_and_prepare()
    if not names:
        raise InputError(f"{title}: none of its pictures can be used: " + "; ".join(list(refused.values())[:3]))
    return len(names)


def _records(parts: Sequence[Reader | PairsFolder], refused: Refused) -> Iterator[dict[str, Any]]:
    """The records of all pictures that can be used, in order; the others go to `refused`."""
    total, done = sum(map(len, parts)), 0
    with ThreadPoolExecutor() as pool:  # decoding releases Python's lock
        for part in parts:
            for start in range(0, len(part), AT_ONCE):
                indices = range(start, min(start + AT_ONCE, len(part)))
                for index, record in zip(indices, pool.map(functools.partial(_record, part), indices), strict=True):
                    if isinstance(record, InputError):
                        refused[part.names[index]] = str(record)
                    else:
                        yield record
                    done += 1
                    if done % REPORT == 0 or done == total:
                        print(f"read: {done:,} of {total:,} pictures", flush=True)


def _record(part: Reader | PairsFolder, index: int) -> dict[str, Any] | InputError:
    try:
        return built.encode(part[index], part.picture_file(index))
    except InputError as error:
        return error


def _chunks(items: Iterator[Any]) -> Iterator[list[Any]]:
    """Lists of `AT_ONCE`: tfds rewrites its json after each."""
    while chunk := list(itertools.islice(items, AT_ONCE)):
        yield chunk


@contextlib.contextmanager
def _alone(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder beside `target`, of this process alone while it lives; others that build the same wait.

    The kernel drops the lock of a process that was killed, and the next one empties what it has left.
    """
    work = target.with_name(f".{target.name}.tmp")
    while True:
        work.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(work, os.O_RDONLY)
        except FileNotFoundError:  # another process has just finished with it
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
    options = tyro.cli(Options, args=arguments, prog=called("build"))
    with exit_on_input_error():
        build(options.name, options.source, options.data_dir)


if __name__ == "__main__":
    main()
