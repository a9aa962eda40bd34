"""Where pictures come from: in the request, from hosts that were allowed, or below a folder that was allowed."""

import base64
import binascii
import dataclasses
import http.client
import json
import pathlib
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, Any

from serve.refusal import Refusal
from stablesam_jax.errors import InputError

TIMEOUT = 20  # seconds for a host to answer
PORTS = {"http": 80, "https": 443}
LOCAL_FILES = "/data/local-files/"  # of Label Studio: ?d=PATH below its document root
UPLOADS = "/data/"  # of Label Studio, on its own host


def from_base64(text: str) -> bytes:
    """Decodes a picture in a request, with or without `data:...;base64,` before it.

    Raises:
        InputError: it is not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the picture is not base64; encode the bytes of its file so.") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origins:
    """What may be read on behalf of a request."""

    hosts: tuple[str, ...] = ()  # HOST or HOST:PORT
    folder: pathlib.Path | None = None
    label_studio: str | None = None  # URL
    label_studio_key: str | None = None
    max_bytes: int = 64 << 20

    def read(self, where: str) -> bytes:
        """The file of a picture.

        Args:
            where: base64 as `data:...`, a URL, a path of Label Studio, or a path below the folder.

        Raises:
            Refusal: 403, the place is not allowed; 404, nothing is there; 413, it is too large; 502, the host fails.
            InputError: malformed base64.
        """
        if where.startswith("data:"):
            return from_base64(where)
        if "://" in where:
            return self._fetch(where, {})
        if where.startswith(LOCAL_FILES):
            named = urllib.parse.parse_qs(urllib.parse.urlsplit(where).query).get("d", [""])[0]
            return self._local(named)
        if where.startswith(UPLOADS) and self.label_studio is not None:
            return self._fetch(self.label_studio.rstrip("/") + where, self._authorization())
        return self._local(where)

    def _local(self, name: str) -> bytes:
        if self.folder is None:
            raise Refusal(403, "pictures by path are not allowed here; start the server with --files FOLDER.")
        try:
            root = self.folder.resolve(strict=True)
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                raise Refusal(403, "the path is not below the folder of --files.")
            if path.is_file():
                with open(path, "rb") as file:
                    return self._bounded(file)
        except InputError:
            raise
        except (OSError, ValueError, RuntimeError):  # too long, of bytes that no name has, or links in a circle
            pass
        raise Refusal(404, "the path names no file below the folder of --files that can be read.")

    def _fetch(self, url: str, headers: dict[str, str]) -> bytes:
        self._check_host(url)
        try:
            with self._open(urllib.request.Request(_quoted(url), headers=headers)) as answer:
                return self._bounded(answer)
        except InputError:
            raise
        except urllib.error.HTTPError as error:
            error.close()
            raise Refusal(502, f"{_host(url)}: answered {error.code} for the picture.") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refusal(502, f"{_host(url)}: the picture cannot be fetched ({type(error).__name__}).") from None

    def _open(self, request: urllib.request.Request) -> Any:
        """Opens a URL without a proxy; follows redirects to allowed hosts alone, without the first one's headers."""
        allowed = self

        class Redirects(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, request, file, code, message, headers, url):
                file.close()
                allowed._check_host(url)
                return urllib.request.Request(_quoted(url))

        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), Redirects)
        return opener.open(request, timeout=TIMEOUT)

    def _check_host(self, url: str) -> None:
        given = _host(url)
        ours = [] if self.label_studio is None else [_host(self.label_studio)]
        if given not in ours + [_host(f"{url.partition('://')[0]}://{host}") for host in self.hosts]:
            raise Refusal(403, f"{given}: pictures of this host are not allowed; start with --allow-host {given}.")

    def _authorization(self) -> dict[str, str]:
        """Label Studio's two kinds of keys: the legacy one, and one that is exchanged for a token of five minutes."""
        if not self.label_studio_key or self.label_studio is None:
            return {}
        if "." not in self.label_studio_key:
            return {"Authorization": f"Token {self.label_studio_key}"}
        url = self.label_studio.rstrip("/") + "/api/token/refresh"
        body = json.dumps({"refresh": self.label_studio_key}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with self._open(request) as answer:
                return {"Authorization": f"Bearer {json.loads(self._bounded(answer))['access']}"}
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            raise Refusal(502, "Label Studio does not accept the key; check $LABEL_STUDIO_API_KEY.") from None

    def _bounded(self, file: IO[bytes]) -> bytes:
        content = file.read(self.max_bytes + 1)
        if len(content) > self.max_bytes:
            raise Refusal(413, f"the picture has more than {self.max_bytes >> 20} MB; make it smaller.")
        return content


def _quoted(url: str) -> str:
    """A URL as browsers send it: spaces and letters beyond ASCII are quoted, what is quoted already stays."""
    return urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")


def _host(url: str) -> str:
    """HOST:PORT of a URL.

    Raises:
        InputError: it has none.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme)
    except ValueError:
        raise InputError("the URL of the picture is malformed.") from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise InputError("the URL of the picture is not one of http:// or https://.")
    return f"{parts.hostname}:{port}"
