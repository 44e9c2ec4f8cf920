"""The endpoints that load and unload LoRA adapters, in vLLM's shape; there only when a directory for them is set.

Owns: their paths, bodies and the limits of what may be read. Must not know: adapters' files, or how they are run.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import PlainTextResponse, Response

from sixfold.errors import InvalidRequestError, ModelFileError, UnsupportedModelError
from sixfold.server import body
from sixfold.server.body import clip
from sixfold.server.routes import state_of

router = APIRouter()

Text = Annotated[str, Field(strict=True, min_length=1, max_length=4096)]


class LoadRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    lora_name: Text
    lora_path: Text


class UnloadRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    lora_name: Text
    lora_int_id: int | None = None  # vLLM's clients may send one; the name says it all


@router.post("/v1/load_lora_adapter")
async def load_lora_adapter(request: Request) -> Response:
    """Reads an adapter below ``lora_root`` and serves it as a model of its own name."""
    state = state_of(request)
    ask = await body.read(request, LoadRequest)
    assert state.config.lora_root is not None
    path = inside(Path(state.config.lora_root), ask.lora_path)
    if ask.lora_name in state.names:
        raise InvalidRequestError(
            f"The model itself is named {clip(ask.lora_name)!r}", remedy="Use another name", param="lora_name"
        )
    try:
        await asyncio.to_thread(state.engine.load_lora, ask.lora_name, path)
    except (ModelFileError, UnsupportedModelError) as error:
        raise InvalidRequestError(error.what, cause=error.cause, remedy=error.remedy, param="lora_path") from None
    return PlainTextResponse(f"Success: LoRA adapter {ask.lora_name!r} added successfully.")


@router.post("/v1/unload_lora_adapter")
async def unload_lora_adapter(request: Request) -> Response:
    """Takes the name away; requests that run with the adapter finish."""
    ask = await body.read(request, UnloadRequest)
    state_of(request).engine.unload_lora(ask.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter {ask.lora_name!r} removed successfully.")


def inside(root: Path, asked: str) -> Path:
    """The directory asked for, links followed. Raises InvalidRequestError when it is not below ``root``."""
    try:
        root = root.resolve(strict=True)
        path = (root / asked).resolve()
        below = path.is_relative_to(root) and path != root
    except (OSError, ValueError, RuntimeError):  # no such root, a NUL in the name, a loop of links
        below = False
    if not below:
        raise InvalidRequestError(
            f"lora_path={clip(asked)!r} is not below the directory that adapters are loaded from",
            remedy="Put the adapter there (lora_root)", param="lora_path",
        )  # fmt: skip
    return path
