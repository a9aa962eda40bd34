"""Options are checked before the model is loaded."""

import pathlib
import socket

import pytest

from serve import __main__ as program
from serve.__main__ import Options, check, serve
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


def test_a_port_that_is_taken_is_refused_in_one_line_before_the_model_is_loaded(monkeypatch, capfd):
    monkeypatch.setattr(program, "load_model", lambda *_, **__: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"^--port {port}: another program listens there; stop it, or give "):
            serve(Options(port=port))
    assert capfd.readouterr() == ("", "")


def test_an_address_of_another_machine_is_refused_with_the_reason():
    fault = r"^--host 192\.0\.2\.1 --port 0: cannot be listened on \(.+\); give others\.$"
    with pytest.raises(InputError, match=fault):
        serve(Options(host="192.0.2.1", port=0, token="correct horse"))
