"""What the README and the pages of the documentation show is there: links, commands, options, snippets and results."""

import contextlib
import functools
import io
import os
import pathlib
import re
import subprocess
import sys
import unicodedata

import pytest

from stablesam_jax import __main__ as program
from stablesam_jax.commands import COMMANDS
from train.presets import PRESETS

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docs/api/*.md", "results/*.md", "stablesam_jax/pretrained/README.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s\"]*)(?:#([^)\s]+))?\)")
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
PYTHON = re.compile(
    r"^(?P<mark><!-- not run: [^\n]+ -->\n\n?)?```python\n(?P<code>.*?)^```\n(?:\n(?P<output>(?:    [^\n]*\n)+))?",
    re.M | re.S,
)
# As `$ stablesam train ...` in a block, `stablesam eval hq` in a line of text, continued by a backslash.
COMMAND = re.compile(r"(?:stablesam|python -m) (?P<name>[\w.-]+)(?P<arguments>(?:[^\n`#|]|\\\n)*)")
MODULES = {command.module.removesuffix(".__main__"): name for name, command in COMMANDS.items()}
ELSEWHERE = {"pip", "stablesam_jax", "http.server", "venv", "mkdocs", "samexporter.inference", "COMMAND"}
GENERATED = {"errors.md"}  # pages that the site makes, see docs/hooks.py

by_path = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def anchors(path):
    """Anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text()), re.M)
    plain = (unicodedata.normalize("NFKD", re.sub(r"[`*]", "", heading)).lower() for heading in headings)
    return {re.sub(r"[^\w\s-]", "", heading).strip().replace(" ", "-") for heading in plain}


@by_path
def test_links_lead_to_files_and_headings(path):
    for link, anchor in LINK.findall(path.read_text()):
        target = (path.parent / link).resolve() if link else path
        if target.name in GENERATED:
            continue
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def commands(path):
    """(name of the command, arguments) of each that a page shows."""
    for match in COMMAND.finditer(path.read_text()):
        name = MODULES.get(match["name"], match["name"])
        if name not in ELSEWHERE:
            yield name, match["arguments"].replace("\\\n", " ").split()


@functools.cache
def help_of(*arguments):
    """What a command prints about its options."""
    before = sys.argv, sys.path.copy()
    sys.argv = ["stablesam", *arguments, "--help"]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            program.main()
    finally:
        sys.argv, sys.path[:] = before
    return printed.getvalue()


@by_path
def test_commands_and_options_exist(path):
    for name, arguments in commands(path):
        assert name in COMMANDS, f"stablesam {name}"
        options = {part.partition("=")[0] for part in arguments if re.match(r"--[a-z]", part)} - {"--help"}
        first = [part for part in arguments[:1] if re.fullmatch(r"[a-z][a-z0-9-]*", part)]
        kinds = {"train": PRESETS, "preview": PRESETS, "embed": PRESETS, "eval": (help_of("eval"),)}.get(name, {})
        subcommand = first if first and any(first[0] in kind for kind in kinds) else []
        if name == "train" and not subcommand:
            subcommand = ["quickstart"]
        if options and not (name == "eval" and not subcommand):
            shown = set(re.findall(r"--[\w.-]+", help_of(name, *subcommand)))
            assert options <= shown, f"stablesam {name} {' '.join(subcommand)}: {sorted(options - shown)}"


@by_path
def test_targets_of_make_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    shown = re.findall(r"(?:^    |`)make ([a-z-]+)", path.read_text(), re.M)
    assert set(shown) <= targets


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        path
        for path in PAGES
        if any(not match["mark"] for match in PYTHON.finditer(path.read_text()))
        and path.name != "jax.md"  # tests/test_jax_page.py runs it, on a smaller model
    ],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_snippets_run_and_print_what_the_page_says(path, tmp_path):
    (tmp_path / "stablesam_jax").symlink_to(ROOT / "stablesam_jax")
    lines, outputs = [], []
    for match in PYTHON.finditer(path.read_text()):
        if not match["mark"]:
            lines += [match["code"], f"print({_END!r})"]
            outputs.append(re.sub(r"^    ", "", match["output"] or "", flags=re.M))
    (tmp_path / "page.py").write_text("\n".join(lines))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for strict in ("JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION"):
        environment.pop(strict, None)  # as a user has it
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(f"{_END}\n")[:-1]
    assert [got for got, said in zip(printed, outputs, strict=True) if said] == [said for said in outputs if said]


_END = "-- end of the snippet --"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_needs_no_other_server(tmp_path):
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 25
    loaded = re.compile(
        r"""(?:<(?:script|img|iframe|source)[^>]*\ssrc|<link[^>]*\shref|\bimport\()\s*=?\s*["']https?://(?!www\.w3\.org)"""
    )
    assert [page.name for page in pages if loaded.search(page.read_text())] == []
