"""The site's pages that are not below docs/, and links that work in the repository as well as on the site."""

import ast
import pathlib
import posixpath
import re

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUTSIDE = ("results/*.md", "notebooks/*.ipynb", "stablesam_jax/pretrained/README.md", "CHANGELOG.md")
REMOTE = re.compile(
    r'<script src=""> </script>|<script type="module">(?:(?!</script>).)*?mermaid\.(?:(?!</script>).)*</script>', re.S
)
ERRORS = "errors.md"
AREAS = {  # beginning of a module's path -> heading; the first that fits
    "stablesam_jax/data/": "Pictures, masks and data sets",
    "stablesam_jax/files/picture_file": "Pictures, masks and data sets",
    "stablesam_jax/predict/": "Prediction",
    "stablesam_jax/compat/": "Prediction",
    "stablesam_jax/": "Models, plugins and files",
    "convert/": "Conversion",
    "train/": "Training",
    "eval/": "Evaluation",
    "": "Other commands",
}
PACKAGES = ("stablesam_jax", "convert", "train", "eval", "experiments", "bench", "predict", "serve")
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def outside():
    """Paths of those pages, from the root of the repository."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in OUTSIDE for path in ROOT.glob(pattern))


@event_priority(100)  # before mkdocs-jupyter, which takes the notebooks
def on_files(files, config):
    """Adds them; each keeps its path.

    Of a notebook that `make notebooks` has executed, the copy with its figures is taken.
    """
    for path in outside():
        root = ROOT / "runs" if (ROOT / "runs" / path).is_file() and path.endswith(".ipynb") else ROOT
        files.append(File(path, str(root), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, ERRORS, content=error_messages()))
    return files


def error_messages():
    """The page of all messages of InputError, read from the sources."""
    found = {heading: set() for heading in AREAS.values()}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        heading = next(heading for beginning, heading in AREAS.items() if place.startswith(beginning))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError" and node.args:
                found[heading].add(_text(node.args[0]))
    lines = ["# Error messages", "", "All messages about a user's input; … stands for what a message fills in."]
    for heading, texts in found.items():
        shown = sorted((text for text in texts if len(text.replace("…", "").strip(": ")) > 3), key=_without_values)
        lines += ["", f"## {heading}", "", *(f"- `` {text} ``" for text in shown)]
    return "\n".join(lines)


def _without_values(text):
    """To sort messages by their words, not by the values that they begin with."""
    return text.lstrip("… :").lower()


def _text(node):
    """A message with … for its values."""
    match node:
        case ast.Constant(value=str(text)):
            return " ".join(text.split()) if "\n" in text else text
        case ast.JoinedStr(values=values):
            return "".join(map(_text, values))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
    return "…"


def on_page_markdown(markdown, page, config, files):
    """Turns links between files of the repository into links between pages.

    Of a link to a file that is no page the text remains. A link to nothing stays as it is and fails the build.
    """
    here = page.file.src_uri
    place = posixpath.dirname(here if here in outside() else f"docs/{here}")

    def rewritten(match):
        text, link, anchor = match.groups(default="")
        path = posixpath.normpath(posixpath.join(place, link))
        target = "index.md" if path == "README.md" else path.removeprefix("docs/")
        if files.get_file_from_path(target):
            return f"[{text}]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{anchor})"
        return text if (ROOT / path).exists() else match[0]

    return LINK.sub(rewritten, markdown)


def on_post_page(output, page, config):
    """Removes from notebooks the scripts that would fetch libraries from elsewhere, for formulas and diagrams."""
    return REMOTE.sub("", output)
