"""Chooses the pictures to train on and to hold out; all of them are read before the first step."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from stablesam_jax import parallel
from stablesam_jax.commands import called
from stablesam_jax.data import doctor
from stablesam_jax.data.collage import Collage
from stablesam_jax.data.findings import KINDS, Findings, tell
from stablesam_jax.data.groups import group_of
from stablesam_jax.data.readers import Pictures, Selection
from stablesam_jax.data.sources import open_data
from stablesam_jax.errors import InputError
from train.presets import TrainConfig

EMBEDDED_SCENES = 120  # number of scenes in a run without data folders
SHOWN = 5  # most names in one message

PARTS = ("training", "held_out", "unused")
Record = dict[str, Any]  # contents of a run's pictures.json, see `Chosen.record`


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The pictures of a run."""

    training: Pictures
    held_out: Pictures
    identity: str  # of all pictures that can be used, from their content: not from the path or the name of a folder
    record: Record
    """{"training": {name: SHA-256}, "held_out": {name: SHA-256}, "unused": {name: SHA-256}, "skipped": {name: why},
    "files": {name: signature}}: `unused` are beyond --limit. A run that continues takes the same pictures under the
    same names from it, and does not read those again whose files have the same signature."""


def read_record(path: pathlib.Path) -> Record | None:
    """Reads the pictures.json of a run; None if it has none.

    Raises:
        InputError: it is damaged.
    """
    try:
        record = json.loads(path.read_text())
        record = {"files": {}} | record  # runs of earlier versions have none
        return {part: dict(record[part]) for part in (*PARTS, "skipped", "files")}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path}: damaged, not the pictures of a run; give another --output, or --fresh.") from None


def choose(config: TrainConfig, before: Record | None = None) -> Chosen:
    """Opens the data of a run, reads every picture with its masks, and holds some out.

    Args:
        config: of the run.
        before: the record of the run that is continued.

    Raises:
        InputError: pictures cannot be used and --skip-bad is not given, or they differ from those of the run.
    """
    if not config.data_dir:
        training, held_out = split(config)
        names = hashlib.sha256("\n".join(training.names).encode()).hexdigest()
        return Chosen(training, held_out, f"{len(training)}, names {names[:16]}", {})
    found: Findings = []
    source = open_data(config.data_dir, found, check=False)  # all are read below
    tell(finding for finding in found if not KINDS[finding.kind].stops)
    skipped: dict[str, str] = {} if before is None else before["skipped"]
    candidates = [index for index in range(len(source)) if source.names[index] not in skipped]
    signatures = {index: source.signature(index) for index in candidates}
    readings = _remembered(source, signatures, before)
    readings |= _read(source, [index for index in candidates if index not in readings])
    faults = {finding.picture: finding.line for finding in found if KINDS[finding.kind].stops}
    faults = {name: reason for name, reason in faults.items() if name not in skipped}
    faults |= {source.names[index]: reading.fault for index, reading in readings.items() if reading.fault is not None}
    if faults and not config.skip_bad:
        raise InputError(_refusal(faults))
    skipped = skipped | faults
    digests = {index: reading.digest for index, reading in readings.items() if reading.digest is not None}
    if not digests:
        raise InputError(f"none of the {len(source)} pictures can be used. {_refusal(faults)}")
    content = hashlib.sha256("\n".join(sorted(digests.values())).encode()).hexdigest()
    identity = f"{len(digests)}, content {content[:16]}"
    parts = _as_before(source, digests, before) or _parts(config, source, sorted(digests))
    record = {part: {name: digests[index] for name, index in places.items()} for part, places in parts.items()}
    training, held_out = (
        Selection(source, list(parts[part].values()), names=list(parts[part])) for part in ("training", "held_out")
    )
    files = {source.names[index]: signatures[index] for index in digests}
    return Chosen(training, held_out, identity, record | {"skipped": skipped, "files": files})


