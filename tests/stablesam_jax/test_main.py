"""`stablesam` runs what is named, and says in one line what it cannot run."""

import subprocess
import sys

import pytest

from stablesam_jax import __main__ as program
from stablesam_jax.commands import COMMANDS


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `stablesam` with arguments: exit status, output, errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablesam", *arguments])
        monkeypatch.setattr(sys, "path", sys.path.copy())
        with pytest.raises(SystemExit) as end:
            program.main()
        return end.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize("arguments", [(), ("--help",), ("tarin",), ("xyzzy", "--help")])
def test_without_a_command_that_it_knows_it_lists_all(run, arguments):
    status, output, errors = run(*arguments)
    assert status == (0 if arguments in ((), ("--help",)) else 2)
    assert bool(output) == (status == 0)
    listed = [line.split()[0] for line in (output + errors).splitlines() if line.startswith("  ")]
    assert sorted(name for name in listed if name != "stablesam") == sorted(COMMANDS)
    assert listed.count("stablesam") == len(program.EXAMPLES)


def test_the_nearest_name_is_suggested(run):
    assert run("tarin")[2].endswith("\nerror: tarin: is no command; did you mean train?\n")
    assert run("xyzzy")[2].endswith("\nerror: xyzzy: is no command; choose from " + ", ".join(COMMANDS) + ".\n")


def test_a_command_gets_its_options_under_its_own_name(run):
    status, output, _ = run("check", "--help")
    assert status == 0
    assert "usage: stablesam check [-h]" in output
    assert "--against" in output


def test_a_user_s_mistake_keeps_its_line_and_status(run, tmp_path):
    status, output, errors = run("check", str(tmp_path / "absent"))
    assert (status, output) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith(f"error: {tmp_path / 'absent'}: no such folder; ")


def test_a_missing_package_is_one_line_that_names_the_extra(run, monkeypatch):
    monkeypatch.setattr(program, "_is_installed", lambda name: name not in ("grain", "tyro"))
    line = "error: stablesam train: needs grain, tyro, not installed here; pip install 'stablesam-jax[train]'.\n"
    assert run("train", "--steps", "1") == (2, "", line)
    assert run("bench")[2].endswith("pip install 'stablesam-jax[train,parity]'.\n")


def test_what_is_no_part_of_the_extra_is_not_missing(monkeypatch):
    monkeypatch.setattr(program, "_is_installed", lambda name: name not in ("torch", "pytest", "jax"))
    assert program.missing_packages("train") == []
    assert program.missing_packages("eval") == []
    assert program.missing_packages("convert") == ["torch"]


def test_help_and_the_package_s_import_wait_for_no_array_library():
    code = (
        "import sys, stablesam_jax.__main__ as program; print(program.usage()); "
        "print({'jax', 'numpy', 'torch', 'tensorflow', 'tyro'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
