"""The Starlette application: all endpoints, the guard before them, and errors as JSON."""

import base64
import binascii
import hmac
import importlib.resources
import ipaddress
import logging

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from serve import cvat, json_api, label_studio, live, openapi, samapi
from serve.endpoint import Endpoint, Workers, route
from serve.origins import Origins
from serve.refusal import Refusal
from serve.schemas import record, text
from serve.service import Service
from stablesam_jax.data.collage import ASSETS
from stablesam_jax.errors import InputError

OPEN = ("/", "/health", "/docs", "/openapi.json")  # need no token: they hold nothing of a user
# The page is one file, and asks this server alone. It may be shown by pages of this machine, such as notebooks.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors http://127.0.0.1:* http://localhost:*"
)
OPEN_BELOW = "/examples/"  # pictures of the package

log = logging.getLogger("stablesam.serve")


def application(service: Service, origins: Origins | None = None, *, token: str | None = None) -> Starlette:
    """Builds the application.

    Args:
        service: the model.
        origins: where pictures may come from, beside requests.
        token: that requests have to bring; without one, only those from this machine are answered.
    """
    endpoints = all_endpoints(service, origins or Origins())
    document = openapi.document(endpoints)
    workers = Workers(service.limits)
    page = importlib.resources.files("serve").joinpath("page/index.html").read_text("utf-8")
    routes: list[Route | Mount] = [route(endpoint, workers, service.limits) for endpoint in endpoints]
    routes += [
        Route("/", lambda _: HTMLResponse(page, headers={"Content-Security-Policy": POLICY})),
        Route("/docs", lambda _: HTMLResponse(openapi.page(document))),
        Route("/openapi.json", lambda _: JSONResponse(document)),
        Mount("/examples", StaticFiles(directory=ASSETS / "im")),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, token=token)],
        exception_handlers={InputError: _refused, HTTPException: _not_found, Exception: _failed},
    )


def all_endpoints(service: Service, origins: Origins) -> list[Endpoint]:
    """The endpoints of all clients."""
    health = Endpoint(
        path="/health",
        method="GET",
        client="all",
        about="Whether the server is up.",
        answer=lambda _: {"status": "UP", "model": service.name},
        response=record({"status": text(), "model": text()}),
        at_once=True,  # a busy server is up
    )
    return [
        health,
        *json_api.endpoints(service, origins),
        *live.endpoints(service),
        *label_studio.endpoints(service, origins),
        *cvat.endpoints(service),
        *samapi.endpoints(service),
    ]


class Guard:
    """Refuses requests without the token; and those of other pages in the user's browser.

    A page of any site may send requests to this machine. Its name in Origin, or in Host after rebinding its name to
    this machine's address, tells it apart.
    """

    def __init__(self, app: ASGIApp, token: str | None):
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refusal(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        authorization = headers.get("authorization", "")
        # No other page can send the token as Bearer. A proxy before this server may change Host, but not Origin.
        if self._token is not None and _is_bearer(authorization) and _has_token(authorization, self._token):
            return None
        if origin is not None and origin.partition("://")[2] != host:
            return _error(403, "requests of other pages are refused.")
        path = scope["path"]
        if self._token is None:
            name = host.rpartition(":")[0].strip("[]") if host.rpartition(":")[2].isdecimal() else host.strip("[]")
            return None if is_loopback(name) else _error(403, "without a token only this machine is served.")
        if path in OPEN or path.startswith(OPEN_BELOW) or _has_token(authorization, self._token):
            return None
        refusal = _error(401, "the token is missing or wrong; send Authorization: Bearer TOKEN.")
        refusal.headers["WWW-Authenticate"] = "Bearer"  # at Basic, a browser would open a window of its own
        return refusal


def is_loopback(host: str) -> bool:
    """Whether a name or an address is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_bearer(authorization: str) -> bool:
    return authorization.partition(" ")[0].lower() == "bearer"


def _has_token(authorization: str, token: str) -> bool:
    """Whether a header has the token: as Bearer, or as the password of Basic, which Label Studio sends."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return False
    return scheme.lower() in ("basic", "bearer") and hmac.compare_digest(given.encode(), token.encode())


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


def _refused(_: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Refusal) else 400
    answer = _error(status, str(error))
    if status == 503:
        answer.headers["Retry-After"] = "1"
    return answer


def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = _error(error.status_code, f"{request.method} {request.url.path[:60]}: {error.detail}; see /docs.")
    answer.headers.update(error.headers or {})
    return answer


def _failed(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _error(500, "the server failed; its log says why.")
