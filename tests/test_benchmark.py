"""The benchmark compares the same work, in turns."""

import json
import os

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from eval import benchmark
from eval.benchmark import Case, Options, data_cases, measure, plain_sample, plugin_cases, sampler_cases
from stablesam_jax.plugin.sampling import bilinear_sample
from tests.reference import small


@pytest.fixture(autouse=True)
def small_maps(monkeypatch):
    monkeypatch.setattr(benchmark, "GRID", 5)
    monkeypatch.setattr(benchmark, "CHANNELS", 4)


def test_all_sides_take_turns_to_and_fro_after_one_that_does_not_count():
    order = []
    case = Case("case", lambda: order.append("ours"), {side: lambda s=side: order.append(s) for side in ("a", "b")})
    assert set(measure(case, 2).ratios) == {"a", "b"}
    assert order == ["ours", "a", "b", "b", "a", "ours", "ours", "a", "b"]


def test_the_ratio_is_theirs_to_ours_of_medians(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    own = iter([9, 1, 2, 7])  # seconds; the first does not count

    def work(seconds):
        clock[0] += seconds

    result = measure(Case("case", lambda: work(next(own)), {"theirs": lambda: work(6)}), 3)
    assert (result.seconds, result.ratios) == (2, {"theirs": 3})


@pytest.mark.parametrize("maps", [1, 3])
def test_the_plain_sampler_is_the_sampler(maps):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((maps, 4, 6, 2), np.float32)
    positions = rng.uniform(-2, 7, (3, 4, 6, 2)).astype(np.float32)
    plain, ours = jax.jit(plain_sample)(features, positions), jax.jit(bilinear_sample)(features, positions)
    np.testing.assert_allclose(plain, ours, atol=1e-6)


def test_all_sides_of_a_sampler_row_do_the_same_work():
    forward, backward = list(sampler_cases(Options(prompts=(1,))))
    assert (forward.name, backward.name) == ("1 prompt: forward", "1 prompt: forward + backward")
    for ours, theirs in zip(
        jax.tree.leaves(backward.ours()), jax.tree.leaves(backward.theirs["plain JAX"]()), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert [case.name for case in sampler_cases(Options(prompts=(2,)))] == [
        "2 prompts: forward",
        "2 prompts: forward + backward",
        "2 prompts, shared features: forward",
        "2 prompts, shared features: forward + backward",
    ]


def test_the_rows_of_the_plugin_are_decoding_and_the_whole_way(monkeypatch):
    monkeypatch.setattr(benchmark, "GRID", 4)
    monkeypatch.setattr(benchmark, "CHANNELS", 256)
    *decoding, whole = plugin_cases(Options(prompts=(1, 3)))
    assert [case.name for case in decoding] == ["decode, 1 prompt", "decode, 3 prompts"]
    assert whole.name.startswith("picture to mask")
    with_plugin, without = decoding[1].ours(), decoding[1].theirs["without plugin"]()
    assert with_plugin.low_res_masks.shape == without.low_res_masks.shape == (1, 3, 1, 16, 16)
    assert np.abs(with_plugin.low_res_masks - without.low_res_masks).max() > 0.1
    np.testing.assert_array_equal(whole.ours().shape, whole.theirs["without plugin"]().shape)


def test_the_command_prints_a_table_and_writes_what_it_found(tmp_path, capsys):
    threads, processors = torch.get_num_threads(), os.sched_getaffinity(0)
    try:
        file = tmp_path / "found.json"
        assert benchmark.main(["--rows", "sampler", "--prompts", "1", "--repeats", "1", "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, processors)
    assert "PyTorch / ours" in capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]["sampler"]
    assert [row["name"] for row in rows] == ["1 prompt: forward", "1 prompt: forward + backward"]
    assert all(row["ratios"]["PyTorch"] > 0 for row in rows)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threads", "9999"],
        ["--repeats", "0"],
        ["--prompts", "0"],
        ["--rows", "data"],
        ["--data-dir", "."],
        ["--json", "/nowhere/found.json"],
    ],
)
def test_what_cannot_be_measured_is_refused_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(arguments)
    assert exit_.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_rows_of_the_data_are_batches_and_the_decoding_of_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "DATA_BATCHES", 1)
    (case,) = data_cases(Options(rows=("data",), data_dir=(small.save_pairs(tmp_path / "pairs", 3),), threads=1))
    assert case.name == "8 pictures of pairs"
    opened = []
    monkeypatch.setattr(benchmark.Image, "open", lambda file, open=Image.open: opened.append(file) or open(file))
    case.theirs["decoding alone"]()
    assert len(opened) == 16
    assert len(set(opened)) == 6
    case.ours()
