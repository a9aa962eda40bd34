"""The page's answers: masks of both systems, counts of those of jittered prompts, and the predictor's worst box."""

import base64

import numpy as np
import pytest

from serve.live import jitters
from serve.service import STRENGTHS, Prompt, Service
from stablesam_jax.data.collage import ASSETS
from stablesam_jax.metrics import stability
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.prompts import noisy_box
from tests.reference import small
from tests.serve.conftest import SLOTS, connect, png

BOX = [10, 5, 45, 35]
CONTENT, PIXELS = png(4)


@pytest.fixture
def compare(client):
    """Sends a prompt on the picture."""
    digest = client.post("/v1/pictures", content=CONTENT).json()["picture"]

    def compare(**fields):
        answer = client.post("/v1/compare", json={"picture": digest} | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return compare


def heat(answer, system):
    (one,) = [one for one in answer["systems"] if one["system"] == system]
    counts = np.frombuffer(base64.b64decode(one["heat"]), np.uint8)
    return one, counts.reshape(answer["heat_height"], answer["heat_width"])


def test_the_map_counts_the_masks_of_the_jittered_boxes(compare, predictor):
    answer = compare(box=BOX, jitters=3, noise=0.4, seed=7)
    rng = np.random.default_rng(7)
    boxes = [np.array(BOX, np.float64), *(noisy_box(rng, np.array(BOX), size_hw=(40, 60)) for _ in range(3))]
    np.testing.assert_allclose(answer["boxes"], boxes[1:])
    assert answer["points"] == []
    for system, one in (("plain", predictor.without_plugin()), ("stable", predictor)):
        found, counts = heat(answer, system)
        picture = one.encode(PIXELS)
        masks, ious, _ = one.predict(box=np.stack(boxes), multimask_output=False, picture=picture)
        np.testing.assert_array_equal(counts, masks.sum(axis=(0, 1)))
        assert found["stability"] == pytest.approx(stability(masks[:, 0]))
        assert found["predicted_iou"] == pytest.approx(float(ious[0, 0]))
        corners = np.reshape(found["outlines"][0], (-1, 2)).astype(int)
        assert masks[0, 0][corners[:, 1], corners[:, 0]].all()


def test_without_noise_all_masks_agree(compare):
    answer = compare(points=[[30, 20], [5, 5]], labels=[1, 0], jitters=3, noise=0)
    for system in ("plain", "stable"):
        found, counts = heat(answer, system)
        assert found["stability"] == 1
        assert set(np.unique(counts)) <= {0, 4}
    assert answer["points"] == [[30, 20], [5, 5]] * 3


def test_a_prompt_alone_has_no_stability(compare):
    assert [one["stability"] for one in compare(box=BOX, jitters=0)["systems"]] == [None, None]


def test_jittered_clicks_stay_in_the_picture():
    draw = jitters(np.random.default_rng(0), Prompt(points=[[0, 0], [59, 39]], labels=[1, 0]), (40, 60), 1.0)
    drawn = np.array([draw().points for _ in range(50)])
    assert drawn.min() >= 0
    assert (drawn <= [59, 39]).all()
    assert drawn.std(axis=0).min() > 0.5


def test_a_strength_is_rounded_to_a_step_and_takes_the_same_pictures(service, predictor):
    picture = predictor.encode(PIXELS)
    half = service.at_strength(0.51)
    assert half.sam.config.plugin.strength == round(0.51 * STRENGTHS) / STRENGTHS
    assert service.at_strength(0.49) is half
    assert service.at_strength(None) is predictor
    half.predict(box=BOX, picture=picture)


def test_a_model_without_a_plugin_is_one_system(predictor):
    plain = Service(Predictor(*small.nano(), slots=SLOTS), "plain")
    client = connect(plain)
    digest = client.post("/v1/pictures", content=CONTENT).json()["picture"]
    answer = client.post("/v1/compare", json={"picture": digest, "box": BOX, "jitters": 3}).json()
    assert [one["system"] for one in answer["systems"]] == ["plain"]
    refused = client.post("/v1/worst-box", json={"picture": digest, "box": BOX, "system": "stable"})
    assert refused.json() == {"error": "system stable: the model has no plugin; ask for plain."}
    assert client.get("/v1/model").json()["strength"] is None


@pytest.mark.slow
def test_the_worst_box_is_the_predictor_s(client, predictor):
    digest = client.post("/v1/pictures", content=CONTENT).json()["picture"]
    answer = client.post("/v1/worst-box", json={"picture": digest, "box": BOX, "system": "stable"}).json()
    found = predictor.worst_box(BOX, picture=predictor.encode(PIXELS))
    assert answer["box"] == pytest.approx(np.clip(found.box, 0, [60, 40, 60, 40]).tolist(), abs=0.01)
    assert answer["iou"] == pytest.approx(found.iou, abs=0.01)
    assert answer["iou_before"] == pytest.approx(found.iou_before)


def test_the_pictures_of_the_package_are_offered(client):
    names = client.get("/v1/examples").json()["examples"]
    assert len(names) == len(list((ASSETS / "im").glob("*.jpg"))) == 9
    for name in names:
        assert client.get(f"/examples/{name}.jpg").headers["content-type"] == "image/jpeg"
