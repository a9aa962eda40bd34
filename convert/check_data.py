"""Checks pictures and their masks before training.

python -m convert.check_data my_pictures --against test_pictures

Exit status 0: nothing but hints. 1: faults. 2: bad input.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import rich.progress
import tyro
from rich.console import Console
from rich.text import Text

from stablesam_jax.commands import called, command_line
from stablesam_jax.data.doctor import Examined, compare, examine, look
from stablesam_jax.data.findings import KINDS, Finding, Findings
from stablesam_jax.data.readers import on_all_cores
from stablesam_jax.data.sources import Found, find
from stablesam_jax.errors import InputError, exit_on_input_error, shown
from stablesam_jax.files.disk import check_writable, write_text

SHOWN_HINTS = 10  # of each kind in a terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Lists all faults of pictures and their masks. The exit status is 1 if there are any."""

    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA [DATA ...]")]
    """Data in any form that training takes as --data-dir, or folders that contain such folders."""
    against: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DATA [DATA ...]")] = ()
    """Data whose pictures must not be among DATA, such as test sets. Their masks are not checked."""
    json: pathlib.Path | None = None
    """File for all findings; an existing one is replaced."""


def check(sources: Sequence[Found], against: Sequence[Found]) -> Findings:
    """Reads every picture and mask and compares all pictures.

    Args:
        sources: to check.
        against: sources whose pictures must not be among them; their masks are not read.

    Returns:
        all findings.
    """
    findings: Findings = []
    for reader in (reader for source in sources for reader in source.readers):
        headers: Findings = []
        reader.check(headers)
        findings += [finding for finding in headers if finding.severity == "hint"]  # faults follow from whole files
    pictures = [
        functools.partial(examine, reader, index)
        for source in sources
        for reader in source.readers
        for index in range(len(reader))
    ]
    others = [functools.partial(look, file, read) for source in against for file, read in source.pictures]
    examined = _run_all(pictures, "checking")
    compared = _run_all(others, "reading --against")
    findings += [finding for one in (*examined, *compared) for finding in one.findings]
    return [*findings, *compare(examined, compared)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    with exit_on_input_error():
        options = tyro.cli(Options, args=command_line(arguments), prog=called("check"))
        if not options.data:
            raise InputError("no data are given; give a folder, such as one with im/ (pictures) and gt/ (masks).")
        if options.json is not None:
            check_writable(options.json, "--json")
        findings: Findings = []
        sources, against = _find(options.data, findings), _find(options.against, [])
        if not any(source.readers for source in sources):
            raise InputError(
                f"{options.data[0]}: holds pictures, but no masks where they are looked for; "
                "pictures go to im/NAME.jpg, their masks to gt/NAME.png."
            )
        places = {source.path for source in against}
        for source in sources:
            if source.path in places:
                raise InputError(f"{source.path}: is to be checked against itself; leave it out of --against.")
        findings += check(sources, against)
        order = list(KINDS)
        findings.sort(key=lambda finding: (order.index(finding.kind), finding.file))
        facts = describe(sources, against, findings)
        if options.json is not None:
            write_text(options.json, json.dumps(facts, indent=1) + "\n")
        show(findings)
        print(summary(facts))
        return 1 if facts["faults"] else 0


def describe(sources: Sequence[Found], against: Sequence[Found], findings: Sequence[Finding]) -> dict[str, Any]:
    """All findings and counts, as values that JSON can hold."""
    counts: dict[str, dict[str, int]] = {"fault": {}, "hint": {}}
    for kind, number in collections.Counter(finding.kind for finding in findings).items():
        counts[KINDS[kind].severity][kind] = number
    return {
        "folders": {shown(one.path): sum(map(len, one.readers)) for one in sources if one.readers},
        "against": {shown(one.path): len(one.pictures) for one in against},
        "faults": counts["fault"],
        "hints": counts["hint"],
        "findings": [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "file": shown(finding.file),
                "text": shown(finding.text),
                "other": None if finding.other is None else shown(finding.other),
            }
            for finding in findings
        ],
    }


def summary(facts: dict[str, Any]) -> str:
    """Counts in one line."""
    checked, against = facts["folders"], facts["against"]
    text = f"{_plural(sum(checked.values()), 'picture')} in {_plural(len(checked), 'folder')} checked"
    if against:
        text += f" against {_plural(sum(against.values()), 'picture')} in {_plural(len(against), 'folder')}"
    for word in ("fault", "hint"):
        kinds = facts[f"{word}s"]
        text += f"{':' if word == 'fault' else ','} {_plural(sum(kinds.values()), word)}"
        if kinds:
            text += f" ({', '.join(f'{kind} {number}' for kind, number in kinds.items())})"
    return text + "."


def show(findings: Sequence[Finding]) -> None:
    """Prints findings: in a terminal by kind, hints first and at most `SHOWN_HINTS` of each; otherwise a line each."""
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        for finding in findings:
            print(f"{finding.severity}: {finding.line}")
        return
    for kind, (severity, title, _) in KINDS.items():
        of_kind = [finding for finding in findings if finding.kind == kind]
        if not of_kind:
            continue
        console.print(
            Text(f"{severity}, {title}: {len(of_kind)}", "bold red" if severity == "fault" else "bold yellow")
        )
        listed = of_kind if severity == "fault" else of_kind[:SHOWN_HINTS]
        for finding in listed:
            console.print(Text.assemble("  ", (shown(finding.file), "cyan"), f": {shown(finding.text)}"))
        if len(listed) < len(of_kind):
            console.print(f"  and {len(of_kind) - len(listed)} more, which --json FILE holds")


def _find(specs: Iterable[str], findings: Findings) -> list[Found]:
    """Finds all sources; each is listed once."""
    found: dict[pathlib.Path, Found] = {}
    of_all: Findings = []
    for spec in specs:
        for source in find(spec, of_all):
            found.setdefault(source.path, source)
    findings += dict.fromkeys(of_all)
    return list(found.values())


def _run_all(examinations: Sequence[functools.partial[Examined]], title: str) -> list[Examined]:
    """Runs the examinations on all cores, with a progress bar if standard error is a terminal."""
    console = Console(stderr=True)
    total = len(examinations)
    hidden = total == 0 or not console.is_terminal
    results = on_all_cores(lambda examination: examination(), examinations)
    return list(rich.progress.track(results, title, total, console=console, transient=True, disable=hidden))


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    sys.exit(main())
