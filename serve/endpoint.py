"""One request of a client, as a function in a worker thread; the table of them makes routes and /openapi.json."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any, Literal

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from serve.limits import Limits
from serve.refusal import Refusal
from serve.schemas import Schema, checker

Answer = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A path, what is sent there, and what comes back."""

    path: str
    about: str  # one line
    client: str  # the tool that uses it
    answer: Answer  # of the checked body, or of None for GET, in a worker thread
    response: Schema
    method: Literal["GET", "POST"] = "POST"
    request: Schema | None = None  # of a JSON body
    takes_file: bool = False  # the body is the file of a picture
    is_text: bool = False  # the answer is plain text
    at_once: bool = False  # answered without waiting for a thread
    status: int = 200


class Workers:
    """Threads that compute, and a queue of bounded length before them."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._running = 0

    @functools.cached_property
    def _threads(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(self._limits.threads)

    async def run(self, function: Callable[[], Any]) -> Any:
        """Runs a function in a thread, after those that wait already.

        Raises:
            Refusal: 503, the queue is full.
        """
        if self._running >= self._limits.threads + self._limits.queue:
            raise Refusal(503, f"the server is busy ({self._running} requests); try again in a moment.")
        self._running += 1
        try:
            return await anyio.to_thread.run_sync(function, limiter=self._threads)
        finally:
            self._running -= 1


def route(endpoint: Endpoint, workers: Workers, limits: Limits) -> Route:
    """The Starlette route of an endpoint."""
    check = None if endpoint.request is None else checker(endpoint.request)

    def work(body: bytes) -> bytes:
        # Parsing and writing belong to the thread: a body may have megabytes.
        given = check(body) if check is not None else body if endpoint.takes_file else None
        answer = endpoint.answer(given)
        return (answer if endpoint.is_text else json.dumps(answer, allow_nan=False, separators=(",", ":"))).encode()

    async def handle(request: Request) -> Response:
        body = await _read(request, limits.max_bytes)
        content = work(body) if endpoint.at_once else await workers.run(functools.partial(work, body))
        kind = "text/plain; charset=utf-8" if endpoint.is_text else "application/json"
        return Response(content, endpoint.status, media_type=kind)

    return Route(endpoint.path, handle, methods=[endpoint.method])


async def _read(request: Request, max_bytes: int) -> bytes:
    too_large = Refusal(413, f"the request has more than {max_bytes >> 20} MB; send a smaller picture.")
    if request.headers.get("content-length", "0").isdecimal() and (
        int(request.headers.get("content-length", "0")) > max_bytes
    ):
        raise too_large
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                raise too_large
    except ClientDisconnect:
        raise Refusal(400, "the request was cut off.") from None
    return bytes(body)
