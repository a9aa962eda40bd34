"""Embedded training data: scenes composed from free photographs with hand-drawn object masks.

Each scene has one cut-out of a real object, pasted onto a crop of another photograph (after Ghiasi et al., "Simple
Copy-Paste", arXiv 2012.07177). So there is one object a picture, as in most of HQSeg-44K, which the paper trains on.
Sources and licences: `collage_assets/LICENCES.md`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from stablesam_jax.data.label_file import read_masks
from stablesam_jax.data.readers import LabelledPicture
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import read_picture

ASSETS = pathlib.Path(__file__).parent / "collage_assets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photographs:
    """The photographs of one split; splits have none in common."""

    labelled: tuple[str, ...]  # im/NAME.jpg with gt/NAME.png: objects, backgrounds
    textures: tuple[str, ...]  # background/NAME.jpg: backgrounds


SPLITS = {  # 9 photographs with 37 objects; 4 photographs with 10 objects
    "train": Photographs(
        labelled=("astronaut", "cell", "coins", "grace_hopper", "retina", "rocket"),
        textures=("grass", "gravel", "hubble_deep_field"),
    ),
    "held_out": Photographs(labelled=("camera", "chelsea", "coffee"), textures=("brick",)),
}

# In gt/NAME.png a pixel has the number of its smallest object. (photograph, object) -> objects that are parts of it.
PARTS = {
    ("astronaut", 2): (5,),  # the woman; the patch on her suit
    ("chelsea", 1): (2, 3),  # the cat; her eyes
    ("coffee", 2): (4,),  # the cup; the coffee in it
    ("grace_hopper", 2): (3, 4, 5),  # the woman; her hat, ribbons and name tag
}
# Not to be cut out: incomplete as a cut-out, or too similar to another one.
NEVER_CUT_OUT = {
    ("chelsea", 1),  # the cat: the frame cuts her on three sides
    ("chelsea", 3),  # her second eye
    ("coffee", 1),  # the saucer: the cup hides its middle
    ("coffee", 4),  # the coffee
}

LONGEST_SIDE = (0.3, 0.8)  # of the object, as shares of the scene's side
MAX_ENLARGEMENT = 2.0  # of a cut-out; with more, its blur would mark the object
MIN_AREA = 0.003  # of the object's visible part, as a share of the scene
MIN_VISIBLE = 0.5  # share of the object that is visible
DEFOCUS_SHARE, DEFOCUS = 0.3, 0.006  # share of scenes with a blurred background; largest sigma, as a share of the side
SHADOW_DEPTH = (0.0, 0.5)  # share of the light that a shadow removes
SHADOW_REACH = (0.01, 0.05)  # its distance from the object, and three times its sigma, as shares of the side
NOISE = 5.0  # grey levels, largest sigma; the same noise on object and background
EDGE_STEP, EDGE_SHARE = 25, 0.6  # least contrast to the background in grey levels, on this share of an object's edge


class Collage(Sequence[LabelledPicture]):
    """`count` square scenes; scene i is a pure function of (split, seed, i), and `count` does not change it."""

    def __init__(self, split: str, count: int, seed: int, size: int = 512):
        """Sets the parameters; scenes are computed on access.

        Args:
            split: "train" or "held_out"; they have no photograph in common.
            count: number of scenes.
            seed: not negative.
            size: side of a scene in pixels.

        Raises:
            InputError: a value out of range.
        """
        if split not in SPLITS:
            raise InputError(f"collage: no split {split!r}; choose one of {', '.join(SPLITS)}.")
        if count < 1 or seed < 0 or size < 64:
            raise InputError(f"collage: count {count}, seed {seed}, size {size}; must be at least 1, 0 and 64.")
        self.split, self.length, self.seed, self.size = split, count, seed, size
        self.names = [f"collage/{split}-{seed}-{index}" for index in range(count)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index):
        if not -self.length <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        index %= self.length
        rng = np.random.default_rng([list(SPLITS).index(self.split), self.seed, index])
        mask = np.zeros((), bool)
        while not mask.any():  # the object is hardly visible: draw again from the same rng
            picture, mask = _scene(rng, SPLITS[self.split], self.size)
        return LabelledPicture(self.names[index], picture, mask[None])


def _scene(rng: np.random.Generator, photographs: Photographs, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An object on a background: (size, size, 3) uint8, and its mask, empty if too little of it is visible."""
    name, k = _pick_object(rng, photographs)
    scene = _background(rng, photographs, size, but=name)
    if rng.random() < DEFOCUS_SHARE:
        scene = cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.2, 1.0) * DEFOCUS * size)
    colour, alpha = _cut_out(rng, name, k, longest=size * rng.uniform(*LONGEST_SIDE))
    place = rng.uniform(0.1, 0.9, 2) * size
    angle, reach = rng.uniform(0, 2 * np.pi), size * rng.uniform(*SHADOW_REACH)
    shadow = _shadow(alpha, size, place + reach * np.array([np.cos(angle), np.sin(angle)]), softness=reach / 3)
    light = 1 - rng.uniform(*SHADOW_DEPTH) * shadow
    scene, mask = _paste(scene, colour, alpha, centre_xy=place, light=light)
    grain = rng.normal(0, rng.uniform(0, NOISE), mask.shape)[..., None]
    seen = mask.sum() >= max(MIN_AREA * mask.size, MIN_VISIBLE * np.count_nonzero(alpha > 0.5))
    return np.clip(scene + grain, 0, 255).astype(np.uint8), mask & seen


