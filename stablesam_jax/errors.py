"""The error and the warning about a user's input, and how commands report them."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do."""

    def __init__(self, message: str):
        """Escapes characters that a terminal cannot print, such as undecodable bytes of a file's name."""
        super().__init__(shown(message))


class InputWarning(UserWarning):
    """Suspicious input. The message is one line: what to check, and where."""

    def __init__(self, message: str):
        """Escapes characters that a terminal cannot print, such as undecodable bytes of a file's name."""
        super().__init__(shown(message))


def shown(name: str | os.PathLike[str]) -> str:
    r"""Escapes a name so that any terminal and any JSON can hold it, in one line.

    Escaped are bytes of a file's name that are not UTF-8, control characters and lone surrogates.

    >>> shown("caf\udce9\n.png")
    'caf\\xe9\\n.png'
    """
    name = os.fspath(name)
    return name if name.isprintable() else "".join(map(_shown, name))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte that is not UTF-8, as Python's surrogateescape decodes it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """The context in which every command runs.

    An `InputError` is printed to standard error without a traceback, and the exit status is 2. After Ctrl-C a line is
    printed, and the exit status is 130. An `InputWarning` is printed as a line. Characters that the terminal's encoding
    lacks are escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's streams lack it
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = _show(warnings.showwarning)
        try:
            yield
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:  # commands that can be continued say so themselves
            print("interrupted", file=sys.stderr)
            sys.exit(130)


def _show(others: Any) -> Any:
    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, InputWarning):
            print(f"hint: {message}", file=sys.stderr)
        else:
            others(message, category, *place, **more)

    return show
