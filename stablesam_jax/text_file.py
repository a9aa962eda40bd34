"""A text file that is whole, whatever ends the program."""

import pathlib


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes or replaces a text file as a whole, line ends as they are."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, newline="")
    temporary.replace(path)
