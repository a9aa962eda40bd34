"""The package is for PyTorch users: it needs torch alone, under whatever name they copy it."""

import ast
import importlib
import pathlib
import shutil
import sys

import pytest

import stablesam_torch

FOLDER = pathlib.Path(stablesam_torch.__file__).parent


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_a_file_imports_torch_and_its_neighbours(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names <= {"torch"}


def test_a_copy_of_another_name_works(tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path / "copied_folder", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(tmp_path)
    for file, name in (("nano", "NanoSam"), ("plugin", "stabilise")):
        module = importlib.import_module(f"copied_folder.{file}")
        assert getattr(module, name).__module__ == f"copied_folder.{file}"
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.startswith("copied_folder")]:
        del sys.modules[name]
