"""Who is answered, what is refused, and that a fault is no traceback."""

import base64

import pytest

from serve import application
from serve.limits import Limits
from serve.service import Service
from stablesam_jax.errors import InputError
from tests.serve.conftest import connect, in_base64, png

TOKEN = "correct horse"


def basic(password):
    return f"Basic {base64.b64encode(f'user:{password}'.encode()).decode()}"


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        ("Bearer wrong", 401),
        (TOKEN, 401),
        (basic(TOKEN), 200),  # as Label Studio sends it
        (basic("wrong"), 401),
        ("Basic ?", 401),
        ("Bearer é", 401),
    ],
)
def test_the_token_opens_the_api(service, given, status):
    client = connect(service, token=TOKEN, base_url="http://example.org")
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    answer = client.get("/v1/model", headers=headers)
    assert answer.status_code == status
    assert ("error" in answer.json()) == (status == 401)


@pytest.mark.parametrize("path", ["/", "/health", "/docs", "/openapi.json", "/examples/coffee.jpg"])
def test_what_holds_nothing_of_a_user_needs_no_token(service, path):
    assert connect(service, token=TOKEN).get(path).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[(name, 200) for name in ("127.0.0.1:9090", "127.1.2.3:9090", "localhost", "[::1]:80")],
        *[(name, 403) for name in ("example.org", "127.0.0.1.evil.org", "10.0.0.1")],
    ],
)
def test_without_a_token_a_name_that_was_rebound_to_this_machine_is_refused(client, host, status):
    assert client.get("/v1/model", headers={"Host": host}).status_code == status


def test_another_page_in_the_browser_is_refused(client):
    assert client.get("/v1/model", headers={"Origin": "http://127.0.0.1"}).status_code == 200
    assert client.get("/v1/model", headers={"Origin": "https://evil.org"}).status_code == 403
    assert client.get("/v1/model", headers={"Origin": "null"}).status_code == 403


@pytest.mark.parametrize(("given", "status"), [(f"Bearer {TOKEN}", 200), (basic(TOKEN), 403), ("Bearer wrong", 403)])
def test_behind_a_proxy_that_changes_host_a_page_needs_the_token_as_bearer(service, given, status):
    headers = {"Host": "127.0.0.1:9090", "Origin": "https://masks.example.org", "Authorization": given}
    assert connect(service, token=TOKEN).get("/v1/model", headers=headers).status_code == status


def test_unknown_paths_and_methods_are_json(client):
    assert client.get("/nothing").status_code == 404
    answer = client.put("/v1/masks")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json() == {"error": "PUT /v1/masks: Method Not Allowed; see /docs."}
    assert "error" in client.get("/examples/../__init__.py").json()


def test_a_large_request_is_refused_before_it_is_read(client):
    answer = client.post("/v1/pictures", content=b"0" * ((1 << 20) + 1))
    assert answer.status_code == 413
    assert answer.json() == {"error": "the request has more than 1 MB; send a smaller picture."}
    answer = client.post("/v1/pictures", content=iter([b"0" * (1 << 19)] * 3))  # no length is told
    assert answer.status_code == 413


def test_a_full_queue_is_refused_with_503(predictor):
    service = Service(predictor, "small", limits=Limits(threads=1, queue=0))
    client = connect(service)
    statuses = []

    def ask_meanwhile(*_):
        statuses.extend([client.get("/v1/model"), client.get("/health")])
        raise InputError("not this one.")

    service.pictures.add = ask_meanwhile
    client.post("/v1/pictures", content=b"")
    assert statuses[0].status_code == 503
    assert statuses[0].headers["retry-after"] == "1"
    assert statuses[1].status_code == 200


def test_a_fault_of_the_server_is_one_line(service, caplog):
    def fail(*_):
        raise RuntimeError("inner detail")

    service.pictures.add = fail
    answer = connect(service, raise_server_exceptions=False).post("/v1/pictures", content=png()[0])
    assert answer.status_code == 500
    assert answer.json() == {"error": "the server failed; its log says why."}
    assert "inner detail" in caplog.text


def test_the_page_and_the_documentation_are_html_that_asks_nobody_else(client):
    for path in ("/", "/docs"):
        answer = client.get(path)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "https://" not in answer.text.replace("https://arxiv.org", "")
        assert "src=" not in answer.text


def test_every_endpoint_is_in_the_document(client, service):
    document = client.get("/openapi.json").json()
    paths = {endpoint.path for endpoint in application.all_endpoints(service, application.Origins())}
    assert set(document["paths"]) == paths
    docs = client.get("/docs").text
    assert all(path in docs for path in paths)


def test_a_request_that_is_refused_leaves_no_trace_in_the_cache(client, service):
    client.post("/v1/masks", json={"image": in_base64(b"no picture"), "box": [1, 2, 3, 4]})
    assert len(service.pictures) == 0
