"""A record gives back what it was made of; a damaged data set is named, never read wrong."""

import json
import pickle
import shutil

import numpy as np
import pytest

from convert.build_dataset import build
from stablesam_jax.data import built
from stablesam_jax.data.coco import CocoPictures
from stablesam_jax.data.readers import PairsFolder
from stablesam_jax.errors import InputError
from tests.reference.layouts import coco_json
from tests.reference.pictures import disc, exif, ramp, refusal, save


def layers_of(masks):
    return list(built._layers(np.array(masks)))


def rows(*numbers, count=4):
    mask = np.zeros((count, 3), bool)
    mask[list(numbers)] = True
    return mask


def test_one_object_is_a_mask_of_one_bit():
    (layer,) = layers_of([rows(0, 1)])
    assert layer.dtype == bool
    assert np.array_equal(built._read_png(built._png(layer)), rows(0, 1))


def test_objects_side_by_side_share_an_index_mask_and_overlap_begins_another():
    first, second = layers_of([rows(0), rows(2), rows(2, 3)])
    assert first[:, 0].tolist() == [1, 0, 2, 0]
    assert second[:, 0].tolist() == [False, False, True, True]


@pytest.mark.parametrize("count", [1, 2, 255, 256, 600])
def test_any_number_of_objects_comes_back_in_order(count):
    masks = np.stack([rows(number, count=count) for number in range(count)])
    layers = [built._read_png(built._png(layer)) for layer in built._layers(masks)]
    assert len(layers) == -(-count // 255)
    assert np.array_equal(np.concatenate([built._masks(layer) for layer in layers]), masks)


@pytest.mark.parametrize("seed", range(5))
def test_random_overlaps_come_back(seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((7, 6, 5)) < rng.choice([0.02, 0.2])
    masks[:, 0, 0] |= ~masks.any((1, 2))
    layers = [built._read_png(built._png(layer)) for layer in built._layers(masks)]
    assert np.array_equal(np.concatenate([built._masks(layer) for layer in layers]), masks)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of pairs in several formats, and what was built of it."""
    source = tmp_path_factory.mktemp("data") / "My set"
    for stem, suffix in (("b", "jpg"), ("a-b", "png"), ("a", "webp"), ("c", "tif")):
        if suffix == "jpg":
            save(source / "im" / f"{stem}.{suffix}", ramp(60, 40), exif=exif(6))
        else:
            save(source / "im" / f"{stem}.{suffix}", ramp(40, 60))
        save(source / "gt" / f"{stem}.png", disc().astype(np.uint8) * (9 if stem == "c" else 255))
    label = disc().astype(np.uint8) * 7 + disc(radius=5)
    save(source / "gt" / "a.png", label)
    return source, build("pairs", source, source.parent / "built")


def equal(source, copy):
    assert copy.names == source.names
    for index in range(len(source)):
        one, other = source[index], copy[index]
        assert other.name == one.name
        assert np.array_equal(other.picture, one.picture)
        assert np.array_equal(other.masks, one.masks)
        assert (other.numbers, other.categories) == (one.numbers, one.categories)


def test_a_built_folder_equals_the_plain_one_in_arrays_names_and_numbers(folders):
    source, folder = folders
    assert folder.name == "my_set"
    copy = built.open_built(folder)
    equal(PairsFolder(source), copy)
    assert copy.name == "My set"
    assert copy[1].numbers == (7, 8)


def test_objects_that_overlap_keep_their_numbers_and_categories(tmp_path):
    content = coco_json(["a.jpg", "b.jpg"])
    more = content["annotations"][0] | {"id": 2**40, "segmentation": [[15, 15, 40, 15, 40, 30, 15, 30]]}
    content["annotations"].append(more)
    source = tmp_path / "things"
    for file in ("a.jpg", "b.jpg"):
        save(source / "images" / file, ramp(40, 60))
    (source / "annotations.json").write_text(json.dumps(content))
    copy = built.open_built(build("coco", source, tmp_path / "built"))
    equal(CocoPictures("things", source / "images", source / "annotations.json", []), copy)
    assert copy[0].numbers == (100, 2**40)
    assert copy[0].categories == ("thing", "thing")


def test_a_reader_can_be_sent_to_another_process_and_ends_where_its_pictures_end(folders):
    copy = pickle.loads(pickle.dumps(built.open_built(folders[1])))
    assert copy[0].name == "My set/a-b"
    assert copy[-1].name == copy.names[-1]
    with pytest.raises(IndexError):
        copy[4]


def test_tfds_itself_reads_the_folder_and_the_pictures_are_the_files(folders):
    import tensorflow_datasets as tfds

    builder = tfds.builder("my_set", data_dir=folders[1].parent)
    decoders = {"picture": tfds.decode.SkipDecoding()}
    records = builder.as_data_source(built.SPLIT, decoders=decoders)
    stored = {record["name"].decode(): record["picture"] for record in records}
    assert stored["My set/b"] == (folders[0] / "im" / "b.jpg").read_bytes()
    assert builder.as_data_source(built.SPLIT)[0]["picture"].shape == (40, 60, 3)


DAMAGE = {
    "records cut": lambda place: _cut(next(place.glob("*array_record*"))),
    "records missing": lambda place: next(place.glob("*array_record*")).unlink(),
    "names missing": lambda place: (place / "metadata.json").unlink(),
    "names cut": lambda place: _cut(place / "metadata.json"),
    "features cut": lambda place: _cut(place / "features.json"),
    "information cut": lambda place: _cut(place / "dataset_info.json"),
    "another data set of tfds": lambda place: (place / "metadata.json").write_text("{}"),
    "names as numbers": lambda place: _change(place / "metadata.json", names={"a": 1}),
    "other names": lambda place: _change(place / "metadata.json", names=["a"]),
}


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_refused(folders, tmp_path, kind):
    folder = shutil.copytree(folders[1], tmp_path / "copy")
    DAMAGE[kind](folder / built.VERSION)
    message = refusal(built.open_built, folder)
    assert message.startswith(f"{folder}: no data set that `stablesam build` has written, or damaged (")


def test_features_of_another_module_are_refused_and_it_is_not_imported(folders, tmp_path, monkeypatch):
    folder = shutil.copytree(folders[1], tmp_path / "copy")
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    file = folder / built.VERSION / "features.json"
    file.write_text(file.read_text().replace("tensorflow_datasets.core.features.text_feature", "planted"))
    assert "features of planted" in refusal(built.open_built, folder)


def test_a_flipped_bit_is_never_a_picture(folders, tmp_path):
    truth = [built.open_built(folders[1])[index] for index in range(4)]
    folder = shutil.copytree(folders[1], tmp_path / "copy")
    path = next((folder / built.VERSION).glob("*array_record*"))
    sound = path.read_bytes()
    refused = 0
    written = np.flatnonzero(np.frombuffer(sound, np.uint8))  # the rest of a small file is padding
    for place in written[:: len(written) // 60]:
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        try:
            copy = built.open_built(folder)
            for index, labelled in enumerate(truth):
                assert np.array_equal(copy[index].picture, labelled.picture)
                assert np.array_equal(copy[index].masks, labelled.masks)
        except InputError as error:
            refused += "damaged (" in str(error)
    assert refused > 30
