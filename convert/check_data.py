"""What is wrong with folders of pictures and masks, told before anyone trains on them.

python -m convert.check_data my_pictures --against test_pictures

Exit status 0: nothing but hints. 1: faults. 2: bad input.
"""

import collections
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import rich.progress
import tyro
from rich.console import Console
from rich.text import Text

from stablesam_jax.commands import called
from stablesam_jax.data.doctor import KINDS, Examined, Finding, Folder, compare, examine, find_folders
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.disk import check_writable, write_text

SHOWN_HINTS = 10  # of a kind, in a terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Names every fault of folders of pictures and masks."""

    folders: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...]")]
    """Folders with im/ and gt/, with NAME.jpg beside its mask NAME.png, or that hold such folders."""
    against: Annotated[tuple[pathlib.Path, ...], tyro.conf.arg(metavar="DIR [DIR ...]")] = ()
    """Folders whose pictures must not be among the others: what is tested on, say. Their masks are not checked."""
    json: pathlib.Path | None = None
    """File to write everything to."""


def check(folders: Sequence[Folder], against: Sequence[Folder]) -> list[Finding]:
    """Reads every picture and mask and compares all pictures.

    Args:
        folders: to be checked.
        against: whose pictures must not be among them; their masks are not read.

    Returns:
        all findings, by kind, then by file.
    """
    pairs = [pair for folder in folders if folder.labelled for pair in folder.pairs]
    others = [dataclasses.replace(pair, mask=None) for folder in against for pair in folder.pairs if pair.picture]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        examined = list(_progress(threads.map(examine, pairs), len(pairs), "checking"))
        compared = list(_progress(threads.map(examine, others), len(others), "reading --against"))
    findings = [finding for folder in folders for finding in folder.findings]
    findings += [finding for one in (*examined, *compared) for finding in one.findings]
    findings += compare(examined, compared)
    order = list(KINDS)
    return sorted(findings, key=lambda finding: (order.index(finding.kind), finding.file))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = tyro.cli(Options, args=arguments, prog=called("check"))
    with exit_on_input_error():
        if not options.folders:
            raise InputError("no folder is given; give one that holds im/ (pictures) and gt/ (masks).")
        if options.json is not None:
            check_writable(options.json, "--json")
        folders, against = _find(options.folders), _find(options.against)
        if not any(folder.labelled for folder in folders):
            raise InputError(
                f"{options.folders[0]}: holds pictures, but no masks where they are looked for; "
                "pictures go to im/NAME.jpg, their masks to gt/NAME.png."
            )
        places = {folder.path.resolve() for folder in against}
        for folder in folders:
            if folder.path.resolve() in places:
                raise InputError(f"{folder.path}: is to be checked against itself; leave it out of --against.")
    findings = check(folders, against)
    facts = describe(folders, against, findings)
    if options.json is not None:
        write_text(options.json, json.dumps(facts, indent=1) + "\n")
    show(findings)
    print(summary(facts))
    return 1 if facts["faults"] else 0


def describe(folders: Sequence[Folder], against: Sequence[Folder], findings: Sequence[Finding]) -> dict[str, Any]:
    """Everything, as JSON holds it."""
    counts: dict[str, dict[str, int]] = {"fault": {}, "hint": {}}
    for kind, number in collections.Counter(finding.kind for finding in findings).items():
        counts[KINDS[kind][0]][kind] = number
    return {
        "folders": {str(folder.path): len(folder.pairs) for folder in folders if folder.labelled},
        "against": {str(folder.path): len(folder.pairs) for folder in against},
        "faults": counts["fault"],
        "hints": counts["hint"],
        "findings": [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "file": str(finding.file),
                "text": finding.text,
                "other": None if finding.other is None else str(finding.other),
            }
            for finding in findings
        ],
    }


def summary(facts: dict[str, Any]) -> str:
    """One line of counts."""
    checked, against = facts["folders"], facts["against"]
    text = f"{_plural(sum(checked.values()), 'pair')} in {_plural(len(checked), 'folder')} checked"
    if against:
        text += f" against {_plural(sum(against.values()), 'picture')} in {_plural(len(against), 'folder')}"
    for word in ("fault", "hint"):
        kinds = facts[f"{word}s"]
        text += f"{':' if word == 'fault' else ','} {_plural(sum(kinds.values()), word)}"
        if kinds:
            text += f" ({', '.join(f'{kind} {number}' for kind, number in kinds.items())})"
    return text + "."


def show(findings: Sequence[Finding]) -> None:
    """Prints findings: by kind under a title in a terminal, hints first and not all; elsewhere a line for each."""
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        for finding in findings:
            print(f"{finding.severity}: {finding.file}: {finding.text}")
        return
    for kind, (severity, title) in KINDS.items():
        of_kind = [finding for finding in findings if finding.kind == kind]
        if not of_kind:
            continue
        console.print(
            Text(f"{severity}, {title}: {len(of_kind)}", "bold red" if severity == "fault" else "bold yellow")
        )
        shown = of_kind if severity == "fault" else of_kind[:SHOWN_HINTS]
        for finding in shown:
            console.print(Text.assemble("  ", (str(finding.file), "cyan"), f": {finding.text}"))
        if len(shown) < len(of_kind):
            console.print(f"  and {len(of_kind) - len(shown)} more, which --json FILE holds")


def _find(roots: Iterable[pathlib.Path]) -> list[Folder]:
    """The folders below all roots, each once."""
    return list({folder.path.resolve(): folder for root in roots for folder in find_folders(root)}.values())


def _progress(results: Iterable[Examined], total: int, title: str) -> Iterable[Examined]:
    """The same results, with a bar on standard error where that is a terminal."""
    console = Console(stderr=True)
    hidden = total == 0 or not console.is_terminal
    return rich.progress.track(results, title, total, console=console, transient=True, disable=hidden)


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    sys.exit(main())
