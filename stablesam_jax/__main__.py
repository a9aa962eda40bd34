"""`stablesam COMMAND ...`, also as `python -m stablesam_jax COMMAND ...`: every tool of the project by one name.

In a wheel the tools are in `_tools/`, a folder that is not a package: `train`, `eval` and `bench` are names that a
user's own modules may have, and only this program, which adds the folder to its path, can import them. In a clone they
are the packages beside this one.
"""

import importlib
import importlib.metadata
import pathlib
import re
import sys

from stablesam_jax.commands import COMMANDS, check_choice
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.version import __version__

PACKAGE = pathlib.Path(__file__).parent
TOOLS = PACKAGE / "_tools"


GROUPS: dict[str, tuple[str, ...]] = {  # what a user wants -> commands
    "masks": ("predict", "serve"),
    "a plugin for your pictures": ("check", "build", "train", "preview", "embed", "average"),
    "comparing models": ("eval", "report", "tables", "paper"),
    "files of other programs": (),  # all that no other group names
    "this package itself": ("parity", "bench", "nano-start"),
}
EXAMPLES = (
    "stablesam train quickstart",
    "stablesam train own-pictures --data-dir my_pictures --output runs/mine",
    "stablesam eval hq --system sam_nano sam_nano+runs/mine --data-dir my_test_pictures --output runs/results",
    "stablesam serve --system sam_nano+runs/mine",
)


def usage() -> str:
    """The commands by group, a line for each, and examples."""
    rest = [name for name in COMMANDS if not any(name in names for names in GROUPS.values())]
    lines = ["usage: stablesam COMMAND [OPTIONS]"]
    for heading, names in GROUPS.items():
        lines += ["", f"{heading}:", *(f"  {name:<12}{COMMANDS[name].purpose}" for name in names or rest)]
    return "\n".join(
        [*lines, "", "examples:", *(f"  {one}" for one in EXAMPLES), "", "stablesam COMMAND --help: its options"]
    )


def missing_packages(extra: str) -> list[str]:
    """Names of the distributions that an extra requires and that are not installed.

    Args:
        extra: one or more, separated by commas.

    Returns:
        names; empty if this package itself is not installed, since its extras cannot be read then.
    """
    try:
        requirements = importlib.metadata.requires("stablesam-jax") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    extras = "|".join(extra.split(","))
    required = [line for line in requirements if re.search(rf"""extra == ['"]({extras})['"]""", line)]
    names = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in required}
    return sorted(name for name in names if not _is_installed(name))


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _refuse(name: str) -> None:
    """Raises an InputError where there is no such command, or packages that it needs are not installed."""
    check_choice(name, COMMANDS, "command")
    extra = COMMANDS[name].extra
    if missing := missing_packages(extra):
        raise InputError(
            f"stablesam {name}: needs {', '.join(missing)}, not installed here; pip install 'stablesam-jax[{extra}]'."
        )


def add_tools() -> None:
    """Lets this process import the tools."""
    sys.path.insert(0, str(TOOLS if TOOLS.is_dir() else PACKAGE.parent))


def main() -> None:
    """Runs the command that is named. Without one it lists all; with an unknown one too, and the status is 2."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "--version"):
        print(f"stablesam-jax {__version__}" if name == "--version" else usage())
        sys.exit()
    if name not in COMMANDS:
        print(usage(), file=sys.stderr)
    with exit_on_input_error():
        _refuse(name)
        add_tools()
        sys.argv = [f"stablesam {name}", *rest]
        sys.exit(importlib.import_module(COMMANDS[name].module).main())


if __name__ == "__main__":
    main()
