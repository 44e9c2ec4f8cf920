"""Streamed responses, however they are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.bench.stream import BadResponse, Events, Response

BODY = b'data: {"a": 1}\n\n: a comment\n\ndata: two\ndata: lines\n\nevent: x\r\ndata: [DONE]\r\n\r\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
EVENTS = [b'{"a": 1}', b"two\nlines", b"[DONE]"]


def chunked(pieces: list[bytes]) -> bytes:
    framed = b"".join(b"%x;extension\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % len(data) for place in places)})
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


@given(st.lists(st.integers(0, 10_000)), st.lists(st.integers(0, 10_000)))
def test_chunks_and_packets_may_be_cut_anywhere(chunks: list[int], packets: list[int]) -> None:
    response, events, found = Response(), Events(), []
    for packet in cut(chunked(cut(BODY, chunks)), packets):
        found += events.feed(response.feed(packet))
    assert found == EVENTS and response.done and response.reusable and response.status == 200


def test_a_length_ends_a_body() -> None:
    response = Response()
    assert response.feed(HEAD + b"content-length: 5\r\nConnection: close\r\n\r\n") == b""
    assert response.feed(b"hel") == b"hel" and not response.done
    assert response.feed(b"lo") == b"lo" and response.done and not response.reusable


def test_a_closed_connection_ends_a_body_without_length_only() -> None:
    response = Response()
    assert response.feed(HEAD + b"\r\nhello") == b"hello" and not response.done
    response.end()
    assert response.done and not response.reusable
    for torn in (chunked([BODY])[:-9], HEAD + b"content-length: 9\r\n\r\nabc", b"HTTP/1.1 20"):
        response = Response()
        response.feed(torn)
        response.end()
        assert not response.done


@pytest.mark.parametrize("data", [b"SSH-2.0\r\n\r\n", HEAD + b"transfer-encoding: chunked\r\n\r\nxyz\r\n"])
def test_what_is_no_response_is_refused(data: bytes) -> None:
    with pytest.raises(BadResponse):
        Response().feed(data)


def test_chunks_end_with_an_empty_line_only() -> None:
    """Fields of a trailer before it are passed over; a server that closes without it has sent the whole body."""
    for ending in (b"\r\n", b"Digest: abc\r\n\r\n"):
        response = Response()
        assert response.feed(chunked([BODY])[:-2]) == BODY and not response.done
        assert response.feed(ending) == b"" and response.done and response.reusable
    response = Response()
    response.feed(chunked([BODY])[:-2])
    response.end()
    assert response.done and not response.reusable
