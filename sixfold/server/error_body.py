"""Errors as clients see them: which HTTP status an exception becomes, and OpenAI's error body.

Owns: the mapping and the errors that exist only over HTTP. Must not know: routes, or how a request runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from sixfold.errors import (
    ContextLengthError,
    EngineDeadError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    SixfoldError,
    TemplateError,
)


class BodyTooLargeError(InvalidRequestError):
    """The body is larger than ``max_body_bytes``."""


class HeadersTooLargeError(InvalidRequestError):
    """The request line and headers are larger than ``max_header_bytes``."""


class MediaTypeError(InvalidRequestError):
    """The body is declared as something other than JSON."""


class ApiKeyError(SixfoldError):
    """The API key is missing or wrong."""


class DrainingError(OverloadedError):
    """The server is shutting down and takes no new requests."""

    def __init__(
        self, retry_after: float, *, what: str = "The server is shutting down and takes no new requests"
    ) -> None:
        self.retry_after = retry_after
        super().__init__(what, remedy="Send the request again later")


class GenerationFailedError(SixfoldError):
    """The engine ended this request with an error."""


# The first class that matches wins, so subclasses stand before their parents: status, type, code.
_MAPPING: tuple[tuple[type[SixfoldError], int, str, str], ...] = (
    (ContextLengthError, 400, "invalid_request_error", "context_length_exceeded"),
    (BodyTooLargeError, 413, "invalid_request_error", "body_too_large"),
    (HeadersTooLargeError, 431, "invalid_request_error", "headers_too_large"),
    (MediaTypeError, 415, "invalid_request_error", "unsupported_media_type"),
    (InvalidRequestError, 400, "invalid_request_error", "invalid_request"),
    (TemplateError, 400, "invalid_request_error", "chat_template_error"),
    (ModelNotFoundError, 404, "invalid_request_error", "model_not_found"),
    (ApiKeyError, 401, "authentication_error", "invalid_api_key"),
    (DrainingError, 503, "overloaded_error", "draining"),
    (OverloadedError, 429, "overloaded_error", "queue_full"),
    (EngineDeadError, 503, "server_error", "engine_dead"),
    (SixfoldError, 500, "server_error", "internal_error"),
)


def error_body(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for ``error``. What is not ours is described without any of its text."""
    if not isinstance(error, SixfoldError):
        message = (
            "The server failed on this request. This is a defect of the server, not of the request; its log has more."
        )
        return 500, error_body(message, "server_error", "internal_error"), {}
    status, kind, code = next((s, k, c) for cls, s, k, c in _MAPPING if isinstance(error, cls))
    headers: dict[str, str] = {}
    if isinstance(error, DrainingError):
        headers = {"retry-after": str(max(1, math.ceil(error.retry_after))), "connection": "close"}
    elif isinstance(error, OverloadedError):
        headers = {"retry-after": "1"}
    elif isinstance(error, ApiKeyError):
        headers = {"www-authenticate": "Bearer"}
    return status, error_body(error.message, kind, code, error.param), headers


def error_response(error: BaseException) -> JSONResponse:
    status, body, headers = describe(error)
    return JSONResponse(body, status, headers)


def http_error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """For what the router refuses: an unknown path, a wrong method."""
    code = HTTPStatus(status).name.lower()
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse(error_body(message, kind, code), status, dict(headers or {}))
