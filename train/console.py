"""What a run says: text in a terminal, a JSON line for every event anywhere else."""

import json
import sys
from typing import Any

from rich.console import Console as Terminal
from rich.table import Table


class Console:
    """Standard output, for people or for programs; silent on all hosts but the first."""

    def __init__(self, *, silent: bool = False):
        """Looks once whether standard output is a terminal."""
        self.silent = silent
        self.terminal = Terminal(highlight=False) if sys.stdout.isatty() else None

    def say(self, event: str, message: str, **values: Any) -> None:
        """A line.

        Args:
            event: what happened, in one word, for programs.
            message: the same for people; in the JSON line too.
            values: figures of the event, what JSON can hold.
        """
        if self.silent:
            return
        if self.terminal is not None:
            self.terminal.print(message, markup=False, soft_wrap=True)
        else:
            print(json.dumps({"event": event, "message": message, **values}), flush=True)

    def show(self, event: str, table: Table, **values: Any) -> None:
        """A table, or its figures in a JSON line."""
        if self.silent:
            return
        if self.terminal is not None:
            self.terminal.print(table)
        else:
            print(json.dumps({"event": event, **values}), flush=True)
