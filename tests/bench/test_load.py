"""The load generator against servers that behave and servers that do not."""

from __future__ import annotations

from typing import Any

import pytest

from sixfold.bench.client import Client, Outcome, Request, Server
from sixfold.bench.load import Shape, cold, draw, run, summed, tokens_within
from tests.bench.fake_server import CLOSE, LATE_END, event, serving, tokens

SHAPE = Shape((2, 5), (3, 6), (100, 200))


def test_the_same_seed_draws_the_same_requests() -> None:
    one, two, other = draw(SHAPE, 20, 1), draw(SHAPE, 20, 1), draw(SHAPE, 20, 2)
    assert one == two != other
    assert {len(request.prompt) for request in one} == {2, 3, 4, 5}
    assert {request.new_tokens for request in one} == {3, 4, 5, 6}
    assert all(100 <= token <= 200 for request in one for token in request.prompt)
    text = draw(Shape((4, 4), (1, 1), None), 1, 0)[0].prompt
    assert isinstance(text, str) and len(text.split()) == 4


async def test_every_request_is_asked_once_and_counted() -> None:
    seen: list[dict[str, Any]] = []
    reports: list[int] = []
    async with serving(lambda body: tokens(body["max_tokens"], 0.001), seen) as url:
        requests = draw(SHAPE, 12, 3)
        found = await run(Server(url, "m", "secret"), requests, 3, reports.append)
    assert sorted(body["prompt"] for body in seen) == sorted(request.prompt for request in requests)
    assert all(body["max_tokens"] == body["min_tokens"] and body["ignore_eos"] and body["stream"] for body in seen)
    assert all("authorization: bearer secret" in body["head"] for body in seen)
    assert {body["connection"] for body in seen} == {1, 2, 3}, "a connection carries all requests of its client"
    assert (found["clients"], found["requests"], found["failures"], found["wrong_lengths"]) == (3, 12, 0, 0)
    assert found["output_tokens"] == sum(request.new_tokens for request in requests)
    assert found["output_tokens_per_second"] == pytest.approx(found["output_tokens"] / found["seconds"])
    assert 1 <= found["inter_token_ms"]["p50"] <= found["inter_token_ms"]["p99"]
    assert found["ttft_ms"]["p50"] >= 1 and reports == list(range(1, 13))


@pytest.mark.parametrize("ends", [[CLOSE], [LATE_END, CLOSE]])  # the second is llama-server
async def test_a_server_that_closes_after_every_answer_is_asked_on_a_new_connection(ends: list[Any]) -> None:
    seen: list[dict[str, Any]] = []
    async with serving(lambda body: [*tokens(body["max_tokens"]), *ends], seen) as url:
        found = await run(Server(url, "m"), draw(SHAPE, 6, 3), 2, lambda done: None)
    assert (found["requests"], found["failures"], len(seen)) == (6, 0, 6)
    assert {body["connection"] for body in seen} == set(range(1, 7))


async def test_an_answer_whose_last_line_comes_late_leaves_nothing_to_the_next_one() -> None:
    seen: list[dict[str, Any]] = []
    async with serving(lambda body: [*tokens(body["max_tokens"]), LATE_END], seen) as url:
        found = await run(Server(url, "m"), draw(SHAPE, 6, 3), 2, lambda done: None)
    assert (found["failures"], {body["connection"] for body in seen}) == (0, {1, 2})


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([b"status 400"], "HTTP 400"),
        ([b"status 503"], "not like this"),
        ([], "before [DONE]"),
        ([event(b"[DONE]")], "no token"),
        (tokens(3)[:-1], "before [DONE]"),
        ([*tokens(3)[:2], b""], "closed the connection"),
        ([event({"error": {"message": "out of memory"}})], "out of memory"),
        ([event(b"{broken")], "JSONDecodeError"),
        ([5.0, *tokens(3)], "no end within"),
    ],
)
async def test_a_failure_is_reported_and_the_next_request_goes_on(parts: list[Any], reason: str) -> None:
    answers = iter([parts, tokens(3)])
    async with serving(lambda body: next(answers)) as url:
        client = Client(Server(url, "m", timeout=0.5))
        failed = await client.ask(Request([1], 3))
        assert failed.error is not None and reason in failed.error
        assert (await client.ask(Request([1], 3))).error is None
        await client.close()


