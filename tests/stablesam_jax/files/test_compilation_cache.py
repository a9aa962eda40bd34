"""Programs that one process has compiled, the next one reads."""

import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp, sys
from stablesam_jax.files.compilation_cache import keep_compiled_programs

hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("/cache_hits")))
print(keep_compiled_programs(sys.argv[1]))

@jax.jit
def many_steps(x):
    for _ in range(200):
        x = jnp.sin(x @ x) + x.sum()
    return x

many_steps(jnp.ones((8, 8)))
print(sum(hits))
"""


def run(folder):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "true"},
        cwd=pathlib.Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    folder, hits = done.stdout.split()
    return folder, int(hits)


@pytest.mark.slow
def test_the_next_process_reads_what_took_long_to_compile(tmp_path):
    assert run(tmp_path / "kept") == (str(tmp_path / "kept"), 0)
    folder, hits = run(tmp_path / "kept")
    assert folder == str(tmp_path / "kept")
    assert hits >= 1  # small programs are kept too where they took long, as on a busy machine


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"XDG_CACHE_HOME": "{}"}, "{}/stablesam_jax/compiled"),
        ({"XDG_CACHE_HOME": "", "HOME": "{}"}, "{}/.cache/stablesam_jax/compiled"),
        ({"JAX_COMPILATION_CACHE_DIR": "{}/mine", "XDG_CACHE_HOME": "{}"}, "{}/mine"),
    ],
)
def test_the_users_cache_folder_is_the_default_and_jaxs_own_variable_goes_first(
    environment, place, tmp_path, monkeypatch
):
    from stablesam_jax.files import compilation_cache

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    seen = {}
    monkeypatch.setattr(compilation_cache.jax.config, "update", seen.__setitem__)
    path = compilation_cache.keep_compiled_programs()
    assert str(path) == seen["jax_compilation_cache_dir"] == place.format(tmp_path)


def test_without_a_home_nothing_is_kept(monkeypatch):
    from stablesam_jax.files import compilation_cache

    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    seen = {}
    monkeypatch.setattr(compilation_cache.jax.config, "update", seen.__setitem__)
    assert compilation_cache.keep_compiled_programs() is None
    assert seen == {}
