"""Programs are compiled once for what they contain and for each slot, and those of long ago are dropped."""

import dataclasses

import jax
import numpy as np
import pytest

from stablesam_jax import Predictor, build
from stablesam_jax.config import PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model.sam import Sam
from stablesam_jax.predict import compiled
from stablesam_jax.predict.slots import Slots
from tests.reference import small
from tests.reference.squares import BOX, SQUARES, answers, nano
from tests.reference.tiers import slow


def close(first, second):
    """Equal but for the order of sums: the bound of low-resolution logits."""
    return np.abs(first - second).max() <= 2.5e-5 * np.std(second)


@pytest.mark.parametrize("calls", [40, *slow(1000)])
def test_random_calls_compile_once_for_a_slot(stub, calls):
    ours, decoder = stub
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(calls):
        count, points = (
            rng.choice([1, 2, 3, 5, 8, 9, 16, 17, 24], p=[0.3, 0.2, 0.1, *[0.4 / 6] * 6]),
            rng.integers(1, 14),
        )
        arguments = {
            "point_coords": rng.uniform(0, 48, (count, points, 2)),
            "point_labels": rng.integers(-1, 2, (count, points)),
        }
        with_box, with_mask, multi = rng.integers(0, 2, 3)
        if with_box:
            arguments["box"] = np.sort(rng.uniform(0, 48, (count, 2, 2)), axis=1).reshape(count, 1, 4)
        if with_mask:
            arguments["mask_input"] = rng.standard_normal((count, 1, 16, 16))
        ours.predict(**arguments, multimask_output=bool(multi))
        tokens = points + (2 if with_box else 1)
        prompts = next(slot for slot in (1, 2, 4, 8, 16, 24) if slot >= count)
        seen.add((prompts, 4 if tokens <= 4 else 8 if tokens <= 8 else 16, with_mask, multi))
    assert len(seen) > min(
        0.4 * calls, 60
    )  # of 6 numbers of prompts, 3 of tokens, with and without mask, one mask or three
    assert len(decoder.traced) == len(seen)


@pytest.mark.parametrize("count", [1, 2, 3, 24, 25, 60])
def test_every_prompt_gets_its_own_answer_however_many_there_are(stub, count):
    ours, _ = stub
    x = np.linspace(4, 60, count)
    points = np.stack([x, np.full(count, 20)], axis=-1)[:, None]
    masks, _, _ = ours.predict(points, np.ones((count, 1)), multimask_output=False)
    np.testing.assert_allclose(masks.mean((1, 2, 3)) * 64, x, atol=2)


@pytest.fixture
def traced(monkeypatch):
    """The methods of Sam that have been traced to make programs, with the shape of the prompts."""
    seen = []
    encode, decode = Sam.encode, Sam.decode

    def note_encode(sam, pictures):
        seen.append(("encode", len(pictures)))
        return encode(sam, pictures)

    def note_decode(sam, embedding, prompts, **options):
        seen.append(("decode", options.get("masks"), *prompts.labels.shape[1:], prompts.masks is not None))
        return decode(sam, embedding, prompts, **options)

    monkeypatch.setattr(Sam, "encode", note_encode)
    monkeypatch.setattr(Sam, "decode", note_decode)
    for cache in (compiled._encoder, compiled._decoder):
        cache.cache_clear()
    with small.quick_compilation():
        yield seen
    for cache in (compiled._encoder, compiled._decoder):
        cache.cache_clear()


@pytest.mark.slow
def test_the_model_is_compiled_once_for_all_its_predictors(traced):
    small.nano()
    traced.clear()  # of the random parameters
    for sam, params in (small.nano(), (build.assemble(small.CONFIG), jax.tree.map(np.copy, small.nano()[1]))):
        one = Predictor(sam, params)
        one.set_image(SQUARES[0])
        answers(one)
    assert traced == [("encode", 1), ("decode", "single", 1, 4, False)]


@pytest.mark.slow
def test_the_encoder_does_not_depend_on_the_plugin_nor_a_program_on_its_strength(traced):
    sam, params = small.system(hq=False, plugin=PluginConfig(start="perturbed"))
    traced.clear()  # of the random parameters
    found = []
    for strength in (0, 0.3, 1):
        plugin = dataclasses.replace(sam.config.plugin, strength=strength)
        ours = Predictor(build.assemble(dataclasses.replace(sam.config, plugin=plugin)), params)
        ours.set_image(SQUARES[0])
        found.append(answers(ours)[2])
    assert traced == [("encode", 1), ("decode", "single", 1, 4, False)]
    assert close(found[0], answers(ours.without_plugin())[2])
    assert not close(found[0], found[1])
    assert not close(found[1], found[2])
    assert [kind for kind, *_ in traced] == ["encode", "decode", "decode"]


@pytest.mark.slow
def test_what_is_warmed_up_is_not_compiled_again(traced):
    ours = Predictor(*small.nano())
    ours.warm_up([(30, 40)], most_prompts=2)
    assert not ours.is_image_set
    before = list(traced)
    assert sorted(before) == sorted(
        [("encode", 1), *(("decode", masks, count, 4, False) for masks in ("single", "multi") for count in (1, 2))]
    )
    for arguments in ({"box": BOX}, {"box": [BOX, BOX]}, {"point_coords": [[3, 4]], "point_labels": [1]}):
        ours.set_image(SQUARES[0][:30, :40])
        ours.predict(**arguments)
        ours.predict(**arguments, multimask_output=False)
    assert traced == before


@pytest.mark.slow
def test_one_slot_has_one_program_for_each_choice_of_masks(traced):
    ours = Predictor(*small.nano(), slots=Slots((3,), 8))
    ours.warm_up()
    ours.set_image(SQUARES[0])
    found = answers(ours)
    for arguments in ({"box": [BOX] * 5}, {"point_coords": [[3, 4]] * 6, "point_labels": [1] * 6}):
        ours.predict(**arguments)
    assert traced == [("encode", 1), ("decode", "single", 3, 8, False), ("decode", "multi", 3, 8, False)]
    assert close(found[2], nano()[1][0][2])


def test_programs_that_are_not_used_for_long_are_forgotten():
    for level in range(40):
        sam = build.assemble(dataclasses.replace(small.CONFIG, pixel_mean=(level, 0, 0)))
        compiled.encoder(sam)
        compiled.decoder(sam)
    assert compiled._encoder.cache_info().currsize == compiled._decoder.cache_info().currsize == compiled.KEPT < 40


@pytest.mark.parametrize("sizes", [(180, 240), [180], [(180, 240, 3)], [(0, 5)], ["ab"]])
def test_warming_up_takes_a_list_of_sizes(sizes):
    with pytest.raises(InputError, match=r"a list of \(height, width\), such as \[\(480, 640\)\]; got "):
        nano()[0].warm_up(sizes)
