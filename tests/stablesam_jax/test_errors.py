"""Bad input ends a command with one line and status 2; everything else passes through."""

import pytest

from stablesam_jax.errors import InputError, exit_on_input_error


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


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), KeyboardInterrupt(), SystemExit(143)])
def test_other_errors_are_not_the_users(error, capsys):
    with pytest.raises(type(error)) as caught, exit_on_input_error():
        raise error
    assert caught.value is error
    assert capsys.readouterr() == ("", "")


def test_an_input_error_is_a_value_error():
    with pytest.raises(ValueError, match="what, where, remedy"):
        raise InputError("what, where, remedy")
