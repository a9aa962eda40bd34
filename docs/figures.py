"""`python -m docs.figures`: draws docs/wobble.png again, of the shipped models on embedded photographs."""

import pathlib

import numpy as np
from PIL import Image

from eval.prompt_kinds import draw_prompts
from stablesam_jax import Predictor, load_model
from stablesam_jax.metrics import mask_iou, stability
from stablesam_jax.visualize import Wobble, pixels, wobble_figure

ROOT = pathlib.Path(__file__).resolve().parents[1]
ASSETS = ROOT / "stablesam_jax" / "data" / "collage_assets"
SYSTEMS = ("sam_nano", "stable_sam_nano", "stable_sam_nano_one_object")
SHOWN = (("grace_hopper", (2, 3, 4, 5)), ("grace_hopper", (1,)))  # photograph, numbers of the object: person, flag
COUNT = 20


def main() -> None:
    """Writes the figure."""
    predictors = {name: Predictor(*load_model(name)) for name in SYSTEMS}
    figure = wobble_figure([row(predictors, *shown) for shown in SHOWN])
    figure.set_dpi(110)
    colours = Image.fromarray(pixels(figure)).quantize(256)  # a third of the bytes, for whoever clones
    colours.save(ROOT / "docs" / "wobble.png", optimize=True)


def row(predictors: dict[str, Predictor], name: str, numbers: tuple[int, ...]) -> Wobble:
    """Sloppy boxes of one object, and the masks of every system."""
    picture = np.asarray(Image.open(ASSETS / "im" / f"{name}.jpg").convert("RGB"))
    target = np.isin(np.asarray(Image.open(ASSETS / "gt" / f"{name}.png")), numbers)
    prompts = draw_prompts("noisy-box", target, picture_id=name, object_id=numbers[0], seed=0, count=COUNT)
    masks, captions = {}, {}
    for system, predictor in predictors.items():
        boxes = np.stack([prompt.box for prompt in prompts])
        masks[system] = predictor.predict(box=boxes, multimask_output=False, picture=predictor.encode(picture))[0][:, 0]
        iou = np.mean([mask_iou(mask, target) for mask in masks[system]])
        captions[system] = f"mIoU {100 * iou:.0f}, mSF {100 * stability(masks[system]):.0f}"
    return Wobble(picture=picture, target=target, kind="sloppy boxes", prompts=prompts, masks=masks, captions=captions)


if __name__ == "__main__":
    main()
