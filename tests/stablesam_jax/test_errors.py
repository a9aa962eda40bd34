"""Bad input ends a command with one line and status 2; everything else passes through."""

import json
import os
import pathlib
import subprocess
import sys
import unicodedata
import warnings

import pytest

from stablesam_jax.errors import InputError, InputWarning, exit_on_input_error, shown


def test_an_input_error_is_one_line_on_standard_error_and_status_2(capsys):
    with pytest.raises(SystemExit) as caught, exit_on_input_error():
        raise InputError("a.png: the mask is empty; draw an object.")
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: a.png: the mask is empty; draw an object.\n"


def test_an_error_with_a_cause_is_as_short(capsys):
    error = InputError("a.png: cannot be read; replace the file.")
    error.__cause__ = OSError("page after page")
    with pytest.raises(SystemExit), exit_on_input_error():
        raise error
    assert capsys.readouterr().err == "error: a.png: cannot be read; replace the file.\n"


def test_without_an_error_nothing_happens(capsys):
    with exit_on_input_error():
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), SystemExit(143)])
def test_other_errors_are_not_the_users(error, capsys):
    with pytest.raises(type(error)) as caught, exit_on_input_error():
        raise error
    assert caught.value is error
    assert capsys.readouterr() == ("", "")


def test_a_command_that_is_interrupted_ends_with_a_line_and_the_status_of_a_shell(capsys):
    with pytest.raises(SystemExit) as caught, exit_on_input_error():
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_input_error_is_a_value_error():
    with pytest.raises(ValueError, match="what, where, remedy"):
        raise InputError("what, where, remedy")


def test_odd_bytes_and_control_characters_are_escaped_and_letters_are_not():
    for name in ("café.png", unicodedata.normalize("NFD", "café.png"), "日本 (1).png", "a\\b.png"):
        assert shown(name) == name
    assert shown(pathlib.Path(os.fsdecode(b"a\xff\n\x1b[2J.png"))) == "a\\xff\\n\\x1b[2J.png"
    assert shown("\ud83d \u202e") == "\\ud83d \\u202e"


def test_a_message_is_one_line_that_any_file_can_hold():
    message = str(InputError(f"{os.fsdecode(bytes(range(1, 256)))}: cannot be read."))
    assert message.isprintable()
    assert json.loads(json.dumps(message).encode("ascii")) == message


def test_a_warning_is_a_line_in_a_command_and_a_warning_elsewhere(capsys):
    with exit_on_input_error():
        for _ in range(2):
            warnings.warn(InputWarning("a.png: is turned."), stacklevel=1)
    assert capsys.readouterr().err == "hint: a.png: is turned.\n" * 2
    with pytest.warns(InputWarning, match="is turned"):
        warnings.warn(InputWarning("a.png: is turned."), stacklevel=1)


def test_other_warnings_are_shown_as_ever():
    with pytest.warns(UserWarning, match="a library's"), exit_on_input_error():
        warnings.warn("a library's", UserWarning, stacklevel=1)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_can_show_any_name(encoding):
    code = (
        "from stablesam_jax.errors import InputError, exit_on_input_error\n"
        "with exit_on_input_error(): print('日本é'); raise InputError('日本é: absent.')"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    written = "日本é".encode(encoding, "backslashreplace")
    assert result.returncode == 2
    assert result.stdout == written + b"\n"
    assert result.stderr == b"error: " + written + b": absent.\n"
