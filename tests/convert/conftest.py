"""ONNX files of the small `system` that a file of tests has."""

import functools

import pytest

from convert import to_onnx


@pytest.fixture(scope="module")
def files(system, tmp_path_factory):
    """(options) -> folder of the exported files; each form is exported once."""
    root = tmp_path_factory.mktemp("onnx")

    @functools.cache
    def export(**options):
        folder = root / "-".join([*map(str, options.values()), "files"])
        to_onnx.convert(to_onnx.Options(system=str(system), output=folder, **options))
        return folder

    return export
