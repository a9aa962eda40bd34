"""Parts of data sets: every choice is made on validation pictures, and results are reported on test pictures.

A json {"DATA_SET": {"PART": {"GROUP": ["NAME", ...], ...}, ...}, ...} names them. A group (frames of a video, views of
one thing) is one draw in intervals, so no group is in two parts.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

from eval.draw import even_draw
from stablesam_jax.commands import check_choice
from stablesam_jax.data.groups import by_name, group_of
from stablesam_jax.data.json_file import read_json
from stablesam_jax.data.readers import Named
from stablesam_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Which pictures of a data set are evaluated."""

    splits: pathlib.Path | None  # the json
    part: str | None  # all pictures if None
    limit: int | None  # all of the part if None
    seed: int  # of the draw, where there is a limit

    def check(self) -> None:
        """Checks the options.

        Raises:
            InputError: only one of --splits and --part is given, the json cannot be used, or the limit is below 1.
        """
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit {self.limit}: must be at least 1.")
        if (self.splits is None) != (self.part is None):
            raise InputError("--splits and --part: give both or neither, as --splits results/splits.json --part test.")
        self._groups()

    def drawn(self, source: Named) -> list[int]:
        """Indices of the pictures.

        Raises:
            InputError: none is in the part.
        """
        groups = self._groups()
        inside = [index for index, name in enumerate(source.names) if groups is None or name in groups]
        if not inside:
            raise InputError(f"--part {self.part}: {self.splits} has no picture of the data set of {source.names[0]}.")
        return [inside[index] for index in even_draw(len(inside), self.limit, self.seed)]

    def groups(self, source: Named) -> list[str]:
        """The group of each of these pictures: of the json, else of the data's groups.json, see `data.groups`."""
        groups = self._groups()
        return [
            group_of(source, index) if groups is None else groups[source.names[index]] for index in self.drawn(source)
        ]

    def _groups(self) -> Mapping[str, str] | None:
        return None if self.splits is None or self.part is None else read_part(self.splits, self.part)


@functools.lru_cache(maxsize=1)
def read_part(file: pathlib.Path, part: str) -> Mapping[str, str]:
    """Reads one part of all data sets.

    Args:
        file: as above.
        part: such as validation or test.

    Returns:
        full name of a picture -> its group, unique among all data sets.

    Raises:
        InputError: the file cannot be read, has another form or no such part, or a picture or group is in two parts.
    """
    content = read_json(file)
    if not isinstance(content, dict) or not all(isinstance(parts, dict) for parts in content.values()):
        raise InputError(f'{file}: must hold {{"DATA_SET": {{"PART": {{"GROUP": ["NAME", ...]}}}}}}.')
    check_choice(part, dict.fromkeys(name for parts in content.values() for name in parts), f"part of {file}")
    return {
        f"{data_set}/{name}": f"{data_set}/{group}/*"
        for data_set, parts in content.items()
        for name, group in _of_part(file, data_set, parts, part).items()
    }


def _of_part(file: pathlib.Path, data_set: str, parts: Mapping[str, Any], part: str) -> Mapping[str, str]:
    """Name -> group of a data set's part, after checking that parts share neither."""
    each = {name: by_name(groups, f"{file}: {data_set}, {name}") for name, groups in parts.items()}
    for (name, of), (other, of_other) in itertools.combinations(each.items(), 2):
        if shared := (of.keys() & of_other.keys()) | (set(of.values()) & set(of_other.values())):
            raise InputError(f"{file}: {data_set}: {min(shared)} is in {name} and in {other}; keep one.")
    return each.get(part, {})
