"""What a figure shows is what it was given: places, sizes and numbers of what is drawn."""

import dataclasses

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgba

from stablesam_jax.metrics import stability
from stablesam_jax.predict.explain import Explanation
from stablesam_jax.prompts import Prompt
from stablesam_jax.visualize import (
    Sample,
    Wobble,
    alpha_figure,
    attention_figure,
    masks_figure,
    offsets_figure,
    pixels,
    samples_figure,
    save_figure,
    stability_figure,
    wobble_figure,
)

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
    return np.array([axis for axis in figure.axes if axis.get_label() != "<colorbar>"]).reshape(rows, -1)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("systems", [("alone",), ("before", "after")])
def test_a_row_for_each_object_and_a_column_for_each_system_beside_the_prompts(count, systems):
    axes = panels(wobble_figure([wobble(systems=systems)] * count), count)
    assert axes.shape == (count, 1 + len(systems))
    for line in axes:
        assert [axis.get_title() for axis in line] == [
            "2 prompts: noisy-box",
            *[f"{name}\n{name}'s figures" for name in systems],
        ]


@pytest.mark.parametrize("name", ["price_$5_vs_$6", r"a$\b$", "caf\udce9"])
def test_a_figure_holds_names_that_are_broken_formulas_or_no_utf_8(tmp_path, name):
    figure = wobble_figure([wobble(systems=(name,))])
    save_figure(figure, tmp_path / "a.png")
    assert pixels(figure).std() > 0
    assert panels(figure, 1)[0, 1].get_title().startswith(name.replace("\udce9", r"\udce9"))


def test_colours_are_shares_of_the_masks_on_one_scale_over_the_picture():
    figure = wobble_figure([wobble()])
    _, shares, _ = panels(figure, 1)[0]
    shown = shares.images[0].get_array()
    grey = 0.4 + 0.55 * 90 / 255
    assert np.allclose(shown[~OBJECT], grey)
    half = np.array(colormaps["YlGnBu"](0.5)[:3])
    assert np.allclose(shown[OBJECT], 0.2 * grey + 0.8 * half)
    (bar,) = (axis for axis in figure.axes if axis.get_label() == "<colorbar>")
    assert bar.get_ylim() == (0, 1)


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


CELLS = np.stack(np.meshgrid(np.arange(4) * 10 + 4.5, np.arange(3) * 10 + 4.5), axis=-1).astype(np.float32)


