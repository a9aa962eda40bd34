"""Pictures are read from allowed hosts and below the allowed folder, and from nowhere else."""

import http.server
import json
import threading

import pytest

from serve.origins import Origins, from_base64
from serve.refusal import Refusal
from stablesam_jax.errors import InputError


@pytest.fixture
def host():
    """A host of pictures on loopback: its HOST:PORT, and the requests that it got."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            status = 302 if self.path.startswith("/to=") else 404 if self.path == "/absent" else 200
            self.send_response(status)
            if status == 302:
                self.send_header("Location", self.path.partition("=")[2])
            self.end_headers()
            self.wfile.write(b"picture" if self.path != "/large" else b"0" * 2000)

        def do_POST(self):
            asked.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"access": "short"}).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def refused(origins, where):
    with pytest.raises(InputError) as caught:
        origins.read(where)
    message = str(caught.value)
    assert "\n" not in message
    return getattr(caught.value, "status", 400), message


def test_an_allowed_host_is_asked_and_no_other(host):
    name, asked = host
    assert Origins(hosts=(name,)).read(f"http://{name}/a.png") == b"picture"
    assert refused(Origins(), f"http://{name}/a.png")[0] == 403
    # The part before @ is a user's name; the host is what follows.
    assert refused(Origins(hosts=("example.org",)), f"http://example.org@{name}/a.png")[0] == 403
    assert asked == [("/a.png", None)]


@pytest.mark.parametrize("named", ["ü b.jpg", "%C3%BC%20b.jpg"])
def test_a_name_with_a_space_or_an_umlaut_is_quoted_once(host, named):
    name, asked = host
    assert Origins(hosts=(name,)).read(f"http://{name}/{named}") == b"picture"
    assert asked == [("/%C3%BC%20b.jpg", None)]


def test_a_redirect_is_followed_to_allowed_hosts_alone(host):
    name, asked = host
    origins = Origins(hosts=(name,))
    assert origins.read(f"http://{name}/to=/b.png") == b"picture"
    status, message = refused(origins, f"http://{name}/to=http://169.254.169.254/secret")
    assert status == 403
    assert message.startswith("169.254.169.254:80: pictures of this host are not allowed")
    assert refused(origins, f"http://{name}/to=file:///etc/hostname")[0] == 502  # urllib follows to HTTP alone
    assert [path for path, _ in asked][-1].startswith("/to=file")


def test_failures_of_a_host_are_told_in_one_line(host):
    name, _ = host
    origins = Origins(hosts=(name, "127.0.0.1:1"), max_bytes=1000)
    assert refused(origins, f"http://{name}/absent") == (502, f"{name}: answered 404 for the picture.")
    assert refused(origins, f"http://{name}/large")[0] == 413
    assert refused(origins, "http://127.0.0.1:1/a")[0] == 502
    for malformed in ("http://", "ftp://example.org/a", "http://[::1/a", "http://a:99999/b", "://"):
        assert refused(origins, malformed)[0] == 400


def test_pictures_uploaded_to_label_studio_are_fetched_with_its_key(host):
    name, asked = host
    origins = Origins(label_studio=f"http://{name}/", label_studio_key="0123abcd")
    assert origins.read("/data/upload/3/a.png") == b"picture"
    assert asked == [("/data/upload/3/a.png", "Token 0123abcd")]
    asked.clear()
    origins = Origins(label_studio=f"http://{name}", label_studio_key="head.body.sign")
    assert origins.read("/data/upload/3/a.png") == b"picture"
    assert asked == [("/api/token/refresh", b'{"refresh": "head.body.sign"}'), ("/data/upload/3/a.png", "Bearer short")]


def test_the_key_is_not_sent_on_by_a_redirect(host):
    name, asked = host
    origins = Origins(label_studio=f"http://{name}/to=", label_studio_key="0123abcd")
    assert origins.read("/data/b.png") == b"picture"
    assert asked == [("/to=/data/b.png", "Token 0123abcd"), ("/data/b.png", None)]


def test_paths_stay_below_the_folder(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.png").write_bytes(b"a")
    (tmp_path / "secret").write_bytes(b"s")
    (folder / "link").symlink_to(tmp_path / "secret")
    origins = Origins(folder=folder)
    assert origins.read("sub/a.png") == b"a"
    assert origins.read(str(folder / "sub" / "a.png")) == b"a"
    assert origins.read("/data/local-files/?d=sub/a.png") == b"a"
    for outside in ("../secret", str(tmp_path / "secret"), "link", "/data/local-files/?d=../secret", "/etc/passwd"):
        assert refused(origins, outside) == (403, "the path is not below the folder of --files.")
    for absent in ("sub/b.png", "sub", "a\0b", "", "x" * 5000):
        assert refused(origins, absent)[0] == 404
    assert refused(Origins(), "sub/a.png")[0] == 403
    assert refused(Origins(folder=folder, max_bytes=0), "sub/a.png")[0] == 413


def test_base64_with_and_without_its_kind():
    assert from_base64("QUI=") == from_base64("data:image/png;base64,QUI=") == b"AB"
    for wrong in ("QUI", "Q U I =", "é"):
        with pytest.raises(InputError, match="not base64"):
            from_base64(wrong)


def test_a_refusal_has_its_status():
    assert Refusal(404, "gone.").status == 404
