"""Each equation of the paper is named at the one place that implements it."""

import pathlib
import re

import pytest

import stablesam_jax

PACKAGE = pathlib.Path(stablesam_jax.__file__).parent
PLACES = {
    1: "metrics.py",
    2: "model/transformer.py",
    3: "plugin/dsp.py",
    4: "plugin/dsp.py",
    5: "plugin/drp.py",
    6: "plugin/plugin.py",
}


@pytest.mark.parametrize(("number", "place"), PLACES.items())
def test_an_equation_has_one_place(number, place):
    found = [
        file.relative_to(PACKAGE).as_posix()
        for file in sorted(PACKAGE.rglob("*.py"))
        for _ in re.findall(rf"\beq\. {number}\b", file.read_text())
    ]
    assert found == [place]
