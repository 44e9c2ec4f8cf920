"""The application: routes, guard and error shape put together around one engine.

Owns: the assembly. Must not know: how requests are read or answered. ``serve.py`` runs it as a process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from sixfold.config import ServerConfig
from sixfold.engine.async_engine import AsyncEngine
from sixfold.errors import ConfigError
from sixfold.metrics import Metrics
from sixfold.server import adapters
from sixfold.server.error_body import http_error_response
from sixfold.server.middleware import Guard, nearest_path
from sixfold.server.openai import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from sixfold.server.responses import VERSION
from sixfold.server.routes import router
from sixfold.server.state import ServerState

_BODIES = (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)


def create_app(
    engine: AsyncEngine,
    config: ServerConfig | None = None,
    *,
    metrics: Metrics | None = None,
    aliases: Sequence[str] = (),
) -> FastAPI:
    """The server around ``engine``; shuts the engine down when the application ends.

    ``metrics`` is the engine's step listener; without it only what the engine counts itself is shown. ``aliases`` are
    further names under which the model is served. ``app.state.server`` is the :class:`ServerState`.
    """
    config = config or ServerConfig()
    # A chosen name replaces the name the model was loaded by, which may be a path that is nobody's business.
    names = tuple(dict.fromkeys((config.served_model_name or engine.model_name, *aliases)))
    for name in set(names) & set(engine.adapters):
        raise ConfigError(
            f"An adapter and the model are both named {name!r}", remedy="Choose another name", param="lora"
        )
    metrics = metrics or Metrics(names[0], max_model_len=engine.max_model_len)
    metrics.attach(engine.stats)
    state = ServerState(engine, config, metrics, names)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.shutdown()

    app = FastAPI(title="Sixfold", version=VERSION, lifespan=lifespan, redirect_slashes=False)
    app.state.server = state
    app.include_router(router)
    if config.lora_root is not None:
        app.include_router(adapters.router)
    app.add_middleware(Guard, state=state)
    app.add_exception_handler(HTTPException, _http_error)
    app.openapi = lambda: _describe(app)  # type: ignore[method-assign]
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    if error.status_code == 404:
        known = sorted({str(getattr(route, "path", "")) for route in router.routes})
        message = f"There is nothing at {path[:200]}. {nearest_path(path, known)}"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow", "another method")
        message = f"{path[:200]} does not take {method[:20]}. Use {allowed}."
    else:
        message = str(error.detail)
    return http_error_response(error.status_code, message, error.headers)


def _describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, with the request models that the routes read by themselves."""
    if app.openapi_schema is None:
        schemas = FastAPI.openapi(app).setdefault("components", {}).setdefault("schemas", {})
        for model in _BODIES:
            schemas[model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
    assert app.openapi_schema is not None
    return app.openapi_schema
