"""Small data in every official layout, composed from the embedded photographs: the data of `--miniature`.

Training scenes and test scenes have no photograph in common. Each scene has one object; class maps have it as class 1.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image

from experiments.full_size import DETECTORS, HQ_SETS, TRAINING
from stablesam_jax.data.collage import Collage
from stablesam_jax.data.datasets import INSTANCES, JOINED, MESS, ONE_OBJECT
from stablesam_jax.data.readers import LabelledPicture
from stablesam_jax.files.disk import whole_file

SIDE = 128  # pixels
PER_PART = 4  # pictures of each of the seven parts of HQSeg-44K
PER_SET = 2  # of each of the HQ sets, and of COCO
TRAINING_PICTURES = PER_PART * len(JOINED[TRAINING])


def make(root: pathlib.Path, seed: int = 0) -> None:
    """Writes all data sets below a folder; existing files are kept.

    Args:
        root: as `--data`.
        seed: of the scenes.
    """
    training = iter(Collage("train", TRAINING_PICTURES, seed=seed, size=SIDE))
    test = _scenes(seed)
    for name in JOINED[TRAINING]:
        _one_object(root, name, [next(training) for _ in range(PER_PART)])
    for name in HQ_SETS:
        _one_object(root, name, [next(test) for _ in range(PER_SET)])
    for name in INSTANCES:
        _instances(root, name, [next(test) for _ in range(PER_SET if name.startswith("coco") else 1)])
    for name in MESS:
        _class_map(root, name, next(test))


def _scenes(seed: int) -> Iterator[LabelledPicture]:
    """Test scenes, as many as are asked for."""
    for start in range(seed, 2**32):
        yield from Collage("held_out", 1000, seed=start, size=SIDE)


def _one_object(root: pathlib.Path, name: str, scenes: list[LabelledPicture]) -> None:
    row = ONE_OBJECT[name]
    for number, scene in enumerate(scenes):
        stem = f"{name}-{number}"
        _save(root / row.pictures / f"{stem}.jpg", scene.picture)
        _save(root / row.masks / f"{stem}.png", scene.masks[0].astype(np.uint8) * 255)


def _instances(root: pathlib.Path, name: str, scenes: list[LabelledPicture]) -> None:
    row = INSTANCES[name]
    images, annotations, detections = [], [], []
    for number, scene in enumerate(scenes):
        file = f"{number:012d}.jpg"
        _save(root / row.pictures / file, scene.picture)
        images.append({"id": number, "file_name": file, "width": SIDE, "height": SIDE})
        annotation = _annotation(scene.masks[0], number)
        annotations.append(annotation)
        x, y, width, height = annotation["bbox"]
        box = [x - 0.1 * width, y, 1.1 * width, height]
        detections.append({"image_id": number, "category_id": 0, "bbox": box, "score": 0.9})
    content = {"images": images, "categories": [{"id": 0, "name": "thing"}], "annotations": annotations}
    _write(root / row.annotations, content)
    if name.startswith("coco"):
        for detector in DETECTORS:
            _write(root / "detections" / f"{detector}.json", detections)


def _annotation(mask: np.ndarray, number: int) -> Mapping[str, Any]:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = [outline.ravel().tolist() for outline in outlines if len(outline) > 2]
    ys, xs = np.nonzero(mask)
    box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
    return {
        "id": number + 1,
        "image_id": number,
        "category_id": 0,
        "segmentation": polygons,
        "bbox": box,
        "area": int(mask.sum()),
        "iscrowd": 0,
    }


def _class_map(root: pathlib.Path, name: str, scene: LabelledPicture) -> None:
    row = MESS[name]
    grey = "thermal" in row.pictures
    _save(root / row.pictures / f"001{row.picture_suffix}", scene.picture[..., 0] if grey else scene.picture)
    _save(root / row.labels / f"001{row.label_suffix}", scene.masks[0].astype(np.uint8))


def _save(path: pathlib.Path, pixels: np.ndarray) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            Image.fromarray(pixels).save(temporary, Image.registered_extensions()[path.suffix.lower()])


def _write(path: pathlib.Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
