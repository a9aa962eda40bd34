"""What /openapi.json says holds: schemathesis' requests, and mutations of recorded ones, have the answers it names."""

import copy
import json
import random

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import checks

from serve.limits import Limits
from serve.service import Service
from tests.reference.tiers import slow
from tests.serve import test_cvat, test_label_studio, test_samapi
from tests.serve.conftest import connect, in_base64, png

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]
CONTENT = png()[0]
DATA = f"data:image/png;base64,{in_base64(CONTENT)}"
BOX = [10, 5, 45, 35]


@pytest.fixture(scope="module")
def tested(predictor):
    """A client that gives every request to this machine."""
    return connect(Service(predictor, "small", limits=Limits(max_pixels=10_000, max_megabytes=1), jitters=3))


@pytest.mark.parametrize("examples", [3, *slow(100)])
def test_every_answer_is_as_the_document_says(tested, examples):
    schema = schemathesis.openapi.from_asgi("/openapi.json", tested.app, headers={"Host": "127.0.0.1"})
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 12
    for operation in operations:
        takes_json = any(body.media_type == "application/json" for body in operation.body)
        for mode in schemathesis.GenerationMode if takes_json else [schemathesis.GenerationMode.POSITIVE]:
            ask(operation, mode, examples)


def ask(operation, mode, examples):
    """Sends drawn requests, good or malformed ones, and checks the answers."""

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(operation.as_strategy(generation_mode=mode))
    def send(case):
        case.call_and_validate(checks=CHECKS, headers={"Host": "127.0.0.1"})

    send()


def recorded(digest):
    """A good request of every kind."""
    image = in_base64(CONTENT)
    return [
        ("/v1/masks", {"picture": digest, "box": BOX, "form": "polygons", "jitters": 2}),
        ("/v1/masks", {"image": image, "points": [[30, 20]], "labels": [1], "multimask": False}),
        ("/v1/compare", {"picture": digest, "box": BOX, "jitters": 3, "noise": 0.4, "strength": 0.5, "seed": 1}),
        ("/predict", test_label_studio.request(DATA, test_label_studio.BOX, test_label_studio.CLICK)),
        ("/setup", {"project": "1", "schema": test_label_studio.CONFIG}),
        ("/cvat", test_cvat.request(pos_points=[[30, 20]], obj_bbox=[[10, 5], [45, 35]])),
        ("/sam/", test_samapi.BOX | {"b64img": image}),
    ]


WRONG = (None, True, -1, 0, 0.5, 1e300, -1e9, 10**400, "", "x" * 3000, "\0", "é\udce9", [], {}, [[]], [None], {"a": 1})


def mutated(rng, value):
    """The value with one part replaced, removed, doubled or moved."""
    value = copy.deepcopy(value)
    places = list(parts(value))
    holder, key = rng.choice(places)
    match rng.randrange(4):
        case 0:
            holder[key] = copy.deepcopy(rng.choice(WRONG))
        case 1:
            del holder[key]
        case 2 if isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        case _ if isinstance(holder[key], int | float):
            holder[key] = holder[key] * rng.choice([-1, 0, 1.5, 100, 1e6])
        case _:
            holder[key] = [copy.deepcopy(holder[key])]
    return value


def parts(value):
    """(container, key) of every part."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from parts(value[key])


@pytest.mark.parametrize("count", [49, *slow(1000)])
def test_no_mutation_of_a_good_request_is_a_fault_of_the_server(tested, count):
    rng = random.Random(0)
    digest = tested.post("/v1/pictures", content=CONTENT).json()["picture"]
    good = recorded(digest)
    for path, body in good:
        assert tested.post(path, json=body).status_code == 200, path
    statuses = []
    for index in range(count):
        path, body = good[index % len(good)]
        for _ in range(rng.randrange(1, 4)):
            body = mutated(rng, body) if list(parts(body)) else body
        answer = tested.post(path, content=json.dumps(body))
        assert answer.status_code < 500, (path, str(body)[:2000], answer.text)
        if answer.status_code >= 400:
            assert list(answer.json()) == ["error"]
        statuses.append(answer.status_code)
    assert statuses.count(200) > count / 20
    assert statuses.count(400) > count / 4
