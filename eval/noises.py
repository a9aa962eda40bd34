"""Noises of boxes and clicks by the names of their papers, each a curve from good prompts to bad ones, for `wobble`.

The paper's own noise and numbers of points are kinds of `prompt_kinds`. The others are drawn in pixels of the picture,
from the true box or the true mask.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from stablesam_jax import prompts

BoxDraw = Callable[..., np.ndarray]  # (rng, box, size_hw=...) -> box
ClickDraw = Callable[[np.random.Generator, np.ndarray], np.ndarray]  # (rng, mask) -> (1, 2) point

SAM, CDCONCEPTS, PP_SAM, BREPS = (0.5, 1, 2, 4), (0.05, 0.1, 0.2, 0.3), (10, 25, 50, 100), (0.1, 0.2, 0.3)
CDCONCEPTS_CLICK = (0, 10, 20, 40)
RCLICKS: tuple[prompts.ClickDensity, ...] = ("likely", "distance", "uniform", "unlikely")

BOX_DRAWS: Mapping[str, BoxDraw] = {
    **{f"sam-{x:g}": functools.partial(prompts.jittered_box, strength=x) for x in SAM},
    **{f"cdconcepts-{x:g}": functools.partial(prompts.uneven_box, share=x) for x in CDCONCEPTS},
    **{f"pp-sam-{x}": functools.partial(prompts.outward_box, most=x) for x in PP_SAM},
    **{f"breps-{x:g}": functools.partial(prompts.shifted_box, scale=x) for x in BREPS},
}
CLICK_DRAWS: Mapping[str, ClickDraw] = {
    **{f"rclicks-{kind}": functools.partial(prompts.drawn_click, kind=kind) for kind in RCLICKS},
    **{f"cdconcepts-click-{x}": functools.partial(prompts.slipped_click, most=x) for x in CDCONCEPTS_CLICK},
}


class Noise(NamedTuple):
    """A curve."""

    title: str
    axis: str  # with the published strength in brackets
    kinds: Mapping[str, str]  # place on the axis -> kind of prompt, from good ones to bad ones


NOISES: Mapping[str, Noise] = {
    "hq-sam": Noise(
        "boxes",
        f"noise of the box, share of its side (noisy-box: {prompts.NOISE_SCALE:g})",
        {"0": "gt-box", "0.1": "noise-10", "0.2": "noise-20", "0.3": "noise-30", "0.4": "noisy-box", "0.5": "noise-50",
         "0.6": "noise-60"},
    ),
    "points": Noise(
        "points",
        "number of points",
        {"10": "10-points", "5": "5-points", "3": "3-points", "2": "2-points", "1": "1-point"},
    ),
    "sam": Noise(
        "boxes of SAM's training",
        "normal noise of each edge, times SAM's (1: 0.1 of the side, at most 20 of 1024 px)",
        {"0": "gt-box", **{f"{x:g}": f"sam-{x:g}" for x in SAM}},
    ),
    "cdconcepts": Noise(
        "boxes of CDConcepts-Eval",
        "noise of each edge, share of the shorter side (0.1)",
        {"0": "gt-box", **{f"{x:g}": f"cdconcepts-{x:g}" for x in CDCONCEPTS}},
    ),
    "pp-sam": Noise(
        "boxes of PP-SAM",
        "most pixels of each edge outward (50)",
        {"0": "gt-box", **{f"{x}": f"pp-sam-{x}" for x in PP_SAM}},
    ),
    "breps": Noise(
        "boxes of BREPS",
        "shift of the box, share of its side (0.3)",
        {"0": "gt-box", **{f"{x:g}": f"breps-{x:g}" for x in BREPS}},
    ),
    "rclicks": Noise("clicks of RClicks", "where the click falls", {kind: f"rclicks-{kind}" for kind in RCLICKS}),
    "cdconcepts-click": Noise(
        "clicks of CDConcepts-Eval",
        "most pixels beside the middle of the object (10)",
        {f"{x}": f"cdconcepts-click-{x}" for x in CDCONCEPTS_CLICK},
    ),
}  # fmt: skip
EXACT = "gt-box"  # the single kind that is one prompt


def kinds_of(noises: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds of prompts of some noises, each once."""
    return tuple(dict.fromkeys(kind for name in noises for kind in NOISES[name].kinds.values()))