def explanation(prompts=(BOX, POINTS), cells=CELLS):
    """Of which nothing is the same for two prompts or two cells."""
    rng = np.random.default_rng(0)
    count, shape = len(prompts), cells.shape[:2]
    return Explanation(
        prompts=tuple(prompts),
        cells=cells,
        positions=cells + rng.uniform(-4, 4, (count, *cells.shape)).astype(np.float32),
        alpha=np.linspace(0.2, 0.7, 2 * count, dtype=np.float32).reshape(count, 2),
        before=rng.dirichlet(np.ones(cells.size // 2), count).reshape(count, *shape),
        after=rng.dirichlet(np.ones(cells.size // 2), count).reshape(count, *shape),
    )


PICTURE = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
BESIDE = Prompt(points=np.array([[3, 4], [20, 9], [0, 0]], np.float32), labels=np.array([0, 1, -1], np.int32))


def test_masks_tint_their_pixels_and_no_other():
    (axis,) = masks_figure(PICTURE, [BOX], OBJECT[None]).axes
    shown = axis.images[0].get_array()
    changed = np.abs(shown - PICTURE / 255).max(axis=-1) > 1e-6
    assert np.array_equal(changed, OBJECT)
    assert axis.get_xlim() == (-0.5, WIDTH - 0.5)
    assert axis.get_ylim() == (HEIGHT - 0.5, -0.5)


def test_several_masks_have_colours_of_their_own_which_their_prompts_share():
    other = np.zeros_like(OBJECT)
    other[22:28, 2:9] = True
    (axis,) = masks_figure(PICTURE, [BOX, POINTS], np.stack([OBJECT, other])).axes
    first, second = (outline.get_edgecolor()[0] for outline in axis.collections)
    assert not np.array_equal(first, second)
    assert np.array_equal(axis.patches[0].get_edgecolor(), first)
    assert to_rgba(axis.lines[0].get_color()) == tuple(second)


def test_a_dot_is_on_the_object_a_cross_is_not_and_a_point_that_is_none_is_not_drawn():
    (axis,) = masks_figure(PICTURE, [BESIDE], OBJECT[None]).axes
    drawn = {line.get_marker(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn == {"o": [[20, 9]], "X": [[3, 4]]}


def test_circles_lie_where_features_are_read_and_their_radii_are_in_the_ratio_of_the_weights():
    shown = explanation()
    axes = attention_figure(PICTURE, shown, 1).axes
    panels = [(shown.cells, shown.before[1]), (shown.positions[1], shown.after[1])]
    radii = []
    for axis, (places, weights) in zip(axes, panels, strict=True):
        (circles,) = axis.collections
        np.testing.assert_allclose(circles.get_offsets(), places.reshape(-1, 2))
        np.testing.assert_allclose(circles.get_widths(), circles.get_heights())
        radii.append(circles.get_widths() / weights.ravel())
    np.testing.assert_allclose(np.concatenate(radii), radii[0][0])  # one scale for both panels


def test_the_share_of_the_attention_on_the_object_is_in_the_title():
    shown = explanation()
    weights = np.zeros_like(shown.before)
    weights[:, 1, 2], weights[:, 0, 0] = 0.3, 0.1  # cell (24.5, 14.5) is on the object, (4.5, 4.5) is not
    shown = dataclasses.replace(shown, before=weights, after=weights[:, ::-1])
    before, after = (axis.get_title() for axis in attention_figure(PICTURE, shown, target=OBJECT).axes)
    assert before == "Without the plugin: 75% of the attention on the object"
    assert after.startswith("With it: ")


def test_arrows_start_at_the_centres_of_cells_and_end_at_sampled_positions():
    shown = explanation()
    (axis,) = offsets_figure(PICTURE, shown, 1).axes
    (arrows,) = axis.collections
    start = arrows.get_offsets()
    np.testing.assert_allclose(start, shown.cells.reshape(-1, 2))
    end = start + np.stack([arrows.U, arrows.V], axis=-1)
    np.testing.assert_allclose(end, shown.positions[1].reshape(-1, 2), rtol=1e-6)
    # In the units of the picture, so that an arrow is as long as the way it stands for.
    assert (arrows.angles, arrows.scale_units, arrows.scale) == ("xy", "xy", 1)


def test_of_a_large_map_every_second_cell_has_an_arrow():
    cells = np.stack(np.meshgrid(np.arange(64.0), np.arange(50.0)), axis=-1)
    (axis,) = offsets_figure(PICTURE, explanation([BOX], cells)).axes
    assert np.array_equal(axis.collections[0].get_offsets(), cells[::2, ::2].reshape(-1, 2))


def test_the_union_holds_every_mask_and_each_says_how_far_it_fills_it():
    masks = np.stack([OBJECT, np.roll(OBJECT, 5, axis=1), OBJECT & (np.arange(WIDTH) < 20)])
    prompts, union, *small = stability_figure(PICTURE, [BOX, BOX, POINTS], masks).axes
    area = 15 * 25  # columns 10 to 34
    assert [axis.get_title() for axis in small[:3]] == [f"{mask.sum() / area:.2f}" for mask in masks]
    tinted = [axis.images[0].get_array() for axis in (union, *small[:3])]
    everywhere, *each = [np.ptp(shown, axis=-1) > 1e-3 for shown in tinted]  # grey has three equal channels
    assert everywhere.sum() == area
    for mask, shown in zip(masks, each, strict=True):
        assert np.array_equal(shown, mask)
        assert not (shown & ~everywhere).any()
    assert f"mSF {stability(masks):.2f}" in union.get_figure(root=True).get_suptitle()
    assert len(prompts.patches) == 2


@pytest.mark.parametrize("count", [1, 2, 20])
def test_each_mask_has_a_panel(count):
    axes = stability_figure(PICTURE, [BOX] * count, np.stack([OBJECT] * count)).axes
    assert sum(axis.get_title() == "1.00" for axis in axes) == count


def test_a_dot_for_each_prompt_at_its_alpha():
    kinds = {"boxes": explanation([BOX] * 3), "points": explanation([POINTS])}
    axes = np.array(alpha_figure(PICTURE, kinds).axes).reshape(2, 2)
    for (picture, dots), (kind, shown) in zip(axes, kinds.items(), strict=True):
        assert picture.get_title() == kind
        assert len(picture.patches) + len(picture.lines) == len(shown.prompts)
        (drawn,) = (line for line in dots.lines if line.get_marker() == "o")
        np.testing.assert_array_equal(drawn.get_xdata(), shown.alpha[:, 0])
        assert dots.get_xlim() == (0, pytest.approx(1.3))  # the largest s, 0.6 + 0.7


def test_every_figure_can_be_saved_of_empty_and_of_full_masks_too(tmp_path):
    shown = explanation()
    for fill in (OBJECT & ~OBJECT, OBJECT | ~OBJECT):
        figures = [
            masks_figure(PICTURE, [BOX], fill[None]),
            attention_figure(PICTURE, shown, target=fill),
            offsets_figure(PICTURE, shown, target=fill),
            stability_figure(PICTURE, [BOX, BOX], np.stack([fill, fill])),
            alpha_figure(PICTURE, {"kind": shown}),
        ]
        for figure in figures:
            figure.savefig(tmp_path / "figure.png", dpi=40)
            assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_sheet_has_a_panel_for_each_sample_with_its_target_tinted_and_its_prompt():
    target = np.zeros((32, 32), bool)
    target[8:20, 4:12] = True
    guess = np.where(target[::4, ::4], 10.0, -10.0).astype(np.float32)
    prompts = [BOX, POINTS, Prompt(mask=guess)]
    samples = [
        Sample(
            picture=np.full((32, 32, 3), 90, np.uint8),
            target=target,
            others=np.stack([~target, np.zeros_like(target)]),
            prompt=prompt,
            caption=str(index),
        )
        for index, prompt in enumerate(prompts * 3)
    ]
    axes = samples_figure(samples).axes
    assert [axis.get_title() for axis in axes if axis.axison] == [str(index) for index in range(9)]
    shown = axes[0].images[0].get_array()
    assert np.array_equal((shown != shown[0, 0]).any(-1), target)
    assert len(axes[0].patches) == 1  # the box
    assert len(axes[1].lines) == 1  # the points
    contours = [len(axis.collections) for axis in axes[:3]]
    assert contours == [2, 2, 3]  # another object, the target; the mask of the prompt
