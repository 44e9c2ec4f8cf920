"""As much of S3 over HTTP as a cache needs, kept in a dictionary."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class FakeS3:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.locked: set[str] = set()  # keys that are not deleted
        self.status = 200  # of every answer, if it is another one
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    fake: FakeS3
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        bucket, _, key = parts.path.lstrip("/").partition("/")
        objects = self.fake.objects
        if self.fake.status != 200:
            self._answer(self.fake.status, b"<Error><Code>SlowDown</Code></Error>")
        elif bucket != "pages":
            self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        elif self.command == "PUT":
            objects[key] = body
            self._answer(200)
        elif self.command == "POST":
            names = [name.decode() for name in re.findall(rb"<Key>(.*?)</Key>", body)]
            left = [name for name in names if name in self.fake.locked]
            for name in set(names) - set(left):
                objects.pop(name, None)
            errors = "".join(f"<Error><Key>{name}</Key><Code>AccessDenied</Code></Error>" for name in left)
            self._answer(200, f"<DeleteResult>{errors}</DeleteResult>".encode())
        elif self.command == "DELETE":
            objects.pop(key, None)
            self._answer(204)
        elif not key:
            prefix = parse_qs(parts.query).get("prefix", [""])[0]
            found = "".join(f"<Contents><Key>{name}</Key></Contents>" for name in objects if name.startswith(prefix))
            self._answer(200, f"<ListBucketResult>{found}</ListBucketResult>".encode())
        elif key in objects:
            self._answer(200, objects[key])
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle


@contextlib.contextmanager
def fake_s3() -> Iterator[FakeS3]:
    fake = FakeS3()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": fake}))
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
