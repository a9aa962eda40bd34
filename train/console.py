"""Output of a run: text in a terminal, otherwise a JSON line for every event."""

import json
import sys
from typing import Any

from rich.console import Console as Terminal
from rich.table import Table


class Console:
    """Standard output for people or for programs; silent on all hosts except the first."""

    def __init__(self, *, silent: bool = False):
        """Checks once whether standard output is a terminal."""
        self.silent = silent
        self.terminal = Terminal(highlight=False) if sys.stdout.isatty() else None

    def say(self, event: str, message: str, **values: Any) -> None:
        """Prints a line.

        Args:
            event: name of the event, one word, for programs.
            message: text for people; also in the JSON line.
            values: of the event, for programs; values that JSON can hold.
        """
        if self.silent:
            return
        if self.terminal is not None:
            self.terminal.print(message, markup=False, soft_wrap=True)
        else:
            print(json.dumps({"event": event, "message": message, **values}), flush=True)

    def show(self, event: str, table: Table, **values: Any) -> None:
        """Prints a table, or its values in a JSON line."""
        if self.silent:
            return
        if self.terminal is not None:
            self.terminal.print(table)
        else:
            print(json.dumps({"event": event, **values}), flush=True)
