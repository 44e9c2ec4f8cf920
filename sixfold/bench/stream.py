"""A streamed HTTP response taken apart as it arrives: head, chunks, server-sent events.

Owns: the bytes. Must not know: sockets, time, or what events say. It is here, and not httpx, because the load generator
shares its machine with the server: on the same stream this took 48 us of processor time an event and httpx 141.
"""

from __future__ import annotations


class BadResponse(ValueError):
    """What arrived is no HTTP/1.1 response."""


class Response:
    """``feed`` takes bytes from the socket and returns those of the body, without the framing of chunks."""

    def __init__(self) -> None:
        self.status = 0  # 0: the head is not complete
        self.headers: dict[str, str] = {}
        self.done = False
        self._buffer = bytearray()
        self._left: int | None = None  # bytes to come of the body, or of a chunk and its line end
        self._chunked = False
        self._trailer = False  # the last chunk was there, the empty line after it was not

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request."""
        return self.done and self.headers.get("connection", "").lower() != "close"

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        if not self.status and not self._head():
            return b""
        return self._chunks() if self._chunked else self._plain()

    def end(self) -> None:
        """The server closed the connection; that ends a body without a length, and a trailer."""
        if self._trailer or (self.status and not self._chunked and self._left is None):
            self.done = True
            self.headers["connection"] = "close"

    def _head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise BadResponse(f"no HTTP response: {first[:80]!r}")
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self.status = int(rest[:3])
        self._chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        if not self._chunked and "content-length" in self.headers:
            self._left = int(self.headers["content-length"])
        return True

    def _plain(self) -> bytes:
        body = bytes(self._buffer if self._left is None else self._buffer[: self._left])
        del self._buffer[: len(body)]
        if self._left is not None:
            self._left -= len(body)
            self.done = self._left == 0
        return body

    def _chunks(self) -> bytes:
        """A chunk of no bytes is not the end: an empty line is, after lines of a trailer, and it may come in another
        packet. Left unread, it would be taken for the beginning of the next response."""
        body = b""
        while not self.done:
            if self._left is None:
                end = self._buffer.find(b"\r\n")
                if end < 0:
                    break
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 2]
                if self._trailer:
                    self.done = not line
                elif size := self._size(line):
                    self._left = size + 2
                else:
                    self._trailer = True
                continue
            taken = self._buffer[: self._left]
            if len(taken) < self._left:
                break
            body += taken[:-2]
            del self._buffer[: self._left]
            self._left = None
        return body

    @staticmethod
    def _size(line: bytes) -> int:
        try:
            return int(line.partition(b";")[0], 16)
        except ValueError:
            raise BadResponse(f"no size of a chunk: {line[:80]!r}") from None


class Events:
    """``feed`` takes bytes of a body and returns the data of the events that are complete with them."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, body: bytes) -> list[bytes]:
        *whole, self._buffer = (self._buffer + body).replace(b"\r\n", b"\n").split(b"\n\n")
        found = []
        for event in whole:
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                found.append(b"\n".join(lines))
        return found
