"""What every request passes before and after its route: limits, API key, request id, errors as JSON.

Owns: the order of these checks. Must not know: what the routes do. Plain ASGI, because a wrapper that buffers or
re-streams responses would cost every token and hide a client's leaving from the route.
"""

from __future__ import annotations

import difflib
import hmac
import logging
import re
import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sixfold.server.error_body import (
    ApiKeyError,
    BodyTooLargeError,
    DrainingError,
    HeadersTooLargeError,
    describe,
    error_response,
)
from sixfold.server.state import ServerState

_log = logging.getLogger("sixfold.server")
_access = logging.getLogger("sixfold.server.access")

# Probes and scrapes: open without a key, answered while draining, not counted as load.
PROBES = frozenset({"/health", "/ping", "/ready", "/version", "/metrics", "/load"})
OPEN = PROBES - {"/load"}

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")  # printable, so that it can go back into a header and into a log


class Guard:
    """The outermost layer of ours: no exception of a route gets past it."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state
        key = state.config.api_key
        self._api_key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = scope["path"] not in PROBES
        exchange = _Exchange(scope, receive, send, self._state.config.max_body_bytes)
        self._state.active += counted
        try:
            self._admit(scope)
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = exchange.status or 499
        except Exception as error:
            await self._fail(exchange, error)
        finally:
            self._state.active -= counted
            self._account(exchange)

    def _admit(self, scope: Scope) -> None:
        """Raises what keeps this request out. Nothing of the body has been read yet."""
        config, path = self._state.config, scope["path"]
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > config.max_header_bytes:
            raise HeadersTooLargeError(
                f"The headers have {size} bytes, and this server allows {config.max_header_bytes}",
                remedy="Send fewer or shorter headers, or start the server with a larger max_header_bytes",
            )
        if path not in OPEN and self._api_key is not None:
            self._check_key(scope)
        if path not in PROBES and (seconds := self._state.retry_after()) is not None:
            raise DrainingError(seconds)
        length = _header(scope, b"content-length")
        if length is not None and length.isdigit():
            check_body(int(length), config.max_body_bytes)

    def _check_key(self, scope: Scope) -> None:
        assert self._api_key is not None
        scheme, _, given = (_header(scope, b"authorization") or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            raise ApiKeyError("An API key is needed", remedy="Send the header Authorization: Bearer KEY")
        if not hmac.compare_digest(given.strip(), self._api_key):
            raise ApiKeyError("The API key is wrong", remedy="Send the key that the server was started with")

    async def _fail(self, exchange: _Exchange, error: Exception) -> None:
        if describe(error)[0] == 500:
            _log.error("Request %s failed", exchange.request_id, exc_info=error)
        if exchange.status:  # a response has begun: ending it early is the only sign left
            raise error
        await error_response(error)(exchange.scope, exchange.receive, exchange.send)

    def _account(self, exchange: _Exchange) -> None:
        scope, status = exchange.scope, exchange.status
        route = scope.get("route")
        handler = getattr(route, "path", "unmatched")
        self._state.metrics.on_http_response(scope["method"] if handler != "unmatched" else "ANY", handler, status)
        if handler not in PROBES:
            seconds = time.monotonic() - exchange.began
            _access.info("%s %s %d %.3fs %s", scope["method"], handler, status, seconds, exchange.request_id)


class _Exchange:
    """One request's receive and send, bounded and stamped."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self.scope = scope
        self.began = time.monotonic()
        self.status = 0  # of the response, once it has begun
        given = _header(scope, b"x-request-id")
        self.request_id = given.decode() if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self._receive = receive
        self._send = send
        self._max_body_bytes = max_body_bytes
        self._read = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            check_body(self._read, self._max_body_bytes)  # a chunked body says its size only by arriving
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
        await self._send(message)


def check_body(size: int, limit: int) -> None:
    if size > limit:
        raise BodyTooLargeError(
            f"The body has more than {limit} bytes",
            remedy="Send a smaller request, or start the server with a larger max_body_bytes",
        )


def nearest_path(path: str, known: list[str]) -> str:
    """A remedy for an unknown path, e.g. for a base URL without ``/v1``."""
    near = [k for k in known if k.endswith(path) and len(path) > 1] or difflib.get_close_matches(path[:100], known, n=1)
    return f"Did you mean {near[0]}?" if near else f"Known paths: {', '.join(known)}"


def _header(scope: Scope, name: bytes) -> bytes | None:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return next((value for key, value in headers if key == name), None)
