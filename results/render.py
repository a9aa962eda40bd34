"""`make results`: writes tables and values of the pages from the files in measured/, in their one place.

A page has `<!-- NAME ARGUMENTS -->...<!-- end -->`; what is between is written by the function NAME below. The exit
status is 1 if a page was not what the files say. The comments at the beginning of a csv file say what was measured,
by which command.
"""

import csv
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
MEASURED = ROOT / "results" / "measured"
PAGES = ("README.md", "CHANGELOG.md", "results/*.md", "docs/*.md", "stablesam_jax/pretrained/README.md")
SYSTEMS = ("sam_nano", "stable_sam_nano", "stable_sam_nano_one_object")
KINDS = ("gt-box", "noisy-box", "1-point", "3-points")
METRICS = ("miou", "mbiou", "msf")
FOUR = "mean"  # of davis2016_val, grabcut, ecssd and horses, in test_four.json


def main() -> None:
    """Writes every page again."""
    changed = [
        path for path in pages() if (text := rendered(path.read_text())) != path.read_text() and _write(path, text)
    ]
    for path in changed:
        print(f"{path.relative_to(ROOT)}: was not what the files say; written again")
    sys.exit(bool(changed))


def pages() -> list[pathlib.Path]:
    """All pages that may have places for results."""
    return sorted(path for pattern in PAGES for path in ROOT.glob(pattern))


def rendered(text: str) -> str:
    """A page with its places filled."""
    return PLACE.sub(
        lambda place: f"{place[1]}{VIEWS[place['name']](*(place['arguments'] or '').split())}{place[5]}", text
    )


def table(name: str, *columns: str) -> str:
    """A csv file as it is, or some of its columns by number; of equal entries below each other the first is shown."""
    header, *rows = _csv(name)
    chosen = [int(column) for column in columns] or range(len(header))
    return _markdown([header[column] for column in chosen], [[row[column] for column in chosen] for row in rows])


def test(place: str, *sets: str) -> str:
    """mIoU / mBIoU / mSF of test pictures, in percent."""
    found = _measured(place)["systems"]
    rows = [
        [
            _title(one),
            system,
            *(" / ".join(_percent(found[system][one][kind][metric]) for metric in METRICS) for kind in KINDS),
        ]
        for one in sets
        for system in SYSTEMS
    ]
    return _markdown(["set", "system", *KINDS], rows)


def gains(place: str, *sets: str) -> str:
    """mIoU gained over sam_nano on test pictures, with 95 % intervals."""
    found = _measured(place)["differences"]["sam_nano"]
    rows = [
        [_title(one), system, *(_gain(found[system][one][kind]["miou"]) for kind in KINDS)]
        for one in sets
        for system in SYSTEMS[1:]
    ]
    return _markdown(["set", "system", *KINDS], rows)


def summary() -> str:
    """The four rows of the README."""
    four, other = _measured("test_four"), _measured("test_other")
    asked = (
        ("sloppy box, one object in the picture", four, FOUR, "noisy-box"),
        ("single click, one object in the picture", four, FOUR, "1-point"),
        ("exact box, one object in the picture", four, FOUR, "gt-box"),
        ("single click, one thing of many (COCO)", other, "coco_mval", "1-point"),
    )
    rows = []
    for title, measured, one, kind in asked:
        reached = {system: _percent(measured["systems"][system][one][kind]["miou"]) for system in SYSTEMS}
        gained = measured["differences"]["sam_nano"]
        cells = [
            f"{reached[system]} ({100 * gained[system][one][kind]['miou']['value']:+.1f})" for system in SYSTEMS[1:]
        ]
        rows.append([title, reached["sam_nano"], *cells])
    return _markdown(["prompt", *(f"`{system}`" for system in SYSTEMS)], rows)


def value(place: str, system: str, one: str, kind: str, metric: str) -> str:
    """What a system gains over sam_nano, in points."""
    return f"{100 * _measured(place)['differences']['sam_nano'][system][one][kind][metric]['value']:+.1f}"


def closed(place: str, system: str, one: str, kind: str) -> str:
    """Share of the gap between a prompt and the exact box that a system closes, in percent."""
    return f"{100 * _measured(place)['closed'][system][one][kind]:.0f}"


def rivals() -> str:
    """Change with exact boxes and gaps closed, of each seed."""
    _, base, *rows = _csv("rivals_512")
    exact, box, click = (float(base[column]) for column in (2, 5, 8))
    systems: dict[str, list[list[str]]] = {}
    for row in rows:
        systems.setdefault(row[0], []).append(row)
    return _markdown(
        ["trained", "exact box, change of mIoU", "gap of sloppy boxes closed, %", "gap of a click closed, %"],
        [
            [
                name,
                ", ".join(f"{float(row[2]) - exact:+.1f}" for row in seeds),
                ", ".join(f"{100 * (float(row[5]) - box) / (exact - box):.0f}" for row in seeds),
                ", ".join(f"{100 * (float(row[8]) - click) / (exact - click):.0f}" for row in seeds),
            ]
            for name, seeds in systems.items()
        ],
    )


def paper() -> str:
    """Gaps closed in the rows of the paper's tables, here and there."""
    _, *rows = _csv("paper_tables")
    boxes, clicks = ({(row[0], row[2]): row for row in rows if row[1] == kind} for kind in ("noisy-box", "1-point"))
    return _markdown(
        ["table", "system", "box", "click", "box, paper", "click, paper"],
        [
            [key[0], key[1], row[8], clicks[key][8], row[12], clicks[key][12]]
            for key, row in boxes.items()
            if key[1] != "SAM"
        ],
    )


VIEWS: dict[str, Callable[..., str]] = {
    "table": table, "test": test, "gains": gains, "summary": summary, "value": value, "closed": closed,
    "rivals": rivals, "paper": paper,
}  # fmt: skip
PLACE = re.compile(  # not in backticks, where it is an example
    rf"(?<!`)(<!-- (?P<name>{'|'.join(VIEWS)})(?: (?P<arguments>[^>]*?))? -->)(?P<old>.*?)(<!-- end -->)", re.S
)


def _csv(name: str) -> list[list[str]]:
    lines = (MEASURED / f"{name}.csv").read_text().splitlines()
    return list(csv.reader(line for line in lines if not line.startswith("# ")))


def _measured(name: str) -> dict:
    return json.loads((MEASURED / f"{name}.json").read_text())


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines, above = [header, ["---"] * len(header)], ""
    for first, *others in rows:
        lines.append(["" if first == above else first, *others])
        above = first
    return "\n\n" + "\n".join(f"| {' | '.join(cell or ' ' for cell in line)} |" for line in lines) + "\n\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _gain(one: dict[str, float | None]) -> str:
    """`one` has value, low and high; without an interval, or with 0 in it, the value may be noise."""
    shown, low, high = (
        None if one[bound] is None else f"{100 * one[bound]:+.1f}" for bound in ("value", "low", "high")
    )
    noise = low is None or one["low"] <= 0 <= one["high"]
    return ("≈ " if noise else "") + (shown if low is None else f"{shown} ({low} to {high})")


def _title(name: str) -> str:
    return "four sets" if name == FOUR else name


def _write(path: pathlib.Path, text: str) -> bool:
    path.write_text(text)
    return True


if __name__ == "__main__":
    main()
