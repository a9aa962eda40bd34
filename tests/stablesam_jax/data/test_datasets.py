"""Every data set of the project is read from the layout that its release has."""

import numpy as np
import pytest

from stablesam_jax.data import datasets
from tests.reference import layouts
from tests.reference.layouts import write_official
from tests.reference.pictures import disc, ramp, refusal, save


@pytest.mark.parametrize("name", layouts.ONE_OBJECT)
def test_pictures_of_one_object_are_read_from_their_layout(tmp_path, name):
    write_official(name, tmp_path)
    (source,) = datasets.open_dataset(name, tmp_path, [])
    assert source.names == [f"{name}/a"]
    assert source[0].picture.shape == (40, 60, 3)
    assert np.array_equal(source[0].masks, disc()[None])


@pytest.mark.parametrize("name", layouts.INSTANCES)
def test_coco_files_are_read_from_their_layout(tmp_path, name):
    write_official(name, tmp_path)
    (source,) = datasets.open_dataset(name, tmp_path, [])
    assert source.names == [f"{name}/{'000000000139' if name == 'coco-val2017' else 'a'}"]
    assert source[0].categories == ("thing",)
    assert source[0].masks.sum() == 20 * 15


@pytest.mark.parametrize("name", layouts.MESS)
def test_class_maps_are_read_from_their_layout(tmp_path, name):
    write_official(f"mess/{name}", tmp_path)
    (source,) = datasets.open_dataset(f"mess/{name}", tmp_path, [])
    assert (source.classes, source.background) == layouts.MESS[name][2:]
    assert source.names == [f"mess/{name}/{'001' if name == 'cwfid' else 'a'}"]
    assert source[0].picture.shape == (40, 60, 3)
    assert np.array_equal(source[0].label, disc())


def test_no_data_set_is_without_a_fixture():
    assert sorted(datasets.NAMES) == sorted(["hqseg-44k", *layouts.NAMES])


def test_hqseg_44k_is_its_seven_parts_in_their_order(tmp_path):
    write_official("hqseg-44k", tmp_path)
    parts = datasets.open_dataset("hqseg-44k", tmp_path, [])
    assert [part.name for part in parts] == list(layouts.HQSEG_44K)
    (tmp_path / "cascade_psp" / "ecssd" / "a.jpg").unlink()
    assert "ecssd: holds no picture NAME.jpg" in refusal(datasets.open_dataset, "hqseg-44k", tmp_path, [])


def test_counts_and_classes_add_up_to_what_the_papers_report():
    assert datasets.official_count("hqseg-44k") == 44_320
    assert sum(datasets.official_count(name) for name in ("dis5k-vd", "coift", "hrsod", "thinobject5k-te")) == 1_537
    once = [row for name, row in datasets.MESS.items() if name not in {"mess/paxray-bones", "mess/paxray-lungs"}]
    assert sum(row.count for row in once) == 25_079 + 180  # two of PAXRay's four tasks are left, of the same pictures
    assert sum(row.classes for row in datasets.MESS.values()) == 515
    assert len(datasets.MESS) == 25
    assert datasets.official_count("sginw/Rail") is None


def test_pictures_of_cwfid_that_are_not_in_the_test_split_are_passed_over(tmp_path):
    write_official("mess/cwfid", tmp_path)
    save(tmp_path / "cwfid" / "images" / "002_image.png", ramp(40, 60))
    (source,) = datasets.open_dataset("mess/cwfid", tmp_path, [])
    assert source.names == ["mess/cwfid/001"]


def test_hrsod_is_not_read_from_the_masks_that_hold_instance_numbers(tmp_path):
    write_official("hrsod", tmp_path)
    folder = tmp_path / "thin_object_detection" / "HRSOD"
    (folder / "masks_max255").rename(folder / "masks")
    assert "HRSOD/masks_max255: no such folder" in refusal(datasets.open_dataset, "hrsod", tmp_path, [])


def test_the_domains_of_mess_have_as_many_sets_as_the_paper_says():
    domains = {name: row.domain for name, row in datasets.MESS.items() if "paxray" not in name}
    counts = {domain: list(domains.values()).count(domain) for domain in dict.fromkeys(domains.values())}
    assert {row.domain for name, row in datasets.MESS.items() if "paxray" in name} == {"Medical Sciences"}
    assert counts == {
        "General": 6,
        "Earth Monitoring": 5,
        "Medical Sciences": 3,  # and PAXRay-4
        "Engineering": 4,
        "Agriculture & Biology": 3,
    }
