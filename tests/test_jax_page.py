"""The code of docs/jax.md runs, on a model small enough for it."""

import pathlib
import re

import jax
import pytest

import stablesam_jax
from tests.reference import small

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "jax.md"


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(monkeypatch, capsys):
    monkeypatch.setattr(stablesam_jax, "load_model", lambda name: small.stable_nano(), raising=False)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    names: dict[str, object] = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a user has it
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) == 4
    assert capsys.readouterr().out == "(1, 1, 1, 16, 16)\n"
