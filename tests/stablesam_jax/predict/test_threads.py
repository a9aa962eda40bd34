"""Each call uses one picture, that of its argument, its thread or its index, whatever other threads do."""

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesam_jax import Predictor, build
from stablesam_jax.errors import InputError
from stablesam_jax.predict import compiled
from tests.reference import small
from tests.reference.squares import BOX, SQUARES, answers, nano, right


def test_what_is_encoded_is_prompted_whatever_is_set():
    ours = Predictor(*small.nano())
    pictures = [ours.encode(square) for square in SQUARES[:2]]
    assert not ours.is_image_set
    ours.set_image(SQUARES[2])
    for index in (0, 1, 0):
        assert right(answers(ours, picture=pictures[index]), index)
        assert np.array_equal(
            ours.predict_stable(box=BOX, jitters=1, picture=pictures[index]).mask, nano()[1][index][0][0]
        )
        assert ours.get_image_embedding(picture=pictures[index]).shape == (1, 256, 4, 4)
    assert right(answers(ours), 2)
    assert ours.original_size == (42, 64)
    assert pictures[1].original_size == (41, 64)
    assert pictures[0].digest != pictures[1].digest == ours.encode(SQUARES[1][..., ::-1], "BGR").digest


def test_threads_that_share_a_predictor_are_answered_for_their_own_pictures():
    ours, _ = nano()
    turn = threading.Barrier(4)

    def job(index):
        for _ in range(3):
            turn.wait()
            ours.set_image(SQUARES[index])
            turn.wait()
            assert right(answers(ours), index)
            assert right(ours.predict(box=BOX, multimask_output=False, image_index=0), index)
            assert ours.original_size == SQUARES[index].shape[:2]
            assert ours.without_plugin().original_size == SQUARES[index].shape[:2]
        ours.set_images([SQUARES[index], SQUARES[(index + 1) % 4]])
        turn.wait()
        return [answers(ours, image_index=place)[1] for place in range(2)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(job, range(4)))
    for index, (first, second) in enumerate(found):
        np.testing.assert_allclose(first, nano()[1][index][1], atol=2e-6)  # encoded in another batch
        np.testing.assert_allclose(second, nano()[1][(index + 1) % 4][1], atol=2e-6)


@pytest.mark.slow
def test_hundreds_of_jobs_in_four_threads_are_answered_for_their_own_pictures():
    ours = Predictor(*small.nano())

    def job(number):
        ours.set_image(SQUARES[number % 4])
        time.sleep(0.001 * (number % 3))
        return right(answers(ours), number % 4)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(job, range(400)))


def test_a_picture_is_set_all_at_once_when_it_is_encoded(monkeypatch):
    ours = Predictor(*small.nano())
    ours.set_image(SQUARES[0])
    encode, seen = ours.encode, []

    def slow(*arguments):
        with ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(answers, ours).result())
        return encode(*arguments)

    monkeypatch.setattr(ours, "encode", slow)
    ours.set_image(SQUARES[1])
    assert right(seen[0], 0)
    assert right(answers(ours), 1)


def test_a_thread_without_a_picture_of_its_own_is_answered_for_the_only_one_or_refused():
    ours = Predictor(*small.nano())
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        assert not first.submit(lambda: ours.is_image_set).result()
        ours.set_image(SQUARES[0])
        assert right(first.submit(answers, ours).result(), 0)
        second.submit(ours.set_image, SQUARES[1]).result()
        assert right(answers(ours), 0)
        with pytest.raises(InputError, match=r"set it here, or give each call its own: predict\(\.\.\., picture="):
            first.submit(answers, ours).result()


def test_a_call_uses_one_picture_from_its_start_to_its_end(monkeypatch):
    ours = Predictor(*small.nano())
    ours.set_image(SQUARES[0])
    decode = compiled.decoder(ours.sam, "single")

    def interrupted(*arguments):
        ours.set_image(SQUARES[3])
        return decode(*arguments)

    monkeypatch.setattr(compiled, "decoder", lambda *_: interrupted)
    assert right(answers(ours), 0)


def test_a_picture_of_another_model_is_refused():
    sam, params = small.nano()
    picture = nano()[0].encode(SQUARES[0])
    other = Predictor(sam, jax.tree.map(lambda leaf: leaf + 1, params))
    larger = Predictor(*build.with_image_size(sam, params, 128))
    for wrong, words in ((other, "with other weights"), (larger, "not sam_nano at 128 pixels")):
        with pytest.raises(InputError, match=f"picture: encoded by sam_nano at 64 pixels in float32, {words}"):
            wrong.predict(box=BOX, picture=picture)
    with pytest.raises(InputError, match="picture is of type ndarray; give what `encode` returned"):
        other.predict(box=BOX, picture=SQUARES[0])
    with pytest.raises(InputError, match="picture and image_index are both given"):
        nano()[0].predict(box=BOX, picture=picture, image_index=0)


@pytest.mark.parametrize("leaf", ["params", "sam"])
def test_weights_are_fixed(leaf):
    ours = Predictor(*small.nano())
    with pytest.raises(AttributeError, match=rf"^Predictor\.{leaf} cannot be assigned: make another Predictor\.$"):
        setattr(ours, leaf, getattr(ours, leaf))


def test_neither_a_leaf_nor_the_dictionaries_that_were_given_change_them():
    sam, params = small.nano()
    mine = jax.tree.map(jnp.asarray, params)
    ours = Predictor(sam, mine)
    with pytest.raises(ValueError, match="immutable"):
        ours.params["image_encoder"]["stem"] = None
    mine["image_encoder"]["neck"] = None
    assert right(answers(ours, picture=ours.encode(SQUARES[0])), 0)
    frozen = Predictor(sam, ours.params)
    assert right(answers(frozen, picture=ours.encode(SQUARES[0])), 0)


@pytest.mark.parametrize("name", ["features", "interm_features", "original_size", "input_size", "is_image_set"])
def test_what_is_of_the_picture_is_not_assigned_piece_by_piece(name):
    with pytest.raises(AttributeError, match=rf"^Predictor\.{name} cannot be assigned: set_image, .*SamPredictor\.$"):
        setattr(nano()[0], name, None)


def test_subclasses_may_have_attributes_of_their_own():
    class Mine(Predictor):
        features = property(lambda self: self.mine, lambda self, value: setattr(self, "mine", value))

    mine = Mine(*small.nano())
    mine.features = 3
    assert mine.mine == 3
    with pytest.raises(AttributeError, match=r"^Mine\.params cannot"):
        mine.params = {}


def test_a_predictor_and_what_it_has_set_survive_pickling():
    ours = Predictor(*small.nano())
    ours.set_image(SQUARES[0])
    assert right(answers(pickle.loads(pickle.dumps(ours))), 0)
