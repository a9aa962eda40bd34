"""The table of commands says what is there: modules with a main(), and all that they import."""

import ast
import importlib.metadata
import importlib.util
import pathlib
import re
import sys
import tomllib
import types

import grimp
import pytest

from stablesam_jax.commands import COMMANDS, called, check_choice, command_line
from stablesam_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("stablesam_jax", "stablesam_torch", "convert", "eval", "train", "predict", "serve", "bench", "experiments")
# Of --keras-hub, whose help says that it must be installed, and of names on the hub and SAM 2, whose messages say so.
BY_OPTION = {"keras_hub", "huggingface_hub", "sam2"}


def parsed(name):
    spec = importlib.util.find_spec(COMMANDS[name].module)
    return ast.parse(pathlib.Path(spec.origin).read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_module_with_a_main_that_needs_no_argument(name):
    (main,) = [node for node in parsed(name).body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert len(main.args.args) == len(main.args.defaults)
    assert not main.args.kwonlyargs


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_calls_itself_by_its_own_name_in_its_usage(name):
    calls = [node for node in ast.walk(parsed(name)) if isinstance(node, ast.Call)]
    named = [call.args[0].value for call in calls if isinstance(call.func, ast.Name) and call.func.id == "called"]
    assert set(named) == {name}


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        ("train.main", "python -m eval.parity"),
        ("eval.parity.__main__", "python -m eval.parity"),
        ("stablesam_jax.__main__", "stablesam parity"),
        (None, "stablesam parity"),  # a script, as that which pip makes
    ],
)
def test_a_hint_is_called_as_the_process_was(monkeypatch, started, expected):
    main = types.ModuleType("__main__")
    main.__spec__ = None if started is None else importlib.machinery.ModuleSpec(started, None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert called("parity") == expected


def distributions(requirements):
    """Names of the distributions that are asked for."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", line, maxsplit=1)[0]).lower() for line in requirements}


@pytest.fixture(scope="module")
def imports():
    """Module -> top-level names of what it imports of others, directly or not, at the top or in a function."""
    graph = grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)

    def find(module):
        found = {name.partition(".")[0] for name in graph.find_upstream_modules(module)}
        return found - {*PACKAGES, *sys.stdlib_module_names, *BY_OPTION}

    return find


@pytest.fixture(scope="module")
def providers():
    """Top-level name of a module -> distributions that bring it."""
    return importlib.metadata.packages_distributions()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_extra_of_a_command_brings_all_that_it_imports(imports, providers, name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [project["optional-dependencies"][extra] for extra in COMMANDS[name].extra.split(",")]
    asked = distributions([*project["dependencies"], *(line for extra in extras for line in extra)])
    asked |= distributions(line for one in asked for line in importlib.metadata.requires(one) or [])
    found = imports(COMMANDS[name].module)
    assert "tyro" in found
    assert {top for top in found if not asked & distributions(providers[top])} == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--system", "A", "--system", "B"],
        ["hq", "--data-dir", "a", "--limit", "3", "--data_dir=b"],
        ["--fresh", "--no-fresh"],
    ],
)
def test_an_option_that_is_given_twice_is_refused(arguments):
    with pytest.raises(InputError, match=r"^--\S+: is given twice; give it once, with all its values behind it\.$"):
        command_line(arguments)


def test_values_may_be_equal():
    arguments = ["hq", "--system", "A", "A", "--data-dir", "-1", "-1", "--", "--"]
    assert command_line(arguments) == arguments


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("own-picture", "did you mean own-pictures?"),
        ("HQ-SAM", "did you mean hq-sam?"),
        ("zzz", "choose from stable-sam, own-pictures, hq-sam."),
    ],
)
def test_a_name_that_is_no_choice_is_answered_by_the_nearest(given, hint):
    with pytest.raises(InputError, match=f"^{given}: is no preset; {re.escape(hint)}$"):
        check_choice(given, ("stable-sam", "own-pictures", "hq-sam"), "preset")
