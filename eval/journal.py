"""Journal of long work: the results of each picture, written at once, so that killed work resumes.

A file of JSON lines in the output folder: first the settings, then one line per picture. JSON keeps floats to the bit,
so final results do not depend on where the work was killed. An evaluation removes the file at its end.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from stablesam_jax.errors import InputError
from stablesam_jax.files.disk import writing

JOURNAL = "journal.jsonl"  # of the first host
MOST_DIFFERENCES = 4  # named in one message

Record = Mapping[str, Any]  # results of one picture: values that JSON can hold


class Journal:
    """The records of one piece of work by (system, data set, index of the picture)."""

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any], *, host: int = 0):
        """Reads the journal of an earlier run, if there is one; writes nothing.

        Args:
            folder: output folder of the evaluation.
            settings: everything that results depend on, as values that JSON can hold.
            host: index of the host; each host has a journal of its own.

        Raises:
            InputError: the earlier run had other settings; the message lists the differences.
        """
        self._path = folder / (f"host{host}.{JOURNAL}" if host else JOURNAL)
        self._settings = json.loads(json.dumps(settings))  # as `_check` will read them: tuples become lists
        self._records: dict[tuple[str, str, int], Record] = {}
        self._size = 0  # bytes of complete lines; what follows was torn by a kill and is overwritten
        if self._path.exists():
            self._read()
        self.found = len(self._records)  # by the earlier run

    def _read(self) -> None:
        lines = self._path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):  # torn, though what is there parses: 12 of 123, say
                break
            if number == 0:
                self._check(entry)
            else:
                system, data_set, index, record = entry
                self._records[system, data_set, index] = record
            self._size += len(line)

    def _check(self, before: Any) -> None:
        there, here = _flat(before), _flat(self._settings)
        differ = [
            f"{name} was {there.get(name, 'not given')}, is {here.get(name, 'not given')}"
            for name in {**there, **here}
            if there.get(name) != here.get(name)
        ]
        if differ:
            more = f" and {len(differ) - MOST_DIFFERENCES} more" if len(differ) > MOST_DIFFERENCES else ""
            raise InputError(
                f"{self._path}: was written with other options: "
                f"{', '.join(differ[:MOST_DIFFERENCES])}{more}. Repeat its options to continue, "
                "or give another --output."
            )

    def get(self, system: str, data_set: str, index: int) -> Record | None:
        """The record of a picture, or None where it is not done yet."""
        return self._records.get((system, data_set, index))

    def add(self, system: str, data_set: str, index: int, record: Record) -> Record:
        """Writes the record of a picture, and returns it.

        Raises:
            InputError: it cannot be written; earlier records remain.
        """
        self.begin()
        with writing(self._path):
            self._append([system, data_set, index, record])
        return record

    def begin(self) -> None:
        """Writes the settings, unless they are there, so that the folder is known as that of this work.

        Raises:
            InputError: they cannot be written.
        """
        if self._size:
            return
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(b"")
            self._append(self._settings)

    def _append(self, entry: Any) -> None:
        line = json.dumps(entry).encode() + b"\n"
        with open(self._path, "r+b") as file:
            file.seek(self._size)
            file.truncate()
            file.write(line)
        self._size += len(line)

    def remove(self) -> None:
        """Deletes the file, once the results are written."""
        self._path.unlink(missing_ok=True)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries by their path."""
    if not isinstance(value, dict):
        return {name: value}
    return {path: leaf for key, entry in value.items() for path, leaf in _flat(entry, f"{name} {key}".strip()).items()}
