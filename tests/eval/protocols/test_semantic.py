"""Class maps from prompts: regions, fusion and means are MESS's, and all systems get the same prompts."""

import csv
import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from eval.prompt_kinds import draw_region_prompt
from eval.protocols import semantic, systems
from eval.protocols.semantic import (
    MessConfig,
    begin,
    find_regions,
    fuse,
    in_picture,
    means_of_sets,
    mess,
    score_records,
    to_frame,
)
from stablesam_jax.config import Frame, PluginConfig
from stablesam_jax.data import datasets
from stablesam_jax.data.class_maps import ClassMap
from stablesam_jax.predict.preprocess import resized_size, to_model_frame
from tests.reference import small
from tests.reference.pictures import ramp, refusal, save

IGNORE = 255
SIDE = 60


def label_map():
    """Four classes in large pieces, two of class 2, and a corner that is ignored."""
    label = np.zeros((40, 60), np.uint8)
    label[:, 20:40] = 1
    label[:20, 40:] = 2
    label[25:35, 5:15] = 2
    label[30:, 50:] = 3
    label[:6, :6] = IGNORE
    return label


class Maps:
    """A set in memory."""

    name = "set"

    def __init__(self, *labels, classes=4, background=0):
        self.labels, self.classes, self.background = labels, classes, background
        self.names = [f"set/{index}" for index in range(len(labels))]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return ClassMap(self.names[index], ramp(*self.labels[index].shape), self.labels[index])

    def __iter__(self):
        return (self[index] for index in range(len(self)))


def evaluate(system, maps, config):
    records = [begin(system, labelled, maps, config)() for labelled in maps]
    found = score_records(records, maps, config)
    return found.summary, found.lines


class Stub:
    """A system whose masks are a function of the prompt's place; records the prompts. All three masks differ."""

    def __init__(self, answer, *, plugin=None, base=None):
        self.sam = SimpleNamespace(config=SimpleNamespace(frame=Frame(SIDE), plugin=plugin))
        self.answer, self.base = answer, base
        self.prompts, self.pictures = [], 0

    def set_image(self, picture):
        self.pictures += 1

    def without_plugin(self):
        return self.base

    def predict_low_res(self, *, multimask_output, **arguments):
        assert multimask_output
        self.prompts.append(arguments)
        places = arguments["box"][:, 0] if "box" in arguments else arguments["point_coords"][:, 0]
        masks = np.full((len(places), 3, SIDE, SIDE), -50, np.float32)
        for logits, place in zip(masks, places, strict=True):
            found = self.answer(place)
            logits[0, : found.shape[0], : found.shape[1]] = found
        return masks, np.zeros((len(places), 3), np.float32)


def perfect(label):
    """The region whose rectangle or pixel the prompt is."""
    regions = find_regions(label, {IGNORE})

    def answer(place):
        def distance(region):
            x, y = region.corner
            height, width = region.mask.shape
            if len(place) == 4:
                return np.abs(place - (x, y, x + width, y + height)).sum()
            column, row = int(place[0]) - x, int(place[1]) - y
            return 0 if 0 <= row < height and 0 <= column < width and region.mask[row, column] else 1

        region = min(regions, key=distance)
        logits = np.full(label.shape, -1, np.float32)
        x, y = region.corner
        logits[y : y + region.mask.shape[0], x : x + region.mask.shape[1]][region.mask] = 1
        return logits

    return answer


def silent(place):
    return np.full((40, 60), -1, np.float32)


def config(**changes):
    options = {"system": ("a",), "data_dir": ("b",), "output": "c", "scale": SIDE} | changes
    return MessConfig(**options)


# figures


def test_the_true_masks_score_one_under_every_prompt_but_noisy_boxes():
    kinds = ("oracle-point", "oracle-box", "random-point")
    summary, lines = evaluate(Stub(perfect(label_map())), Maps(label_map()), config(prompts=kinds))
    assert summary == {kind: {"miou": 1} for kind in kinds}
    assert {line["iou"] for line in lines} == {"1.000000"}
    assert sum(line["pixels"] for line in lines if line["kind"] == "oracle-box") == 40 * 60 - 36


def test_a_system_that_never_answers_finds_no_class_but_what_is_left_over():
    objects = np.where(label_map() == 0, 1, label_map()).astype(np.uint8)
    summary, lines = evaluate(Stub(silent), Maps(objects), config())
    assert {kind: values["miou"] for kind, values in summary.items()} == dict.fromkeys(config().prompts, 0)
    summary, lines = evaluate(Stub(silent), Maps(label_map()), config(prompts=("oracle-box",)))
    share = np.mean(label_map()[label_map() != IGNORE] == 0)
    assert [float(line["iou"]) for line in lines] == pytest.approx([share, 0, 0, 0], abs=1e-6)
    assert summary["oracle-box"]["miou"] == pytest.approx(share / 4)


