"""What a system was trained on is not evaluated, whether it is named or a run remembers it."""

import json

import pytest
from PIL import Image

from eval import leaks
from eval.leaks import refuse_training_pictures
from stablesam_jax.data.sources import open_sources
from stablesam_jax.errors import InputError
from tests.reference import small


@pytest.fixture
def folders(tmp_path):
    """Training pictures, and other test pictures."""
    return small.save_pairs(tmp_path / "mine", 4, blocks=1), small.save_pairs(tmp_path / "test", 3, blocks=2)


def plant(training, test):
    """Puts a larger, mirrored copy of the first training picture among the test pictures."""
    copy = Image.open(training / "im" / "00.png").resize((96, 80)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    copy.save(test / "im" / "01.png")
    Image.new("L", (96, 80), 255).save(test / "gt" / "01.png")


def check(systems, trained_on, test):
    sources = open_sources([test])
    refuse_training_pictures(systems, trained_on, sources, lambda source: range(len(source)))


def test_a_named_training_picture_is_refused_resized_and_mirrored(folders):
    training, test = folders
    check(["sam_nano"], [training], test)
    plant(training, test)
    with pytest.raises(InputError, match=r"1 of 3 test pictures .*: test/01 shows the same as mine/00\."):
        check(["sam_nano"], [training], test)


def test_so_is_one_that_a_run_was_trained_on_but_not_one_that_it_held_out(folders, tmp_path):
    training, test = folders
    plant(training, test)
    run = tmp_path / "run"
    run.mkdir()
    (run / "plugin.safetensors").write_bytes(b"")
    (run / "config.json").write_text(json.dumps({"data_dir": [str(training), str(tmp_path / "moved away")]}))
    (run / "pictures.json").write_text(json.dumps({"training": {"mine/00": "", "mine/01": ""}, "held_out": {}}))
    for name in (run, run / "plugin.safetensors"):
        with pytest.raises(InputError, match="test/01 shows the same as mine/00"):
            check([f"sam_nano+{name}"], [], test)
    (run / "pictures.json").write_text(json.dumps({"training": {"mine/01": ""}, "held_out": {"mine/00": ""}}))
    check([f"sam_nano+{run}"], [], test)


def test_a_base_that_was_trained_itself_counts_beside_its_plugin(folders, tmp_path, capsys):
    training, test = folders
    plant(training, test)
    for name, data in {"base": training, "plugin": tmp_path / "elsewhere"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"data_dir": [str(data)]}))
        (tmp_path / name / "pictures.json").write_text(json.dumps({"training": {"mine/00": ""}}))
    small.save_nano(tmp_path / "base" / "model")
    (tmp_path / "plugin" / "plugin.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="test/01 shows the same as mine/00"):
        check([f"{tmp_path / 'base' / 'model'}+{tmp_path / 'plugin' / 'plugin.safetensors'}"], [], test)
    told = f"{tmp_path / 'plugin'}: 1 of its 1 training pictures are not found from here and not compared"
    assert told in capsys.readouterr().out


def test_a_run_of_many_pictures_is_not_read_unasked(folders, tmp_path, monkeypatch, capsys):
    training, test = folders
    plant(training, test)
    (tmp_path / "plugin.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"data_dir": [str(training)]}))
    (tmp_path / "pictures.json").write_text(json.dumps({"training": {"mine/00": "", "mine/01": ""}}))
    monkeypatch.setattr(leaks, "MOST_OF_A_RUN", 1)
    check([f"sam_nano+{tmp_path}"], [], test)
    assert "its 2 training pictures are not compared; --trained-on DIR does so" in capsys.readouterr().out


def test_a_damaged_record_is_named(folders, tmp_path):
    (tmp_path / "plugin.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "pictures.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json or pictures\.json is damaged"):
        check([f"sam_nano+{tmp_path}"], [], folders[1])
