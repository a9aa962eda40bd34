"""The benchmark compares the same work, measured alternately."""

import dataclasses
import functools
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from bench import __main__ as benchmark
from bench import case as case_module
from bench import data, device, inference, limits, memory, plugin, sampler, train
from bench.box_search import box_search_cases
from bench.case import Case, Options, Point, Result, measure, prepared
from bench.data import data_cases
from bench.inference import decode_cases, encoder_cases, point_cases, predict_cases, stability_cases
from bench.limits import Cost, Limits, cost_of
from bench.memory import Peak, peak
from bench.onnx_peer import onnx_cases
from bench.output import entries, figure, markdown, memory_table, table
from bench.plugin import plugin_cases
from bench.sampler import plain_sample, sampler_cases
from bench.startup import startup_cases
from bench.train import train_cases
from eval.report.tables import show
from stablesam_jax import build
from stablesam_jax.errors import InputError
from stablesam_jax.ops.layers import computes_on_cpu
from stablesam_jax.plugin.sampling import bilinear_sample
from tests.reference import official, small
from tests.reference.tiers import slow

LIMITS = Limits(flops_per_second=10.0, bytes_per_second=4.0)
TINY = dataclasses.replace(official.VIT, image_size=64, embedding_width=256)


@pytest.fixture(autouse=True)
def small_maps(monkeypatch):
    monkeypatch.setattr(sampler, "GRID", 5)
    monkeypatch.setattr(sampler, "CHANNELS", 4)
    monkeypatch.setattr(plugin, "GRID", 4)
    monkeypatch.setitem(limits._SIDE, "cpu", 64)
    monkeypatch.setitem(limits._MOVED, "cpu", 1 << 16)


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch's threads wait for each other at every small operation: minutes where other processes compute, too."""
    threads, processors = torch.get_num_threads(), os.sched_getaffinity(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, processors)


@pytest.fixture
def tiny_model(monkeypatch):
    monkeypatch.setitem(case_module.MODELS, "tiny", TINY)
    monkeypatch.setattr(benchmark, "WITH_TWIN", ["tiny"])
    return Options(models=("tiny",), batch_size=2)


def test_all_sides_alternate_in_both_orders_after_an_unmeasured_run():
    order = []
    case = Case("case", lambda: order.append("ours"), {side: lambda s=side: order.append(s) for side in ("a", "b")})
    assert set(measure(case, 2, LIMITS).ratios) == {"a", "b"}
    assert order == ["ours", "a", "b", "b", "a", "ours", "ours", "a", "b"]


