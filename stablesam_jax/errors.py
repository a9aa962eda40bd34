"""The one error that is the user's to mend, the one warning, and how a command line reports them."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any


class InputError(ValueError):
    """Bad input; the message is one line that says what is wrong, where, and what to do."""

    def __init__(self, message: str):
        """Escapes what a terminal cannot show, as odd bytes of a file's name."""
        super().__init__(shown(message))


class InputWarning(UserWarning):
    """Input that may be right or wrong; the message is one line that says what to look at."""

    def __init__(self, message: str):
        """Escapes what a terminal cannot show, as odd bytes of a file's name."""
        super().__init__(shown(message))


def shown(name: str | os.PathLike[str]) -> str:
    r"""A name as any terminal and any JSON can hold it, in one line.

    Bytes of a file's name that are no UTF-8, control characters and lone surrogates are escaped, all else is kept.

    >>> shown("caf\udce9\n.png")
    'caf\\xe9\\n.png'
    """
    name = os.fspath(name)
    return name if name.isprintable() else "".join(map(_shown, name))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if 0xDC80 <= ord(character) <= 0xDCFF:  # how Python holds a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """What every command runs in.

    An `InputError` becomes its message on standard error and exit status 2, without a traceback; an `InputWarning`
    becomes a line. Letters that the terminal has not are escaped there.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = _show(warnings.showwarning)
        try:
            yield
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


def _show(others: Any) -> Any:
    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, InputWarning):
            print(f"hint: {message}", file=sys.stderr)
        else:
            others(message, category, *place, **more)

    return show
