"""Cases of a parametrised test that are of the slow tier."""

from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """`["quick case", *slow("slow case")]`; a tuple is a case of several parameters."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]