def test_the_ratio_is_theirs_to_ours_of_medians(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(case_module.time, "perf_counter", lambda: clock[0])
    own = iter([9, 1, 2, 7])  # seconds; the first does not count

    def work(seconds):
        clock[0] += seconds

    result = measure(Case("case", lambda: work(next(own)), {"theirs": lambda: work(6)}), 3, LIMITS)
    assert (result.seconds, result.ratios) == (2, {"theirs": 3})


def test_sides_that_did_not_do_the_same_work_are_not_compared():
    def work(result):
        return lambda: result

    case = Case("case", work(1.0), {"theirs": work(1.5)}, difference=lambda a, b: abs(a - b), bound=0.6)
    assert measure(case, 1, LIMITS).differences == {"theirs": 0.5}
    for wrong in (2.0, float("nan")):
        with pytest.raises(InputError, match="theirs differs"):
            measure(dataclasses.replace(case, theirs={"theirs": work(wrong)}), 1, LIMITS)


def test_a_side_that_exceeds_the_gpus_memory_is_left_out_of_the_row(capsys):
    def too_large():
        raise torch.OutOfMemoryError

    case = Case("case", lambda: 1.0, {"large": too_large, "small": lambda: 1.0}, difference=lambda a, b: abs(a - b))
    result = measure(case, 1, LIMITS)
    assert list(result.ratios) == list(result.differences) == ["small"]
    assert "too little memory for large" in capsys.readouterr().out


def test_what_is_prepared_is_prepared_once_and_when_it_is_needed():
    calls = []
    work = prepared(lambda: calls.append("prepared") or (lambda: len(calls)))
    assert calls == []
    assert (work(), work()) == (1, 1)


def test_the_limit_is_set_by_arithmetic_or_by_memory():
    assert LIMITS.seconds(Cost(flops=30, bytes=4)) == 3
    assert LIMITS.seconds(Cost(flops=10, bytes=8)) == 2


def test_matmuls_in_loops_count_as_often_as_they_run():
    def square(x):
        return x @ x

    def looped(x):
        return jax.lax.fori_loop(0, 7, lambda _, y: square(y), x)

    def convolved(x):
        return jax.lax.conv(x[None, None], jnp.ones((5, 1, 3, 3)), (1, 1), "VALID")

    x = jnp.ones((4, 4))
    assert cost_of(jax.jit(square), x) == Cost(flops=2 * 4**3, bytes=2 * 4 * 16)
    assert cost_of(looped, x).flops == 7 * 2 * 4**3
    assert cost_of(jax.grad(lambda x: square(x).sum()), x).flops == 3 * 2 * 4**3
    assert cost_of(convolved, x).flops == 2 * 5 * 2 * 2 * 9


def test_the_cost_of_a_work_is_the_same_on_every_device(monkeypatch):
    def by_device(x):
        return x @ x if computes_on_cpu() else x

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert cost_of(by_device, jnp.ones((4, 4))).flops == 2 * 4**3


@pytest.mark.slow
def test_a_training_step_is_that_of_hq_sam_where_it_trains_the_same(tiny_model):
    cases = list(train_cases(tiny_model))
    assert [case.name for case in cases] == [
        "plugin, 2 pictures, encoder in the step",
        "plugin, 2 pictures, cached",
        "HQ-SAM's parts, 2 pictures, cached",
    ]
    assert [list(case.theirs) for case in cases] == [
        ["HQ-SAM's loop"],
        ["HQ-SAM's loop", "HQ-SAM's loop, cached"],
        ["HQ-SAM's loop, cached"],
    ]
    with small.quick_compilation():
        (found,) = measure(cases[2], 1, LIMITS).differences.values()
        whole, cached = (cases[1].theirs[side]() for side in cases[1].theirs)
    assert whole == pytest.approx(cached, rel=train.SAME_LOSS)
    assert found < train.SAME_LOSS
    encoded, cached, _ = (case.cost().flops for case in cases)
    sam = build.assemble(TINY)
    encode = functools.partial(sam.apply, method="encode")
    pictures = jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)
    assert encoded - cached == cost_of(encode, {"params": build.shapes(sam)}, pictures).flops


