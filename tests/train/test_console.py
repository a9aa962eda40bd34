"""Text for people, JSON lines for programs, silence on other hosts."""

import io
import json

from rich.console import Console as Terminal
from rich.table import Table

from train.console import Console

TABLE = Table("name")
TABLE.add_row("a row")


def test_where_no_terminal_is_every_event_is_a_json_line(capsys):
    console = Console()
    console.say("started", "off we go", steps=3)
    console.show("report", TABLE, systems={"before": 1})
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"event": "started", "message": "off we go", "steps": 3},
        {"event": "report", "systems": {"before": 1}},
    ]


def test_in_a_terminal_there_is_text_as_it_is_written():
    console = Console()
    text = io.StringIO()
    console.terminal = Terminal(file=text, width=40)
    console.say("started", "[plugin] " + 50 * "x", steps=3)
    console.show("report", TABLE, systems={})
    lines = text.getvalue().splitlines()
    assert lines[0] == "[plugin] " + 50 * "x"
    assert any("a row" in line for line in lines[1:])
    assert "steps" not in text.getvalue()


def test_other_hosts_are_silent(capsys):
    console = Console(silent=True)
    console.say("started", "off we go")
    console.show("report", TABLE)
    assert capsys.readouterr() == ("", "")
