"""Groups of pictures that are no independent draws: frames of a video, views of one thing, crops of one picture.

A data folder may hold groups.json: {"GROUP": ["NAME", ...], ...}, where NAME is that of a picture without the data
set's. Training holds out whole groups, and evaluation counts a group as one draw. Other pictures are groups of one.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stablesam_jax.data.findings import Finding, Findings
from stablesam_jax.data.json_file import read_json
from stablesam_jax.data.readers import Joined, Named, Reader, Selection
from stablesam_jax.errors import InputError, shown

GROUPS_FILE = "groups.json"


def group_of(pictures: Named, index: int) -> str:
    """The group of a picture, unique among all data sets; its name where it has none."""
    if isinstance(pictures, Selection):
        return group_of(pictures.source, pictures.indices[index])
    if isinstance(pictures, Joined):
        return group_of(*pictures.places[index])
    name = pictures.names[index]
    return pictures.groups.get(name, name) if isinstance(pictures, Reader) else name


def assign(readers: Sequence[Reader], folder: pathlib.Path, name: str, findings: Findings) -> None:
    """Reads the groups.json of a data folder, if there is one, into its readers.

    Args:
        readers: of the folder.
        folder: may be a file, which has no groups.json.
        name: of the data set.
        findings: gets names that no picture has.

    Raises:
        InputError: the file cannot be read, has another form, or puts a picture in two groups.
    """
    file = folder / GROUPS_FILE
    if not file.is_file():
        return
    groups = {f"{name}/{shown(picture)}": f"{name}/{group}/*" for picture, group in read_groups(file).items()}
    for reader in readers:
        reader.groups = {**reader.groups, **groups}  # those of train/ and valid/ may have files of their own
    known = {picture for reader in readers for picture in reader.names}
    for picture in groups.keys() - known:
        findings.append(Finding("groups", name, picture, file, f"names {picture}, which is no usable picture."))


def read_groups(file: pathlib.Path) -> dict[str, str]:
    """Reads {"GROUP": ["NAME", ...], ...} as name -> group.

    Raises:
        InputError: it cannot be read, has another form, or a name is in two groups.
    """
    return by_name(read_json(file), f"{file}")


def by_name(groups: Any, where: str) -> dict[str, str]:
    """{"GROUP": ["NAME", ...], ...} -> name -> group; `where` begins the message of an InputError."""
    if not isinstance(groups, Mapping) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in groups.values()
    ):
        raise InputError(f'{where}: must hold {{"GROUP": ["NAME", ...], ...}}.')
    found: dict[str, str] = {}
    for group, names in groups.items():
        for name in names:
            if found.setdefault(name, group) != group:
                raise InputError(f"{where}: {shown(name)} is in {shown(found[name])} and in {shown(group)}; keep one.")
    return found