@pytest.mark.parametrize("dtype", ["float32", *slow("bfloat16")])
@pytest.mark.parametrize(
    "cases",
    [
        encoder_cases,
        *(
            pytest.param(cases, marks=pytest.mark.slow)
            for cases in (point_cases, decode_cases, predict_cases, stability_cases)
        ),
    ],
)
def test_inference_gives_the_same_on_both_sides(cases, dtype, tiny_model, monkeypatch):
    monkeypatch.setattr(inference, "PHOTOGRAPH", (160, 120))
    found = {}
    for case in cases(dataclasses.replace(tiny_model, pictures=(2,), prompts=(2,), dtype=dtype)):
        with small.quick_compilation():
            found[case.name] = measure(case, 1, LIMITS)
        assert found[case.name].differences.keys() == ({"PyTorch"} if case.difference else set())
    assert len(found) == (3 if cases is decode_cases else 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inference_of_sam_2_gives_the_same_on_both_sides(dtype, tiny_model, monkeypatch):
    monkeypatch.setitem(case_module.MODELS, "tiny", official.SAM2)
    options = dataclasses.replace(tiny_model, pictures=(2,), prompts=(2,), dtype=dtype)
    cases = [*encoder_cases(options), *decode_cases(options)]
    assert [case.name for case in cases] == ["image encoder, 2 pictures", "SAM 2, 2 prompts", "Stable-SAM, 2 prompts"]
    for case in cases:
        with small.quick_compilation():
            assert measure(case, 1, LIMITS).differences.keys() == ({"PyTorch"} if case.difference else set())


@pytest.mark.slow
def test_both_sides_search_the_same_boxes(tiny_model):
    one, four, *_ = box_search_cases(tiny_model)
    for case, count in ((one, 1), (four, 4)):
        ours, theirs = case.ours(), case.theirs["PyTorch"]()
        assert ours.shape == theirs.shape == (50, count, 4)
        assert case.difference(ours, theirs) <= case.bound
        assert np.abs(ours[4] - ours[0]).max() / TINY.image_size > 5 * case.bound  # they have moved


@pytest.mark.slow
def test_both_sides_give_the_figures_of_breps(tiny_model):
    for case, count in zip([*box_search_cases(tiny_model)][2:], (1, 4), strict=True):
        ours, theirs = case.ours(), case.theirs["PyTorch"]()
        assert ours.shape == theirs.shape == (count, 3)
        assert case.difference(ours, theirs) <= case.bound
        np.testing.assert_allclose(ours, theirs, atol=0.02)  # dice of ours is that of low-resolution logits
        assert (ours[:, 1] <= ours[:, 0]).all()
        assert (ours[:, 0] <= ours[:, 2]).all()


@pytest.mark.slow
@pytest.mark.parametrize("cases", [encoder_cases, decode_cases])
def test_keras_hub_gives_the_same_with_our_parameters(cases, tiny_model, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # read when it is first imported, which needs TensorFlow without
    pytest.importorskip("keras_hub", reason="keras-hub is not installed")
    case = next(iter(cases(dataclasses.replace(tiny_model, prompts=(2,), keras_hub=True))))
    # It promotes ranks and types, which our own code may not under test.
    allowed = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with allowed[0], allowed[1], small.quick_compilation():
        assert measure(case, 1, LIMITS).differences["keras-hub"] < case.bound


@pytest.mark.parametrize(("options", "words"), [({"dtype": "bfloat16"}, "float32"), ({}, "pip install keras-hub")])
def test_keras_hub_that_cannot_be_compared_is_refused_in_a_line(options, words, tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(InputError, match=words):
        next(decode_cases(dataclasses.replace(tiny_model, keras_hub=True, **options))).theirs["keras-hub"]()


@pytest.fixture
def own_precision():
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags
    jax.config.update("jax_default_matmul_precision", None)


@pytest.mark.usefixtures("own_precision")
def test_both_sides_multiply_float32_alike_on_a_gpu(monkeypatch):
    def found(precision):
        device.set_up(precision)
        of_torch = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        return jax.config.jax_default_matmul_precision, *of_torch

    as_they_come = found("float32")
    assert as_they_come == (None, False, True)  # unchanged on a CPU
    monkeypatch.setattr(device, "torch_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(device, "keep_compiled_programs", lambda: None)
    assert found("float32") == ("highest", False, False)
    assert found("tf32") == found("bfloat16") == (None, True, True)


def test_pytorch_computes_where_jax_does_or_says_that_it_cannot(monkeypatch):
    assert device.torch_device().type == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.torch_device().type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="JAX_PLATFORMS=cpu"):
        device.torch_device()


@pytest.mark.slow
def test_a_first_mask_of_a_program_of_its_own_is_the_same_on_both_sides():
    cases = startup_cases(Options(models=("mobile_sam",), compile=True))  # its files last as long as it
    case = next(cases)
    assert list(case.theirs) == ["PyTorch", "PyTorch, compiled"]  # compiling takes minutes: the benchmark's to run
    ours = case.ours()
    assert 0 < ours.mean() < 1
    assert case.difference(ours, case.theirs["PyTorch"]()) <= case.bound


def test_a_different_mask_is_detected(tiny_model):
    case = next(decode_cases(dataclasses.replace(tiny_model, prompts=(2,))))
    theirs = case.theirs["PyTorch"]()
    assert case.difference(theirs, theirs) == 0
    assert case.difference(theirs.flip(0), theirs) > case.bound


def rows_that_take_memory(options):
    def work(mebibytes):
        return lambda: np.ones(mebibytes << 17).sum()

    yield Case("little", work(1), {"theirs": work(1)})
    yield Case("much", work(50), {"theirs": work(200)})


@pytest.mark.slow
def test_the_peak_is_that_of_one_side_of_one_row_while_it_works():
    ours, theirs = (peak(rows_that_take_memory, Options(threads=1), 1, side) for side in ("ours", "theirs"))
    assert 49 < ours.above_base < 70
    assert 199 < theirs.above_base < 220
    assert theirs.absolute > theirs.above_base + 50


class Gpu:
    """Memory statistics of a GPU as JAX and PyTorch report them."""

    def __init__(self, *, held: int, taken: int):
        self.held, self.highest, self.taken = held << 20, held << 20, taken << 20

    def work(self):
        self.highest = self.held + self.taken

    def memory_stats(self):
        return {"bytes_in_use": self.held, "peak_bytes_in_use": self.highest}


def test_the_peak_on_a_gpu_is_that_of_the_library_that_works(monkeypatch):
    ours, theirs = Gpu(held=2, taken=3), Gpu(held=5, taken=7)
    monkeypatch.setattr(memory.jax, "devices", lambda: [ours])
    assert memory._watch_gpu(ours.work) == (2, 5)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: theirs.held)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: theirs.highest)
    assert memory._watch_gpu(theirs.work) == (5, 12)


def test_the_rate_of_pictures_is_shown_and_written_where_it_counts(monkeypatch, capsys):
    clock = iter(range(100))
    monkeypatch.setattr(case_module.time, "perf_counter", lambda: next(clock))
    result = measure(Case("eight", lambda: None, {"theirs": lambda: None}, pictures=8), 1, LIMITS)
    show([table("rates", [result])])
    assert "8.0" in capsys.readouterr().out
    assert [entry["ours_pictures_per_s"] for entry in entries("family", [result], [{}], "float32")] == [8]


def test_peaks_are_shown_and_written_beside_times(capsys):
    rows = [Result("row", 1.0, {"theirs": 2.0})]
    peaks = [{"ours": Peak(absolute=7, above_base=3), "theirs": Peak(absolute=9, above_base=5)}]
    show([memory_table("memory", rows, peaks)])
    assert "3 / 7" in (printed := capsys.readouterr().out)
    assert "5 / 9" in printed
    (entry,) = entries("family", rows, peaks, "float32")
    assert (entry["peer_s"], entry["ours_peak_mib"]["absolute"], entry["peer_peak_mib"]["above_base"]) == (2, 7, 5)
    assert "| row |  | 1000.0 | theirs | 2.00 |  | 3, 5 |" in markdown([entry])


def test_rows_that_differ_in_a_size_alone_make_a_curve_for_each_side():
    rows = [
        Result(f"SAM, {count} prompts", count / 10, {"PyTorch": 4.0}, points=(Point("SAM", "prompts", count),))
        for count in (20, 1)
    ]
    rows.append(Result("image encoder", 2.0, {"PyTorch": 1.5}, points=(Point("sam_vit_b", "px", 1024),)))
    ratios, prompts = figure(rows).axes
    assert [bar.get_width() for bar in ratios.patches] == [4.0, 4.0, 1.5]
    assert {line.get_label(): line.get_xydata().tolist() for line in prompts.lines} == {
        "SAM, stablesam_jax": [[1, 0.1], [20, 2]],
        "SAM, PyTorch": [[1, 0.4], [20, 8]],
    }


@pytest.mark.parametrize("maps", [1, 3])
def test_the_plain_sampler_is_the_sampler(maps):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((maps, 4, 6, 2), np.float32)
    positions = rng.uniform(-2, 7, (3, 4, 6, 2)).astype(np.float32)
    plain, ours = jax.jit(plain_sample)(features, positions), jax.jit(bilinear_sample)(features, positions)
    np.testing.assert_allclose(plain, ours, atol=1e-6)


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_rows_of_the_plugin_are_decoding_and_prediction():
    *decoding, whole = plugin_cases(Options(prompts=(1, 3)))
    assert [case.name for case in decoding] == ["decode, 1 prompt", "decode, 3 prompts"]
    assert whole.name.startswith("picture to mask")
    with_plugin, without = decoding[1].ours(), decoding[1].theirs["without plugin"]()
    assert with_plugin.low_res_masks.shape == without.low_res_masks.shape == (1, 3, 1, 16, 16)
    assert np.abs(with_plugin.low_res_masks - without.low_res_masks).max() > 0.1
    np.testing.assert_array_equal(whole.ours().shape, whole.theirs["without plugin"]().shape)


@pytest.mark.slow
def test_the_rows_against_onnxruntime_are_one_picture_and_prompts_on_it():
    encoding, *prompts = onnx_cases(Options(threads=1))
    embedding = encoding.theirs["onnxruntime"]()[0, :, ::2, ::2].transpose(1, 2, 0)
    assert np.abs(encoding.ours()[0] - embedding).max() < 0.05 * embedding.std()
    assert [case.name for case in prompts] == ["a box to a mask", "a point to a mask"]
    for case in prompts:
        ours = case.ours()
        assert 0.005 < ours.mean() < 0.995
        assert case.difference(ours, case.theirs["onnxruntime"]()) <= case.bound


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_what_it_found(tmp_path, capsys):
    file = tmp_path / "found.json"
    arguments = ["--rows", "sampler", "--prompts", "1", "--repeats", "1", "--threads", "1", "--json", str(file)]
    assert benchmark.main(arguments) == 0
    assert "PyTorch / ours" in capsys.readouterr().out
    assert (tmp_path / "found.json.md").read_text().count("PyTorch") == 2
    with Image.open(tmp_path / "found.json.png") as picture:
        assert picture.size[0] > 300
    rows = json.loads(file.read_text())["rows"]
    assert [(row["row"], row["case"], row["peer"]) for row in rows] == [
        ("sampler", f"1 prompt: {what}", peer)
        for what in ("forward", "forward + backward")
        for peer in ("plain JAX", "PyTorch")
    ]
    assert all(row["peer_s"] == pytest.approx(row["ratio"] * row["ours_s"]) for row in rows)
    assert all(row["ratio"] > 0 for row in rows)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threads", "9999"],
        ["--repeats", "0"],
        ["--prompts", "0"],
        ["--batch-size", "0"],
        ["--models", "sam_nano"],
        ["--models", "sam2_hiera_t", "--rows", "encoder", "predict"],
        ["--image-size", "100"],
        ["--pictures", "0"],
        ["--dtype", "bfloat16", "--rows", "encoder", "train"],
        ["--dtype", "tf32", "--rows", "point"],
        ["--rows", "data"],
        ["--data-dir", "."],
        ["--json", "/dev/null/found.json"],
    ],
)
def test_what_cannot_be_measured_is_refused_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(arguments)
    assert exit_.value.code == 2
    assert arguments[0].lstrip("-").replace("-", " ") in capsys.readouterr().err.replace("-", " ")


def test_the_rows_of_the_data_are_batches_and_the_decoding_of_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DATA_BATCHES", 1)
    (case,) = data_cases(Options(rows=("data",), data_dir=(small.save_pairs(tmp_path / "pairs", 3),), threads=1))
    assert case.name == "8 pictures of pairs"
    opened = []
    monkeypatch.setattr(
        data.Image, "open", lambda file, open=Image.open, **options: opened.append(file) or open(file, **options)
    )
    case.theirs["decoding alone"]()
    assert len(opened) == 16
    assert len(set(opened)) == 6
    case.ours()