def _paste(
    scene: np.ndarray, colour: np.ndarray, alpha: np.ndarray, *, centre_xy: np.ndarray, light: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Blends `colour` (h, w, 3) by `alpha` (h, w), 0 to 1, into `scene` (size, size, 3), both uint8.

    Returns:
        the scene, with `light` (size, size) on the background alone, and the object's mask, (size, size) bool, empty
        if its edge has too little contrast to the background.
    """
    (h, w), (rows, columns) = alpha.shape, scene.shape[:2]
    x, y = (centre_xy - (w / 2, h / 2)).astype(int)
    x0, x1, y0, y1 = max(x, 0), min(x + w, columns), max(y, 0), min(y + h, rows)
    source, target = np.s_[y0 - y : y1 - y, x0 - x : x1 - x], np.s_[y0:y1, x0:x1]
    inside, mask = alpha[source] > 0.5, np.zeros((rows, columns), bool)
    difference = colour[source].astype(np.float32) - scene[target]
    core = cv2.erode(inside.astype(np.uint8), np.ones((7, 7), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    edge = inside & (core == 0)
    mask[target] = inside & (edge.any() and np.mean(np.abs(difference[edge]).max(-1) > EDGE_STEP) >= EDGE_SHARE)
    lit = scene * light[..., None]
    lit[target] += alpha[source][..., None] * (colour[source] - lit[target])
    return np.rint(lit).astype(np.uint8), mask


def _shadow(alpha: np.ndarray, size: int, centre_xy: np.ndarray, *, softness: float) -> np.ndarray:
    """(h, w) opacity of an object -> its shadow around `centre_xy`, (size, size) float32 in [0, 1]."""
    (h, w), (x, y) = alpha.shape, centre_xy
    move = np.array([[1, 0, x - w / 2], [0, 1, y - h / 2]])
    return cv2.GaussianBlur(cv2.warpAffine(alpha, move, (size, size)), (0, 0), softness)


def _cut_out(rng: np.random.Generator, name: str, k: int, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """An object of a photograph, flipped, turned and recoloured: colour (h, w, 3) uint8 and alpha (h, w) float32."""
    picture, _ = _labelled(name)
    piece, (x, y, w, h) = _largest_piece(name, k)
    scale = min(longest / max(w, h), MAX_ENLARGEMENT)
    w_new, h_new = max(round(w * scale), 1), max(round(h * scale), 1)
    colour = _resize(picture[y : y + h, x : x + w], h_new, w_new)
    softness = max(0.9 * scale, 0.5)  # pixels of the scene, sigma: smooths the steps of an enlarged mask
    mask = _resize(cv2.GaussianBlur(piece, (0, 0), softness / scale)[y : y + h, x : x + w], h_new, w_new)
    if rng.random() < 0.5:
        colour, mask = colour[:, ::-1], mask[:, ::-1]
    angle = np.clip(rng.normal(0, 20), -60, 60)  # degrees
    cos, sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
    w_box, h_box = int(w_new * cos + h_new * sin) + 5, int(w_new * sin + h_new * cos) + 5  # 2 px of margin
    turn = cv2.getRotationMatrix2D(((w_new - 1) / 2, (h_new - 1) / 2), angle, 1.0)
    turn[:, 2] += ((w_box - w_new) / 2, (h_box - h_new) / 2)
    colour = cv2.warpAffine(np.ascontiguousarray(colour), turn, (w_box, h_box), borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpAffine(np.ascontiguousarray(mask), turn, (w_box, h_box))
    # The outermost pixels contain the old background's colour, so the new edge is just inside the old one.
    alpha = np.clip(0.5 + max(2 * softness, 1.5) * (mask - 0.65), 0, 1)
    return _recolour(rng, colour, strength=0.6), alpha


def _background(rng: np.random.Generator, photographs: Photographs, size: int, *, but: str) -> np.ndarray:
    """A recoloured crop of any photograph except `but`, half of them textures: (size, size, 3) uint8."""
    if rng.random() < 0.5:
        picture = _texture(str(rng.choice(photographs.textures)))
        picture = np.rot90(picture, int(rng.integers(4)))
    else:
        picture = _labelled(str(rng.choice([name for name in photographs.labelled if name != but])))[0]
    crop = picture[_window(rng, picture.shape[:2], (0.3, 0.9))][:, :: rng.choice([-1, 1])]
    return _recolour(rng, _resize(np.ascontiguousarray(crop), size, size), strength=1.0)


def _window(rng: np.random.Generator, size_hw: tuple[int, int], shares: tuple[float, float]) -> tuple[slice, slice]:
    """A square window whose side is a random share of the shorter side."""
    side = int(min(size_hw) * rng.uniform(*shares))
    y, x = (int(rng.integers(length - side + 1)) for length in size_hw)
    return slice(y, y + side), slice(x, x + side)


def _resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes without aliasing and without ringing."""
    shrinks = height * width < picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _recolour(rng: np.random.Generator, picture: np.ndarray, *, strength: float) -> np.ndarray:
    """Changes brightness, contrast, saturation and tint of (H, W, 3) uint8 by one random affine map of its colours."""
    contrast, saturation = 1 + strength * rng.uniform(-0.4, 0.3), 1 + strength * rng.uniform(-0.6, 0.4)
    tint = 1 + strength * rng.uniform(-0.2, 0.2, 3)
    grey = np.tile([0.299, 0.587, 0.114], (3, 1))
    matrix = contrast * tint[:, None] * (saturation * np.eye(3) + (1 - saturation) * grey)
    shift = 128 * (1 - contrast) + strength * rng.uniform(-30, 30)
    return cv2.transform(picture, np.concatenate([matrix, np.full((3, 1), shift)], axis=1))


def _pick_object(rng: np.random.Generator, photographs: Photographs) -> tuple[str, int]:
    """Draws a photograph, weighted by its number of objects up to a limit, and one of its objects."""
    objects = {name: _cut_outs(name) for name in photographs.labelled}
    weights = np.array([min(len(numbers), 5) for numbers in objects.values()])
    name = str(rng.choice(list(objects), p=weights / weights.sum()))
    return name, int(rng.choice(objects[name]))


@functools.cache
def _labelled(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A photograph (H, W, 3) uint8 and its objects (M, H, W) bool, each with its parts."""
    picture = read_picture(ASSETS / "im" / f"{name}.jpg")
    regions, _ = read_masks(ASSETS / "gt" / f"{name}.png", picture.shape[:2])
    objects = [regions[[k, *(p - 1 for p in PARTS.get((name, k + 1), ()))]].any(0) for k in range(len(regions))]
    return picture, np.stack(objects)


def _cut_outs(name: str) -> list[int]:
    """Indices of the objects of a photograph that may be pasted elsewhere."""
    return [k for k in range(len(_labelled(name)[1])) if (name, k + 1) not in NEVER_CUT_OUT]


@functools.cache
def _texture(name: str) -> np.ndarray:
    """A photograph without objects, (H, W, 3) uint8."""
    return read_picture(ASSETS / "background" / f"{name}.jpg")


@functools.cache
def _largest_piece(name: str, k: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The largest connected piece of an object, (H, W) float32 in {0, 1}, and its x, y, width and height.

    An object that another one divides would be several pieces when it is pasted alone.
    """
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(_labelled(name)[1][k].astype(np.uint8))
    largest = 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())
    x, y, w, h = (int(value) for value in statistics[largest, :4])
    return (labels == largest).astype(np.float32), (x, y, w, h)
