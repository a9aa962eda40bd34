"""Files are whole or as they were, and what the disk objects to is one line."""

import logging
import os
import resource

import pytest

from stablesam_jax.errors import InputError
from stablesam_jax.files.disk import check_writable, whole_file, write_text, writing


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a").write_text("before")
    return tmp_path / "a"


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_new_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with whole_file(tmp_path / "b") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "b").exists()
    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "c") as temporary:
        temporary.write_text("whole")
    assert contents(tmp_path) == {"b": "whole"}


def test_nothing_is_overwritten_unless_it_is_to_be(file):
    with pytest.raises(InputError, match="a: exists already, and nothing is overwritten"), whole_file(file):
        pass
    with whole_file(file, replace=True) as temporary:
        temporary.write_text("after")
        assert file.read_text() == "before"
    assert contents(file.parent) == {"a": "after"}


def test_a_place_that_cannot_be_written_to_is_named(file):
    with pytest.raises(InputError, match=r"c: cannot be written \(.*\)\. Make room, or give a place"):
        write_text(file / "c", "c")
    assert contents(file.parent) == {"a": "before"}


def test_a_text_file_is_as_it_was_where_the_disk_fills(file):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"a: cannot be written \(File too large\)"):
            write_text(file, "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(file.parent) == {"a": "before"}


def test_missing_folders_are_made(tmp_path):
    write_text(tmp_path / "runs" / "parity" / "b", "whole")
    assert contents(tmp_path / "runs" / "parity") == {"b": "whole"}


def test_text_is_utf_8_with_its_own_line_ends(file):
    write_text(file, "≈ 1\r\n2\n")
    assert file.read_bytes() == "≈ 1\r\n2\n".encode()


def test_a_name_that_is_no_utf_8_is_escaped(file):
    write_text(file, "caf\udce9 \ud800\n")
    assert file.read_text() == "caf\\udce9 \\ud800\n"


def test_where_a_file_could_not_be_written_is_said_beforehand(file):
    for path in (file / "absent" / "c", file.parent):
        with pytest.raises(InputError, match=rf"--json {path}: must be a file in a folder that can be written to or"):
            check_writable(path, "--json")
    for path in (file, file.parent / "new", file.parent / "absent" / "folder" / "new"):
        check_writable(path, "--json")
    assert contents(file.parent) == {"a": "before"}


def test_overlapping_writes_leave_the_log_as_it_was(tmp_path, caplog):
    log = logging.getLogger("absl")
    first, second = writing(tmp_path / "a"), writing(tmp_path / "b")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    log.error("unseen")
    second.__exit__(None, None, None)
    log.error("seen")
    assert [record.message for record in caplog.records] == ["seen"]