def test_pixels_are_counted_over_the_whole_set():
    # Class 1 is found in one picture of two: its IoU is over both, not the mean of 1 and 0.
    large, little = np.ones((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    little[:10, :10] = 1
    answers = {(0, 0, 60, 40): np.ones((40, 60), np.float32)}
    stub = Stub(lambda place: answers.get(tuple(place.round().astype(int)), silent(place)))
    summary, lines = evaluate(stub, Maps(large, little, classes=2), config(prompts=("oracle-box",)))
    iou = {line["class"]: float(line["iou"]) for line in lines}
    # The region of class 0 in the second picture has the whole picture as its rectangle: all of it becomes class 0.
    assert iou[1] == pytest.approx(2400 / 2500)
    assert iou[0] == pytest.approx(2300 / 2400, abs=1e-6)
    assert summary["oracle-box"]["miou"] == pytest.approx((2400 / 2500 + 2300 / 2400) / 2)


def test_every_system_gets_the_same_prompts_and_encodes_a_picture_once():
    label = label_map()
    stubs = [Stub(perfect(label)), Stub(silent)]
    for stub in stubs:
        evaluate(stub, Maps(label, label), config())
        assert stub.pictures == 2
        assert len(stub.prompts) == 2 * 4
    for first, second in zip(stubs[0].prompts, stubs[1].prompts, strict=True):
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[name], second[name]) for name in first)
    # Prompts of the second picture, which has another name, are others.
    assert not np.array_equal(stubs[0].prompts[2]["point_coords"], stubs[0].prompts[6]["point_coords"])


def test_a_plugins_logits_are_added_to_those_of_its_base():
    half = [np.zeros((40, 60), bool), np.zeros((40, 60), bool)]
    half[0][:, :30], half[1][:, 20:] = True, True

    def answer(mask, sure):
        return lambda place: np.where(mask, sure, -1).astype(np.float32)

    label = np.ones((40, 60), np.uint8)
    found = {}
    for add_base in (True, False):
        stub = Stub(answer(half[0], 3), plugin=PluginConfig(), base=Stub(answer(half[1], 2)))
        found[add_base], _ = evaluate(stub, Maps(label, classes=2), config(prompts=("oracle-box",), add_base=add_base))
        assert len(stub.base.prompts) == add_base
    assert found[True]["oracle-box"]["miou"] == 1  # 3 - 1, 3 + 2 and 2 - 1: class 1 everywhere
    assert found[False]["oracle-box"]["miou"] == 0.25  # half of class 1, and a class 0 that is not there
    without = Stub(answer(half[0], 3), base=Stub(silent))
    evaluate(without, Maps(label, classes=2), config(prompts=("oracle-box",)))
    assert not without.base.prompts


def test_regions_of_the_background_may_be_left_unprompted():
    counts = {}
    for prompted in (True, False):
        stub = Stub(silent)
        evaluate(stub, Maps(label_map()), config(prompts=("oracle-box",), background_prompts=prompted))
        counts[prompted] = len(stub.prompts[0]["box"])
    regions = find_regions(label_map(), {IGNORE})
    assert counts == {True: len(regions), False: sum(region.label > 0 for region in regions)}
    evaluate(stub, Maps(label_map(), background=None), config(prompts=("oracle-box",), background_prompts=False))
    assert len(stub.prompts[1]["box"]) == len(regions)


# regions


def literal_regions(label):
    """Flood fill, pixel by pixel, over shared sides; (class, pixels) of all that are large enough."""
    seen, found = np.zeros(label.shape, bool), []
    for start in zip(*np.nonzero(label != IGNORE), strict=True):
        if seen[start]:
            continue
        seen[start], waiting, pixels = True, [start], []
        while waiting:
            row, column = waiting.pop()
            pixels.append((int(row), int(column)))
            for place in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                inside = 0 <= place[0] < label.shape[0] and 0 <= place[1] < label.shape[1]
                if inside and not seen[place] and label[place] == label[start]:
                    seen[place] = True
                    waiting.append(place)
        if len(pixels) >= 10:
            found.append((int(label[start]), frozenset(pixels)))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_regions_are_those_of_a_flood_fill_the_largest_first(seed):
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 1, 2, IGNORE], (12, 15), p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
    label = np.kron(coarse, np.ones((3, 3), np.uint8))
    regions = find_regions(label, {IGNORE})
    found = []
    for region in regions:
        rows, columns = np.nonzero(region.mask)
        x, y = region.corner
        found.append((region.label, frozenset(zip((rows + y).tolist(), (columns + x).tolist(), strict=True))))
    assert sorted(found, key=hash) == sorted(literal_regions(label), key=hash)
    sizes = [(-region.mask.sum(), region.label) for region in regions]
    assert sizes == sorted(sizes)
    assert len(regions) > 5


