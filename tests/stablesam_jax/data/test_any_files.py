"""Whatever a file holds and whatever it is called: it is read right, or refused in one line."""

import contextlib
import io
import json
import pathlib
import tempfile
import warnings

import numpy as np
from faster_coco_eval.core import mask as mask_api
from hypothesis import strategies as st
from PIL import Image

from convert import check_data
from convert.build_dataset import build
from stablesam_jax.data import label_file, outlines, sources
from stablesam_jax.data.readers import PairsFolder
from stablesam_jax.errors import shown
from stablesam_jax.files.picture_file import read_header, read_picture
from tests.reference import strategies
from tests.reference.layouts import write_export
from tests.reference.pictures import disc, ramp, save
from tests.reference.strategies import examples, holds_for, right_or_refused


@contextlib.contextmanager
def folder():
    """An empty folder, removed at the end: a property has hundreds of examples."""
    with tempfile.TemporaryDirectory() as path:
        yield pathlib.Path(path)


def quietly(call, *arguments):
    """The result of a call whose hints and reports are not looked at."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # Pillow's own about broken files, and hints
        return call(*arguments)


@examples
def test_any_sound_picture_is_read_upright_or_is_of_32_bits(examples):
    def claim(file):
        suffix, data, size, orientation = file
        with folder() as place:
            path = place / f"a.{suffix}"
            path.write_bytes(data)
            picture = right_or_refused(read_picture, path)
            header = read_header(path)
        assert header.stored_size == size
        assert header.size == (size[::-1] if orientation >= 5 else size)
        if picture is not None:
            assert picture.shape == (*header.size[::-1], 3)
            assert picture.dtype == np.uint8
        else:
            assert suffix == "tif"

    holds_for(examples, strategies.picture_files(), claim)


@examples
def test_any_broken_picture_is_read_or_refused(examples):
    def claim(file):
        suffix, data = file
        with folder() as place:
            path = place / f"a.{suffix}"
            path.write_bytes(data)
            picture = quietly(right_or_refused, read_picture, path)
            quietly(right_or_refused, label_file.read_masks, path, None)
        assert picture is None or picture.ndim == 3

    holds_for(examples, strategies.broken(strategies.picture_files()), claim)


@examples
def test_any_mask_gives_its_numbers_or_is_refused(examples):
    def claim(case):
        label, suffix = case
        with folder() as place:
            path = save(place / f"a.{suffix}", Image.fromarray(label))
            found = right_or_refused(label_file.read_masks, path, label.shape)
        if found is None:
            return
        masks, numbers = found
        values = [value for value in np.unique(label.astype(int)).tolist() if value]
        ignored = 255 if values[-1] <= 255 else 65535
        assert list(numbers) == (values if len(values) == 1 else [value for value in values if value != ignored])
        for mask, number in zip(masks, numbers, strict=True):
            assert np.array_equal(mask, label == number)

    holds_for(examples, st.tuples(strategies.labels(), st.sampled_from(["png", "tif"])), claim)


@examples
def test_any_polygon_covers_what_the_coco_api_says(examples):
    def claim(case):
        polygons, width, height = case
        expected = mask_api.decode(mask_api.merge(mask_api.frPyObjects(polygons, height, width)))
        assert np.array_equal(outlines.mask(outlines.run_lengths(polygons, (width, height))), expected.astype(bool))

    sides = st.integers(1, 90)
    holds_for(examples, st.tuples(st.lists(strategies.polygons, min_size=1, max_size=3), sides, sides), claim)


def any_export(name, file):
    """Whatever is exchanged in an annotation file of an export, it is read right or refused, by every command."""

    def claim(content):
        with folder() as place:
            root = write_export(name, place / "set")
            (root / file).write_text(json.dumps(content) if not isinstance(content, str) else content)
            found = quietly(right_or_refused, sources.open_data, [root], [])
            for index in range(len(found) if found is not None else 0):
                labelled = right_or_refused(found.__getitem__, index)
                if labelled is not None:
                    assert labelled.masks.shape == (len(labelled.numbers), *labelled.picture.shape[:2])
                    assert labelled.masks.any((1, 2)).all()
                    assert len(set(labelled.numbers)) == len(labelled.numbers)
            with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
                quietly(check_data.main, [str(root)])

    return claim


def content_of(name, file):
    with folder() as place:
        return json.loads((write_export(name, place / "set") / file).read_text())


@examples
def test_any_coco_json_is_right_or_refused(examples):
    file = "annotations.json"
    holds_for(examples, strategies.spoilt(content_of("coco", file)), any_export("coco", file))


@examples
def test_any_json_of_labelme_is_right_or_refused(examples):
    holds_for(examples, strategies.spoilt(content_of("labelme", "b.json")), any_export("labelme", "b.json"))


@examples
def test_any_json_of_sa_1b_is_right_or_refused(examples):
    holds_for(examples, strategies.spoilt(content_of("sa-1b", "b.json")), any_export("sa-1b", "b.json"))


@examples
def test_any_text_of_yolo_is_right_or_refused(examples):
    word = st.one_of(st.sampled_from(["0", "1", "0.5", "nan", "1e400", "-1", "é", "\0"]), st.floats(0, 1).map(str))
    text = st.lists(st.lists(word, max_size=9).map(" ".join), max_size=4).map("\n".join)
    holds_for(examples, text, any_export("yolo-beside", "b.txt"))


@examples
def test_any_name_of_a_picture_is_found_and_told_in_a_way_that_any_terminal_can_show(examples):
    def claim(names):
        with folder() as place:
            for name in names:
                save(place / "set" / "im" / f"{name}.png", ramp(40, 60))
                save(place / "set" / "gt" / f"{name}.png", disc())
            source = PairsFolder(place / "set")
            assert sorted(source.names) == sorted(f"set/{shown(name)}" for name in names)
            assert all(name.isprintable() for name in source.names)
            assert all(np.array_equal(source[index].masks, disc()[None]) for index in range(len(source)))
            (place / "set" / "gt" / f"{min(names)}.png").write_bytes(b"")
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                assert check_data.main([str(place / "set"), "--json", str(place / "found.json")]) == 1
            assert all(line.isprintable() for line in printed.getvalue().splitlines())
            assert json.loads((place / "found.json").read_text())["faults"]["mask"] == 1

    holds_for(examples, st.sets(strategies.names, min_size=2, max_size=2), claim)


@examples
def test_a_set_of_any_name_is_built_or_refused(examples):
    def claim(name):
        with folder() as place:
            save(place / name / "im" / "a.png", ramp(8, 12))
            save(place / name / "gt" / "a.png", disc(8, 12, 3))
            quietly(right_or_refused, build, "pairs", place / name, place / "built.data")

    holds_for(min(examples, 200), strategies.names, claim)