def split(config: TrainConfig) -> tuple[Pictures, Pictures]:
    """Training and held-out pictures, without reading them; of folders, a fixed choice by name is held out."""
    if config.data_dir:
        source = open_data(config.data_dir)
        parts = _parts(config, source, range(len(source)))
        training, held_out = (Selection(source, list(parts[part].values())) for part in ("training", "held_out"))
        return training, held_out
    composed, unseen = (Collage(part, EMBEDDED_SCENES, seed=config.seed) for part in ("train", "held_out"))
    scenes = range(min(config.limit or EMBEDDED_SCENES, EMBEDDED_SCENES))
    return Selection(composed, scenes), Selection(unseen, range(min(config.held_out, EMBEDDED_SCENES)))


def _parts(config: TrainConfig, source: Pictures, usable: Sequence[int]) -> dict[str, dict[str, int]]:
    """Part -> name -> index. Groups are held out whole, as many as fit."""
    order = sorted(usable, key=lambda index: hashlib.sha256(_bytes(source.names[index])).digest())
    groups: dict[str, list[int]] = {}
    for index in order:
        groups.setdefault(group_of(source, index), []).append(index)
    wanted = min(config.held_out, len(order) // 5)
    held_out: list[int] = []
    for group in groups.values():
        if len(held_out) + len(group) <= wanted:
            held_out += group
    if wanted and not held_out:
        raise InputError(
            f"--held-out {config.held_out}: the smallest group of pictures has {min(map(len, groups.values()))}, and "
            f"at most {wanted} of {len(order)} pictures are held out; give more groups, or --held-out 0."
        )
    rest = [index for index in order if index not in set(held_out)]
    end = len(rest) if config.limit is None else config.limit
    parts = {"training": rest[:end], "held_out": held_out, "unused": rest[end:]}
    return {part: {source.names[index]: index for index in sorted(indices)} for part, indices in parts.items()}


def _as_before(source: Pictures, digests: Mapping[int, str], before: Record | None) -> dict[str, dict[str, int]] | None:
    """The parts of the record, found again by content, whatever the names; None if some content is missing."""
    if before is None:
        return None
    places: dict[str, list[int]] = {}
    for index, digest in digests.items():
        places.setdefault(digest, []).append(index)
    parts: dict[str, dict[str, int]] = {}
    for part in PARTS:
        parts[part] = {}
        for name, digest in before[part].items():
            same = places.get(digest, [])
            if not same:
                return None
            named = next((index for index in same if source.names[index] == name), same[0])
            same.remove(named)
            parts[part][name] = named
    return parts


def _remembered(
    source: Pictures, signatures: Mapping[int, list[int] | None], before: Record | None
) -> dict[int, doctor.Reading]:
    """What an earlier start of the run has read, of pictures whose files have not changed since."""
    if before is None or jax.process_count() > 1:  # clocks and disks of hosts may differ
        return {}
    digests = {name: digest for part in PARTS for name, digest in before[part].items()}
    names = {index: source.names[index] for index in signatures}
    same = [
        index
        for index, signature in signatures.items()
        if signature is not None and before["files"].get(names[index]) == signature and names[index] in digests
    ]
    return {index: doctor.Reading(digest=digests[names[index]]) for index in same}


def _read(source: Pictures, indices: Sequence[int]) -> dict[int, doctor.Reading]:
    """Reads every picture once; each of several hosts reads a share."""
    host, hosts = jax.process_index(), jax.process_count()
    own = doctor.read_all(source, indices[host::hosts])
    every = parallel.gather([dataclasses.astuple(reading) for reading in own])
    return {index: doctor.Reading(*every[number % hosts][number // hosts]) for number, index in enumerate(indices)}


def _refusal(faults: Mapping[str, str]) -> str:
    shown = "; ".join(reason.rstrip(".") for reason in list(faults.values())[:SHOWN])
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return (
        f"{len(faults)} pictures cannot be used: {shown}{more}. Correct or remove them ({called('check')} lists all), "
        "or leave them out with --skip-bad."
    )


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")
