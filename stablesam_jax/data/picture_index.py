"""Finds the picture that an annotation file names by a path of another computer."""

import os
import pathlib
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator, Sequence

from stablesam_jax.data.readers import list_files
from stablesam_jax.files.picture_file import SUFFIXES, UNREAD

UPLOAD = re.compile(r"[0-9a-f]{8}-")  # prefix that Label Studio adds to the name of an uploaded file


class PictureIndex:
    """Finds pictures in the folders of one data set, never outside of them."""

    def __init__(self, folder: pathlib.Path, bases: Sequence[pathlib.Path] = ()):
        """Lists nothing; the folder is listed on first use.

        Args:
            folder: of the data set.
            bases: folders to which paths may be relative, beside `folder`.
        """
        self.folder, self.bases = folder, (*bases, folder)
        self._files: dict[str, list[pathlib.Path]] | None = None

    def find(self, said: str) -> pathlib.Path:
        """Finds the file of a picture.

        First the path is resolved from the bases. Otherwise the file is taken whose path from a base ends with
        the given path, or the reverse: `/home/me/images/a.jpg` finds `images/a.jpg`, and so does `a.jpg`.

        Args:
            said: path of the picture in the annotation file.

        Raises:
            ValueError: there is no such file, or several; the message follows the name.
        """
        spellings = [parts for parts in map(_parts, dict.fromkeys(_spellings(said))) if parts]
        for parts in spellings:
            there = [file for base in self.bases if os.path.isfile(file := base.joinpath(*parts))]
            for other in there[1:]:
                if not other.samefile(there[0]):
                    raise ValueError(f"may be {there[0]} or {other}")
            if there:
                return there[0]
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
    """The path of a picture without drive, host, leading slash and dots."""
    return "/".join(_parts(said.replace("\\", "/")))


def _spellings(said: str) -> Iterator[str]:
    """Readings of a path: as it is, as one of Windows, as a URL, as one of Label Studio's local files."""
    yield said
    slashed = said.replace("\\", "/")
    yield slashed
    path = urllib.parse.unquote(slashed)
    yield path
    query = urllib.parse.parse_qs(slashed.partition("?")[2])
    yield from query.get("d", ())
    yield path.partition("?")[0]


def _parts(path: str) -> tuple[str, ...]:
    """Names of folders and file, without drive, host and dots; `..` never leads above the first."""
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
    """Normalises Unicode form and case."""
    return unicodedata.normalize("NFC", name).casefold()
