"""Options are checked before the model is loaded."""

import pathlib

import pytest

from serve.__main__ import Options, check
from serve.limits import Limits
from stablesam_jax.errors import InputError


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("STABLESAM_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0: other machines reach it; give a --token, or set $STABLESAM_TOKEN."),
        ({"host": "example.org"}, "--host example.org: other machines reach it; give a --token,"),
        ({"token": "short"}, "--token: give at least 8 printable ASCII characters."),
        ({"token": ""}, "--token: give at least 8 printable ASCII characters."),
        ({"port": 70_000}, "--port 70000: must be from 0 to 65535."),
        ({"jitters": 0}, "--jitters 0: must be from 1 to 100."),
        ({"files": pathlib.Path("absent")}, "--files absent: no such folder."),
        ({"label_studio": "localhost:8080"}, "--label-studio localhost:8080: give a URL, as http://localhost:8080."),
        ({"limits": Limits(max_points=0)}, "--max-points 0: must be at least 1."),
    ],
)
def test_a_mistake_is_one_line(options, line):
    with pytest.raises(InputError) as caught:
        check(Options(**options))
    assert str(caught.value).startswith(line)


def test_this_machine_needs_no_token_and_others_do(monkeypatch):
    assert all(check(Options(host=host)) is None for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert check(Options(host="0.0.0.0", token="correct horse")) == "correct horse"
    monkeypatch.setenv("STABLESAM_TOKEN", "of the environment")
    assert check(Options(host="::")) == "of the environment"
