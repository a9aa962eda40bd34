"""A figure has a row for each object and a column for each system, whatever the masks look like."""

import numpy as np
import pytest

from stablesam_jax.prompts import Prompt
from stablesam_jax.visualize import Wobble, wobble_figure

HEIGHT, WIDTH = 30, 40
OBJECT = np.zeros((HEIGHT, WIDTH), bool)
OBJECT[5:20, 10:30] = True
BOX = Prompt(box=np.array([10, 5, 29, 19], np.float32))
POINTS = Prompt(points=np.array([[12, 7], [20, 9]], np.float32), labels=np.ones(2, np.int32))


def wobble(target=OBJECT, prompts=(BOX, POINTS), systems=("before", "after"), masks=None):
    masks = np.stack([target, np.zeros_like(target)]) if masks is None else masks
    return Wobble(
        kind="noisy-box",
        picture=np.full((*target.shape, 3), 90, np.uint8),
        target=target,
        prompts=prompts,
        masks=dict.fromkeys(systems, masks),
        captions={system: f"{system}'s figures" for system in systems},
    )


def panels(figure, rows):
    return np.array(figure.axes).reshape(rows, -1)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("systems", [("alone",), ("before", "after")])
def test_a_row_for_each_object_and_a_column_for_each_system_beside_the_prompts(count, systems):
    axes = panels(wobble_figure([wobble(systems=systems)] * count), count)
    assert axes.shape == (count, 1 + len(systems))
    for line in axes:
        assert [axis.get_title() for axis in line] == [
            "2 prompts: noisy-box",
            *[f"{name}: {name}'s figures" for name in systems],
        ]


def test_the_heat_is_the_share_of_the_masks_that_hold_a_pixel():
    _, heat, _ = panels(wobble_figure([wobble()]), 1)[0]
    assert np.array_equal(heat.images[0].get_array(), OBJECT / 2)
    assert heat.images[0].get_clim() == (0, 1)


def test_boxes_and_points_lie_on_the_picture():
    prompts, _, _ = panels(wobble_figure([wobble()]), 1)[0]
    (box,) = prompts.patches
    assert box.get_bbox().extents.tolist() == [10, 5, 29, 19]
    drawn = np.concatenate([line.get_xydata() for line in prompts.lines])
    assert drawn.tolist() == POINTS.points.tolist()


def outline(target):
    axis = panels(wobble_figure([wobble(target)]), 1)[0, 1]
    paths = [path.vertices for collection in axis.collections for path in collection.get_paths()]
    return np.concatenate(paths) if paths else np.zeros((0, 2))


def test_the_outline_runs_between_object_and_background():
    edge = outline(OBJECT)
    assert edge.min(0).tolist() == [9.5, 4.5]
    assert edge.max(0).tolist() == [29.5, 19.5]


def test_a_full_mask_is_outlined_along_the_border_and_an_empty_one_not_at_all():
    edge = outline(np.ones_like(OBJECT))
    assert edge.min(0).tolist() == [-0.5, -0.5]
    assert edge.max(0).tolist() == [WIDTH - 0.5, HEIGHT - 0.5]
    assert not len(outline(np.zeros_like(OBJECT)))


def test_masks_without_a_pixel_or_with_all_of_them_can_be_drawn(tmp_path):
    rows = [
        wobble(target, masks=np.stack([fill, fill]))
        for target in (OBJECT, ~OBJECT)
        for fill in (OBJECT & ~OBJECT, OBJECT | ~OBJECT)
    ]
    wobble_figure(rows).savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").stat().st_size > 1000
