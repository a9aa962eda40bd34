"""What is found on each picture, kept as soon as it is known, so that a killed evaluation goes on where it was.

A file of JSON lines in the output folder: first what was asked, then a line for each picture. Floats survive JSON to
the bit, so results do not depend on where the work was cut. It is removed once the results are written.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from stablesam_jax.errors import InputError
from stablesam_jax.files.disk import writing

JOURNAL = "journal.jsonl"  # of the first host
MOST_DIFFERENCES = 4  # named in one message

Record = Mapping[str, Any]  # what is found on one picture, as JSON holds it


class Journal:
    """The records of one evaluation by (system, data set, number of the picture)."""

    def __init__(self, folder: pathlib.Path, asked: Mapping[str, Any], *, host: int = 0):
        """Reads what an earlier run has left; makes nothing.

        Args:
            folder: of the output.
            asked: everything that figures depend on, as JSON holds it.
            host: whose records these are, each has a file of its own.

        Raises:
            InputError: that run was asked something else; says what.
        """
        self._path = folder / (f"host{host}.{JOURNAL}" if host else JOURNAL)
        self._asked = json.loads(json.dumps(asked))
        self._records: dict[tuple[str, str, int], Record] = {}
        self._size = 0  # of what is sound; a line that was torn is written again
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
            if not line.endswith(b"\n"):
                break
            if number == 0:
                self._check(entry)
            else:
                system, data_set, index, record = entry
                self._records[system, data_set, index] = record
            self._size += len(line)

    def _check(self, before: Any) -> None:
        there, here = _flat(before), _flat(self._asked)
        differ = [
            f"{name} was {there.get(name, 'not given')}, is {here.get(name, 'not given')}"
            for name in {**there, **here}
            if there.get(name) != here.get(name)
        ]
        if differ:
            more = f" and {len(differ) - MOST_DIFFERENCES} more" if len(differ) > MOST_DIFFERENCES else ""
            raise InputError(
                f"{self._path}: an evaluation was begun here and asked something else: "
                f"{', '.join(differ[:MOST_DIFFERENCES])}{more}. Ask the same to go on, or give another --output."
            )

    def get(self, system: str, data_set: str, index: int) -> Record | None:
        """What is known of a picture."""
        return self._records.get((system, data_set, index))

    def add(self, system: str, data_set: str, index: int, record: Record) -> Record:
        """Keeps what was found on a picture, and returns it as it will be read.

        Raises:
            InputError: it cannot be written; what was kept before stays.
        """
        with writing(self._path):
            if not self._size:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.write_bytes(b"")
                self._append(self._asked)
            self._append([system, data_set, index, record])
        return record

    def _append(self, entry: Any) -> None:
        line = json.dumps(entry).encode() + b"\n"
        with open(self._path, "r+b") as file:
            file.seek(self._size)
            file.truncate()
            file.write(line)
        self._size += len(line)

    def remove(self) -> None:
        """Forgets everything: the results are written."""
        self._path.unlink(missing_ok=True)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries by their path."""
    if not isinstance(value, dict):
        return {name: value}
    return {path: leaf for key, entry in value.items() for path, leaf in _flat(entry, f"{name} {key}".strip()).items()}
