"""Where the picture is that an annotation file speaks of: tools write its path as it was on another computer."""

import os
import pathlib
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator, Sequence

from stablesam_jax.data.readers import list_files
from stablesam_jax.files.picture_file import SUFFIXES, UNREAD

UPLOAD = re.compile(r"[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file


class PictureIndex:
    """Finds the pictures of one data set, wherever in its folders they are; never one outside of them."""

    def __init__(self, folder: pathlib.Path, bases: Sequence[pathlib.Path] = ()):
        """Lists nothing yet.

        Args:
            folder: of the data set.
            bases: folders of it that a path may begin at, the likeliest first; the set's own is the last.
        """
        self.folder, self.bases = folder, (*bases, folder)
        self._files: dict[str, list[pathlib.Path]] | None = None

    def find(self, said: str) -> pathlib.Path:
        """The file of a picture.

        It is where the path leads from one of the bases. Else it is the only file whose path from a base ends as the
        one that is said, or the other way round: `/home/me/images/a.jpg` is `images/a.jpg`, and so is `a.jpg`.

        Args:
            said: the path of the picture, as an annotation file has it.

        Raises:
            ValueError: there is none, or more than one; says so after the name.
        """
        spellings = [parts for parts in map(_parts, dict.fromkeys(_spellings(said))) if parts]
        for base in self.bases:
            for parts in spellings:
                file = base.joinpath(*parts)
                if os.path.isfile(file):
                    return file
        for parts in (*spellings, *_without_upload(spellings)):
            found = {file for file in self._named(parts[-1]) if self._ends_alike(file, parts)}
            if len(found) == 1:
                return found.pop()
            if found:
                first, second, *_ = sorted(found)
                raise ValueError(f"may be {first} or {second}")
        raise ValueError(f"is missing in {self.folder}")

    def _named(self, name: str) -> list[pathlib.Path]:
        if self._files is None:
            self._files = {}
            for files in list_files(self.folder, [*SUFFIXES, *UNREAD], within=True).values():
                for file in files:
                    self._files.setdefault(_form(file.name), []).append(file)
        return self._files.get(_form(name), [])

    def _ends_alike(self, file: pathlib.Path, parts: Sequence[str]) -> bool:
        said = [_form(part) for part in parts]
        for base in self.bases:
            if file.is_relative_to(base):
                found = [_form(part) for part in file.relative_to(base).parts]
                common = min(len(found), len(said))
                if found[-common:] == said[-common:]:
                    return True
        return False


def clean_path(said: str) -> str:
    """The path of a picture without what is of another computer: drive, host, leading slash, dots."""
    return "/".join(_parts(said.replace("\\", "/")))


def _spellings(said: str) -> Iterator[str]:
    """What may have been meant: the name as it is, one of Windows, an address, one of Label Studio's local files."""
    yield said
    slashed = said.replace("\\", "/")
    yield slashed
    path = urllib.parse.unquote(slashed)
    yield path
    query = urllib.parse.parse_qs(slashed.partition("?")[2])
    yield from query.get("d", ())
    yield path.partition("?")[0]


def _parts(path: str) -> tuple[str, ...]:
    """Names of folders and file, without drive, host, and dots; nothing leads above where it begins."""
    path = re.sub(r"^[A-Za-z][\w+.-]*://[^/]*|^[A-Za-z]:", "", path)
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def _without_upload(spellings: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    for *_, name in spellings:
        if match := UPLOAD.match(name):
            yield (name[match.end() :],)


def _form(name: str) -> str:
    """One spelling for all Unicode forms and cases."""
    return unicodedata.normalize("NFC", name).casefold()