async def test_nobody_listens() -> None:
    outcome = await Client(Server("http://127.0.0.1:1", "m")).ask(Request("hello", 3))
    assert outcome.error is not None and "ConnectionRefusedError" in outcome.error


async def test_fields_that_a_server_refuses_are_left_out() -> None:
    seen: list[dict[str, Any]] = []
    async with serving(lambda body: tokens(1), seen) as url:
        client = Client(Server(url, "m", without=frozenset({"min_tokens", "stream_options"})))
        assert (await client.ask(Request("a", 1))).error is None
        await client.close()
    assert not {"min_tokens", "stream_options"} & seen[0].keys() and seen[0]["ignore_eos"]


async def test_tokens_are_counted_by_pieces_where_there_is_no_usage() -> None:
    stream = [part for part in tokens(4) if not (isinstance(part, bytes) and b"usage" in part)]
    async with serving(lambda body: stream) as url:
        client = Client(Server(url, "m"))
        outcome = await client.ask(Request("a", 4))
        await client.close()
    assert outcome.output_tokens == 4 and len(outcome.gaps) == 3


def test_sums_are_of_what_succeeded_and_name_what_failed() -> None:
    good = Outcome(3, first=0.1, total=0.5, gaps=[0.1, 0.3], prompt_tokens=7, output_tokens=3)
    short = Outcome(4, first=0.3, total=0.5, gaps=[0.2], prompt_tokens=1, output_tokens=2)
    bad = [Outcome(3, error="HTTP 500", total=9.0), Outcome(3, error="HTTP 500"), Outcome(3, error="other")]
    found = summed([good, short, *bad], 2.0)
    assert (found["requests"], found["failures"], found["failure_reasons"]) == (5, 3, {"HTTP 500": 2, "other": 1})
    assert (found["output_tokens_per_second"], found["requests_per_second"], found["prompt_tokens"]) == (2.5, 1.0, 8)
    assert found["ttft_ms"]["p50"] == pytest.approx(200) and found["inter_token_ms"]["p50"] == pytest.approx(200)
    assert found["time_per_output_token_ms"]["p50"] == pytest.approx(200) and found["wrong_lengths"] == 1
    nothing = summed(bad, 1.0)
    assert nothing["ttft_ms"] == {"p50": None, "p95": None, "p99": None} and nothing["output_tokens_per_second"] == 0


async def test_cold_prompts_are_new_and_of_the_lengths_asked_for() -> None:
    seen: list[dict[str, Any]] = []
    async with serving(lambda body: tokens(1), seen) as url:
        found = await cold(Server(url, "m"), SHAPE, [4, 9], 3, seed=0)
    prompts = [tuple(body["prompt"]) for body in seen]
    assert [len(one) for one in prompts] == [4, 9] * 3 and len(set(prompts)) == 6
    assert all(body["max_tokens"] == 1 for body in seen)
    assert [(one["prompt_tokens"], one["requests"], one["failures"]) for one in found] == [(4, 3, 0), (9, 3, 0)]


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ({10: 20.0, 20: 40.0, 40: 80.0}, 25),
        ({10: 60.0, 20: 80.0}, None),
        ({10: 20.0, 20: 30.0}, 20),
        ({10: 20.0, 20: None, 30: 60.0}, 25),
        ({}, None),
    ],
)
def test_tokens_within_a_time(times: dict[int, float | None], wanted: int | None) -> None:
    measured = [{"prompt_tokens": length, "ttft_ms": {"p50": time}} for length, time in times.items()]
    assert tokens_within(measured, 50.0) == wanted


@pytest.mark.parametrize("ids", [(1000, 9999), None])
def test_a_prefix_is_common_to_all_and_the_rest_is_not(ids) -> None:
    shape = Shape((5, 9), (1, 1), ids, prefix_tokens=20)
    prompts = [request.prompt if ids else request.prompt.split() for request in draw(shape, 6, seed=3)]
    assert len({tuple(prompt[:20]) for prompt in prompts}) == 1
    assert len({tuple(prompt[20:]) for prompt in prompts}) == 6
    assert all(25 <= len(prompt) <= 29 for prompt in prompts)
