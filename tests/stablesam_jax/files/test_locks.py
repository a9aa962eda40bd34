"""A folder has one owner, whose end, however it comes, frees it."""

import os
import resource
import signal
import subprocess
import sys

import pytest

from stablesam_jax.errors import InputError
from stablesam_jax.files.locks import owned

HOLD = """
import sys, time
from stablesam_jax.files.locks import owned
with owned(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_owner_is_refused_by_the_first_ones_name(tmp_path, holder):
    message = rf"run: in use by process {holder.pid} on .* since .*nothing was changed"
    with pytest.raises(InputError, match=message), owned(tmp_path / "run"):
        pass


def test_however_it_is_spelled(tmp_path, holder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for spelled in ("run", "./a/../run", "link/run"):
        with pytest.raises(InputError, match="in use"), owned(spelled):
            pass


def test_a_folder_beside_which_nothing_can_be_created_is_locked_itself(tmp_path, monkeypatch):
    folder = tmp_path / "volume"
    folder.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with owned(folder):
        assert [path.name for path in tmp_path.rglob("*")] == ["volume"]
        with pytest.raises(InputError, match="volume: in use by another process"), owned(folder):
            pass
    with owned(folder):
        pass


def test_a_killed_owner_leaves_the_folder_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with owned(tmp_path / "run"):
        assert (tmp_path / ".run.lock").exists()


def test_nothing_is_left_of_it(tmp_path):
    with owned(tmp_path / "a" / "b" / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_meanwhile_stays(tmp_path):
    with owned(tmp_path / "a" / "run"):
        (tmp_path / "a" / "run").mkdir()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run"]


def test_a_full_disk_does_not_keep_a_folder_from_being_locked(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        with owned(tmp_path / "run"):
            assert (tmp_path / ".run.lock").stat().st_size <= 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"run: cannot be used \(.*\); give a place"), owned(tmp_path / "file" / "run"):
        pass
