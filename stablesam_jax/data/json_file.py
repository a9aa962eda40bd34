"""JSON of annotation tools: reading, and recognising the tool by the keys."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from stablesam_jax.errors import InputError

COCO, LABELME, SA1B = "coco", "labelme", "sa-1b"
SMALL = 2**22  # bytes up to which a file is parsed to recognise its kind
LOOK = 2**16  # bytes at each end of a larger file that are searched instead


def read_json(path: pathlib.Path, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Reads a file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        path: of the file.
        hook: applied to every dictionary as soon as it is parsed, see `json.loads`.

    Raises:
        InputError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=hook)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON, or cut short ({error}); copy or export it again.") from None


def kind_of(path: pathlib.Path) -> str | None:
    """The kind of a JSON file, one of those above; None if it is another or cannot be read."""
    try:
        if path.stat().st_size > SMALL:
            return _kind_by_ends(path)
        content = read_json(path)
    except (OSError, InputError):
        return None
    keys = content.keys() if isinstance(content, dict) else set()
    wanted = {LABELME: {"shapes"}, SA1B: {"image", "annotations"}, COCO: {"images", "annotations"}}
    return next((kind for kind, some in wanted.items() if keys >= some), None)


def _kind_by_ends(path: pathlib.Path) -> str | None:
    with open(path, "rb") as file:
        text = file.read(LOOK)
        file.seek(-LOOK, 2)
        text += file.read()
    if re.search(rb'"shapes"\s*:\s*\[', text):
        return LABELME
    if re.search(rb'"image"\s*:\s*\{', text):
        return SA1B
    return COCO if re.search(rb'"(images|annotations|categories)"\s*:\s*\[', text) else None
