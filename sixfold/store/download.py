"""Bringing one pinned file over HTTP: resumed after a cut, refused when it is not what was pinned.

The file grows at ``home()/partial/<sha256>.part`` and stays there after an interruption of any kind; the name is the
digest, so what is found there later is either the beginning of the right file or thrown away by the check.

Owns: partial files, ranges, retries. Must not know: indexes, wheels or models.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sixfold import config
from sixfold.errors import DownloadError
from sixfold.store import record
from sixfold.store.index import INDEX_REMEDY, shown

if TYPE_CHECKING:
    import httpx  # takes a tenth of a second, which only a download needs to pay

ATTEMPTS = 4  # in a row that bring nothing new
FIRST_PAUSE = 0.5  # seconds; doubles with each attempt that brings nothing
_MAX_PASSES = 200  # in all: a server that gives a few bytes a connection ends too
_RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}

Reached = Callable[[int], None]  # told how many bytes of the file are here


@dataclass(frozen=True)
class Pinned:
    """A file as it has to arrive."""

    file: str
    size: int
    sha256: str

    @property
    def part(self) -> Path:
        return config.home() / "partial" / f"{self.sha256}.part"


class _TryAgain(Exception):
    """The server asked for patience; another attempt may succeed."""


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def fetch(client: httpx.Client, pinned: Pinned, address: httpx.URL | Path, reached: Reached) -> Path:
    """The verified file at ``pinned.part``. Raises :class:`DownloadError`; the part is kept unless it is wrong."""
    pinned.part.parent.mkdir(parents=True, exist_ok=True)
    if size_of(pinned.part) > pinned.size:
        pinned.part.unlink()
    if isinstance(address, Path):
        shutil.copyfile(address, pinned.part)
    else:
        _fetch_all(client, pinned, address, reached)
    reached(size_of(pinned.part))
    return checked(pinned, str(address) if isinstance(address, Path) else shown(address))


def checked(pinned: Pinned, origin: str) -> Path:
    """The part when it is the pinned file; else it is deleted and refused."""
    if size_of(pinned.part) == pinned.size and record.sha256(pinned.part) == pinned.sha256:
        return pinned.part
    pinned.part.unlink(missing_ok=True)
    raise refused(pinned, f"what {origin} gave does not have the pinned SHA-256 digest and was deleted")


def retrying(what: str, where: str, step: Callable[[], bool]) -> None:
    """Calls ``step`` until it returns, through network trouble; True from it means that it got further.

    Gives up with a :class:`DownloadError` after ``ATTEMPTS`` in a row that got no further.
    """
    import httpx

    fruitless = 0
    for _ in range(_MAX_PASSES):
        try:
            if step():
                return
            trouble, fruitless = "the connection was cut", 0
        except (httpx.TransportError, httpx.HTTPStatusError, _TryAgain) as error:
            trouble = _in_words(error)
            if isinstance(error, httpx.UnsupportedProtocol) or not _temporary(error):
                break
            fruitless += 1
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            trouble = _in_words(error)
            break
        if fruitless >= ATTEMPTS:
            break
        time.sleep(FIRST_PAUSE * 2 ** max(fruitless - 1, 0))
    raise DownloadError(
        f"Could not download {what}",
        cause=f"{where}: {trouble}",
        remedy=f"{INDEX_REMEDY}; pulling again goes on where this stopped",
    )


def _temporary(error: Exception) -> bool:
    import httpx

    return not isinstance(error, httpx.HTTPStatusError) or error.response.status_code in _RETRIED_STATUS


def _in_words(error: Exception) -> str:
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return f"the server answered {error.response.status_code} {error.response.reason_phrase}".rstrip()
    hint = " (a private certificate authority is named by SSL_CERT_FILE)" if "CERTIFICATE_VERIFY" in str(error) else ""
    return f"{error or type(error).__name__}{hint}"


def _fetch_all(client: httpx.Client, pinned: Pinned, url: httpx.URL, reached: Reached) -> None:
    import httpx

    def step() -> bool:
        before = size_of(pinned.part)
        if before == pinned.size:
            return True
        try:
            _fetch_once(client, pinned, url, reached)
        except httpx.TransportError:
            if size_of(pinned.part) <= before:
                raise
        else:
            if size_of(pinned.part) <= before:
                raise _TryAgain("the connection was cut")
        return size_of(pinned.part) == pinned.size

    retrying(pinned.file, shown(url), step)


def _fetch_once(client: httpx.Client, pinned: Pinned, url: httpx.URL, reached: Reached) -> None:
    offset = size_of(pinned.part)
    headers = {"Accept-Encoding": "identity"}  # a range counts the bytes of the file, not of a compressed form
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:  # our beginning is no beginning of what the server has
            pinned.part.unlink(missing_ok=True)
            raise _TryAgain("the server refused to continue the file")
        response.raise_for_status()
        start = _start_of(response, offset, pinned)
        with pinned.part.open("r+b" if start else "wb") as file:
            file.seek(start)
            for chunk in response.iter_bytes():  # of any size: collected ones would be lost in a cut
                start += len(chunk)
                if start > pinned.size:
                    break
                file.write(chunk)
                reached(start)
    if start > pinned.size:
        pinned.part.unlink()
        raise refused(pinned, f"{shown(url)} gave more than the {pinned.size} bytes that are pinned")


def _start_of(response: httpx.Response, offset: int, pinned: Pinned) -> int:
    """Where in the file the body begins: ``offset`` when the server honoured the range, 0 when it ignored it."""
    if response.status_code != 206:
        total = response.headers.get("content-length", "")
        if "content-encoding" not in response.headers and total.isdigit() and int(total) != pinned.size:
            raise refused(pinned, f"{shown(response.url)} is {total} bytes where {pinned.size} are pinned")
        return 0
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", ""))
    if match is None or int(match[1]) != offset or match[2] not in ("*", str(pinned.size)):
        pinned.part.unlink(missing_ok=True)
        raise _TryAgain("the server continued at another place than asked")
    return offset


def refused(pinned: Pinned, cause: str) -> DownloadError:
    """The error that what arrived is not the pinned file."""
    return DownloadError(
        f"{pinned.file} was refused",
        cause=cause,
        remedy="Pull again; if it stays so, the index or a proxy alters the file: set SIXFOLD_INDEX_URL to another one",
    )
