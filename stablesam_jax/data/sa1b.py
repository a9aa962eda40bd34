"""Annotations of SA-1B: a json for each picture, with masks as compressed run lengths."""

import pathlib

from stablesam_jax.data.annotated import Drawing, Drawn
from stablesam_jax.data.json_file import read_json


def parse(path: pathlib.Path, size: tuple[int, int]) -> Drawing:
    """Parses a json of SA-1B, which contains the size of the picture.

    Raises:
        InputError, ValueError: it is not one.
    """
    content = read_json(path)
    try:
        image, annotations = content["image"], content["annotations"]
        said, picture = (image["width"], image["height"]), image["file_name"]
        segmentations = [annotation["segmentation"] for annotation in annotations]
        numbers = [annotation.get("id") for annotation in annotations]
    except (KeyError, TypeError, AttributeError):
        raise ValueError("is no json of SA-1B") from None
    if not all(type(side) is int and side > 0 for side in said) or not isinstance(picture, str):
        raise ValueError("is no json of SA-1B")
    if not all(type(number) is int and abs(number) < 2**63 for number in numbers) or len(set(numbers)) < len(numbers):
        numbers = list(range(1, len(segmentations) + 1))
    objects = [Drawn(segmentation, number) for segmentation, number in zip(segmentations, numbers, strict=True)]
    return Drawing(objects, size=said, picture=picture)