def test_small_regions_are_dropped_and_the_hundred_largest_kept():
    label = np.zeros((150, 150), np.uint8)
    label[:3, :3] = 1
    assert {region.label for region in find_regions(label, {IGNORE})} == {0}
    label[3, 0] = 1  # ten pixels
    assert {region.label for region in find_regions(label, {IGNORE})} == {0, 1}
    label[:] = 0
    for number in range(144):  # of 10 to 12 pixels, in rows of 12
        y, x = 12 * (number // 12), 12 * (number % 12)
        label[y, x : x + 10 + (number % 3 > 0) + (number % 3 > 1) - 1] = 1
        label[y + 1, x] = 1
    regions = find_regions(label, {IGNORE})
    assert len(regions) == 100
    assert [int(region.mask.sum()) for region in regions[1:]] == [12] * 48 + [11] * 48 + [10] * 3


def test_without_a_region_class_0_is_prompted_in_the_corner():
    (region,) = find_regions(np.full((20, 20), IGNORE, np.uint8), {IGNORE})
    assert (region.label, region.corner, region.mask.tolist()) == (0, (0, 0), [[True]])
    stub = Stub(silent)
    evaluate(stub, Maps(np.full((40, 60), IGNORE, np.uint8)), config())
    assert [list(next(iter(call.values())).reshape(-1)) for call in stub.prompts[:3]] == [
        [0, 0],
        [0, 0, 1, 1],
        [0, 0],
    ]
    summary, lines = evaluate(stub, Maps(np.full((40, 60), IGNORE, np.uint8)), config())
    assert all(math.isnan(values["miou"]) for values in summary.values())
    assert lines == []


# frames


def test_a_network_of_the_frames_size_sees_prompts_where_they_were_drawn():
    size_hw = (333, 500)
    frame_hw = resized_size(size_hw, Frame(1024))
    label = np.zeros(size_hw, np.uint8)
    label[100:200, 150:321] = 1
    framed = to_frame(label, frame_hw)
    assert framed.shape == frame_hw
    region = next(region for region in find_regions(framed, {IGNORE}) if region.label == 1)
    key = {"corner": region.corner, "size_hw": frame_hw, "picture_id": "a", "object_id": 0, "seed": 0}
    for kind in ("oracle-box", "oracle-point", "noisy-box"):
        prompt = draw_region_prompt(kind, region.mask, **key)
        arguments = in_picture([prompt], frame_hw, size_hw)
        drawn = prompt.points if prompt.box is None else prompt.box.reshape(2, 2)
        given = next(iter(arguments.values())).reshape(-1, 2)
        assert to_model_frame(given, size_hw, Frame(1024)) == pytest.approx(drawn, abs=1e-4)
    assert in_picture([draw_region_prompt("oracle-box", region.mask, **key)], frame_hw, size_hw)["box"][0, 0] == (
        pytest.approx([150, 100, 321, 200], abs=0.5)
    )


def test_the_frame_takes_the_nearest_pixel():
    label = np.array([[0, 1], [2, IGNORE]], np.uint8)
    assert to_frame(label, (4, 4)).tolist() == np.kron(label, np.ones((2, 2), np.uint8)).tolist()


# fusion


def literal_fusion(prompts, classes, background):
    """SAM-MESS, line by line: `prompts` are (class, logits)."""
    height, width = prompts[0][1].shape
    scores = np.zeros((classes + 1, height, width))
    for number in {number for number, _ in prompts}:
        scores[number] = np.max([logits for own, logits in prompts if own == number], axis=0)
    nowhere = scores.max(axis=0) <= 0
    scores[classes if background is None else background, nowhere] = 1
    return scores[:-1].argmax(axis=0)


@pytest.mark.parametrize("background", [0, 2, None])
@pytest.mark.parametrize("present", [(1,), (0, 3), (0, 1, 2, 3), (2, 3), (3, 1, 1, 0)])
def test_fusion_is_that_of_mess(background, present):
    rng = np.random.default_rng(len(present))
    prompts = [(number, rng.integers(-4, 3, (8, 9)).astype(np.float32)) for number in present]
    best = {}
    for number, logits in prompts:
        best[number] = np.maximum(best.get(number, logits), logits)
    fused = fuse(best, classes=4, background=background)
    assert np.array_equal(fused, literal_fusion(prompts, 4, background))


# means


def figures(value):
    return {"oracle-box": {"miou": value}}


def test_the_four_tasks_of_paxray_are_one_set_of_its_domain():
    tasks = {
        f"mess/paxray-{task}": figures(value) for task, value in zip(datasets.PAXRAY_TASKS, (1, 2, 3, 6), strict=True)
    }
    sets = tasks | {f"mess/{name}": figures(9) for name in ("kvasir-instrument", "chase-db1", "cryonuseg", "suim")}
    means = means_of_sets(sets)
    assert list(means) == ["mess/paxray-4", "Medical Sciences", "Agriculture & Biology (1 of 3 sets)", "mean"]
    assert [summary["oracle-box"]["miou"] for summary in means.values()] == [3, (3 + 3 * 9) / 4, 9, (3 + 4 * 9) / 5]


def test_all_sets_of_mess_have_five_domains_and_a_mean_of_22():
    sets = {name: figures(float(number)) for number, name in enumerate(datasets.MESS)}
    means = means_of_sets(sets)
    assert list(means) == ["mess/paxray-4", *semantic.DOMAINS, "mean"]
    singles = [values["oracle-box"]["miou"] for name, values in sets.items() if "paxray" not in name]
    assert means["mean"]["oracle-box"]["miou"] == pytest.approx(
        (sum(singles) + means["mess/paxray-4"]["oracle-box"]["miou"]) / 22
    )


def test_ones_own_sets_have_no_domain_and_one_set_no_mean():
    assert means_of_sets({"fields": figures(1)}) == {}
    assert list(means_of_sets({"fields": figures(1), "mess/paxray-bones": figures(1)})) == [
        "mess/paxray-4 (1 of 4 tasks)", "Medical Sciences (1 of 4 sets)", "mean",
    ]  # fmt: skip


# the command


def write(folder, size=(40, 60)):
    for stem in "ab":
        save(folder / "im" / f"{stem}.png", ramp(*size))
        save(folder / "gt" / f"{stem}.png", np.asarray(Image.fromarray(label_map()).resize(size[::-1], 0)))
    (folder / "classes.json").write_text('{"0": "soil", "1": "crop", "2": "weed", "3": "stone"}')
    return folder


@pytest.mark.slow
def test_results_have_the_documented_form(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "load_model", small.by_name)
    options = MessConfig(
        system=("base", "base+plugin"),
        data_dir=(write(tmp_path / "one"), write(tmp_path / "two", (50, 50))),
        output=tmp_path / "out",
        prompts=("oracle-box", "random-point"),
        limit=1,
    )
    with small.quick_compilation():
        mess(options)
    stored = json.loads((options.output / "results.json").read_text())
    assert stored["meta"]["add_base"] is True
    assert stored["meta"]["router_token"] == "single"
    for sets in stored["systems"].values():
        assert list(sets) == ["one", "two", "mean"]
        for kind in options.prompts:
            average = (sets["one"][kind]["miou"] + sets["two"][kind]["miou"]) / 2
            assert sets["mean"][kind]["miou"] == pytest.approx(average)
    with open(options.output / "per_class.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["system", "data_set", "kind", "class", "pixels", "predicted", "agreed", "iou"]
    base, stable = ([line for line in lines if line["system"] == system] for system in options.system)
    for first, second in zip(base, stable, strict=True):  # a fresh plugin changes nothing, twice the logits neither
        assert abs(int(first["predicted"]) - int(second["predicted"])) < 100
    chosen = [float(line["iou"]) for line in base if line["data_set"] == "one" and line["kind"] == "oracle-box"]
    assert stored["systems"]["base"]["one"]["oracle-box"]["miou"] == pytest.approx(np.mean(chosen), abs=1e-6)


def test_the_router_reads_the_token_of_the_answer_with_that_option(tmp_path, monkeypatch):
    seen = []

    def note(predictor, *_):
        seen.append(predictor.sam)
        return lambda: {"truth": "", "confused": {}}

    monkeypatch.setattr(systems, "load_model", small.by_name)
    monkeypatch.setattr(semantic, "begin", note)
    folder = write(tmp_path / "one")
    for token in ("single", "answer"):
        mess(
            MessConfig(system=("base", "base+plugin"), data_dir=(folder,), output=tmp_path / token, router_token=token)
        )
    assert [sam.plugin and sam.plugin.output_token for sam in seen[::2]] == [None, 1, None, 2]  # of two pictures each


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"prompts": ("gt-box",)},
            "--prompts gt-box: unknown; choose from oracle-point, oracle-box, random-point, noisy-box",
        ),
        ({"scale": 0}, "--scale 0: must be at least 1"),
        ({"limit": 0}, "--limit 0: must be at least 1"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(tmp_path, change, words):
    options = MessConfig(system=("base",), data_dir=(tmp_path,), output=tmp_path / "out")
    assert words in refusal(mess, dataclasses.replace(options, **change))
    assert not options.output.exists()


def test_a_folder_may_not_have_the_name_of_a_mean(tmp_path):
    options = MessConfig(system=("base",), data_dir=(write(tmp_path / "General"),), output=tmp_path / "out")
    assert "General is the name of a mean" in refusal(mess, options)
