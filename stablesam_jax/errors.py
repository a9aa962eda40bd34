"""The one error that is the user's to mend, and how a command line reports it."""

import contextlib
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """Bad input; the message is one line that says what is wrong, where, and what to do."""


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turns an `InputError` into its message on standard error and exit status 2, without a traceback."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
