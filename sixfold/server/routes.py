"""The endpoints: each reads its request, asks the engine, and answers in OpenAI's or vLLM's shape.

Owns: paths and methods. Must not know: JSON strictness, limits, authentication, how events are written.
"""

from __future__ import annotations

from typing import Any, cast

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from sixfold.errors import EngineDeadError
from sixfold.server import body
from sixfold.server.completions import CompletionChoices
from sixfold.server.error_body import DrainingError
from sixfold.server.openai import ChatRequest, CompletionRequest, DetokenizeRequest, Prompt, TokenizeRequest
from sixfold.server.responses import VERSION, chat_response, model_card, usage_of
from sixfold.server.sampling_fields import StreamOptions
from sixfold.server.state import ServerState
from sixfold.server.stream import ChatEvents, CompletionEvents, EventStream

router = APIRouter()


def state_of(request: Request) -> ServerState:
    return cast(ServerState, request.app.state.server)


def _body(model: str) -> dict[str, Any]:
    """The request body for the OpenAPI description; the body itself is read by ``body.read``."""
    schema = {"$ref": f"#/components/schemas/{model}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post("/v1/chat/completions", openapi_extra=_body("ChatRequest"))
async def chat_completions(request: Request) -> Response:
    state = state_of(request)
    ask = await body.read(request, ChatRequest)
    head = state.head("chatcmpl", ask)
    params = ask.params(state.config)
    prompts = state.cut([await state.tokenize_chat(ask.messages, ask)], params, ask)
    as_id = ask.return_tokens_as_token_ids
    if ask.stream:
        generation = await state.start(prompts, params, ask)
        return EventStream(generation, ChatEvents(head, ask.stream_options or StreamOptions(), as_id))
    (output,) = await state.whole(request, prompts, params, ask)
    return JSONResponse(chat_response(head, output, as_id))


@router.post("/v1/completions", openapi_extra=_body("CompletionRequest"))
async def completions(request: Request) -> Response:
    state = state_of(request)
    ask = await body.read(request, CompletionRequest)
    head = state.head("cmpl", ask)
    params = ask.params(state.config)
    prompts = state.cut(await state.tokenize(ask.prompt, ask.add_special_tokens), params, ask)
    tokenizer = state.engine.tokenizer
    texts: list[str] = []
    if ask.echo:
        texts = [p.text if p.text is not None else tokenizer.decode(p.ids) for p in prompts]
    choices = CompletionChoices(ask, tokenizer, texts)
    if ask.stream:
        options = ask.stream_options or StreamOptions()
        generation = await state.start(prompts, params, ask)
        return EventStream(generation, CompletionEvents(head, options, choices, ask.only_prompt))
    outputs = await state.whole(request, prompts, params, ask)
    listed = [choice for i, output in enumerate(outputs) for choice in choices.with_prompt_logprobs(i, output)]
    usage = usage_of(outputs, only_prompt=ask.only_prompt)
    return JSONResponse({**head.fields("text_completion"), "choices": listed, "usage": usage})


@router.get("/v1/models")
async def models(request: Request) -> Response:
    state = state_of(request)
    names = (*state.names, *state.engine.adapters)
    return JSONResponse({"object": "list", "data": [_card(state, name) for name in names]})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    state = state_of(request)
    return JSONResponse(_card(state, state.model_name(name)))


def _card(state: ServerState, name: str) -> dict[str, Any]:
    parent = state.names[0] if state.adapter(name) is not None else None
    root = name if parent is not None else state.names[0]  # an adapter's path is nobody's business
    return model_card(name, root, state.created, state.engine.max_model_len, parent)


@router.post("/tokenize", openapi_extra=_body("TokenizeRequest"))
async def tokenize(request: Request) -> Response:
    state = state_of(request)
    ask = await body.read(request, TokenizeRequest)
    state.model_name(ask.model)
    ask.check()
    if ask.messages is not None:
        prompt = await state.tokenize_chat(ask.messages, ask)
    else:
        (prompt,) = await state.tokenize([Prompt(text=ask.prompt)], ask.add_special_tokens is not False)
    text_of = state.engine.tokenizer.token_text
    return JSONResponse(
        {
            "count": len(prompt.ids),
            "max_model_len": state.engine.max_model_len,
            "tokens": list(prompt.ids),
            "token_strs": [text_of(i) for i in prompt.ids] if ask.return_token_strs else None,
        }
    )


@router.post("/detokenize", openapi_extra=_body("DetokenizeRequest"))
async def detokenize(request: Request) -> Response:
    state = state_of(request)
    ask = await body.read(request, DetokenizeRequest)
    state.model_name(ask.model)
    return JSONResponse({"prompt": await state.detokenize(ask.tokens)})


@router.post("/reset_prefix_cache")
async def reset_prefix_cache(request: Request) -> Response:
    """Forgets all cached prefixes before any later request; those that run go on. Nothing to do is fine too."""
    state_of(request).engine.reset_prefix_cache()
    return Response(status_code=200)


@router.get("/health")
@router.get("/ping")
@router.post("/ping", include_in_schema=False)
async def health(request: Request) -> Response:
    """Whether the process is of use at all; a draining server still is. Anything but 200 asks for a restart."""
    if state_of(request).engine.dead:
        raise EngineDeadError("The engine has stopped", remedy="Restart the server; its log has the reason")
    return JSONResponse({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether new requests are taken: what a load balancer asks."""
    if (seconds := state_of(request).retry_after()) is not None:
        raise DrainingError(seconds)
    return await health(request)


@router.get("/version")
async def version() -> Response:
    return JSONResponse({"version": VERSION})


@router.get("/load")
async def load(request: Request) -> Response:
    """Requests in work (this one not counted)."""
    return JSONResponse({"server_load": state_of(request).active})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    exposition, content_type = state_of(request).metrics.expose(request.headers.get("accept", ""))
    return Response(exposition, headers={"content-type": content_type})
