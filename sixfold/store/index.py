"""Finding one file in a package index: PyPI's simple index (PEP 503 HTML, PEP 691 JSON) or a directory of wheels.

Owns: the index protocol. Must not know: models; what a file should contain (its digest is pinned by the registry, so
nothing the index says is trusted beyond an address).
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sixfold.errors import DownloadError

if TYPE_CHECKING:
    import httpx  # takes a tenth of a second, which only a download needs to pay

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_MAX_PAGE = 16 << 20
INDEX_REMEDY = "Check the network, or set SIXFOLD_INDEX_URL to an index that has it"


def locate(client: httpx.Client, index: str, project: str, file: str) -> httpx.URL | Path:
    """The address of ``file``: a URL, or a path when ``index`` is a ``file:`` URL of a directory of wheels.

    Raises :class:`DownloadError` when the index does not have it and ``httpx.HTTPError`` when it cannot be asked.
    """
    import httpx

    if index.startswith("file:"):
        return _locate_on_disk(Path(unquote(urlsplit(index).path)), project, file)
    page = httpx.URL(f"{index}/{project}/")
    with client.stream("GET", page, headers={"Accept": _ACCEPT}) as response:
        if response.status_code in (404, 410):
            raise _absent(index, file, f"it has no project {project}")
        response.raise_for_status()
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MAX_PAGE:
                raise _absent(index, file, f"its page of {project} is larger than {_MAX_PAGE >> 20} MB")
        kind = response.headers.get("content-type", "")
    for name, address in _links_of(bytes(body), kind):
        if name == file:
            return _with_credentials(response.url.join(address), page)
    raise _absent(index, file, f"its page of {project} does not list it")


def shown(url: httpx.URL | str) -> str:
    """The address without the password that a private index may carry in it."""
    import httpx

    try:
        return str(httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None))
    except httpx.InvalidURL:
        return "(not a URL)"


def _links_of(body: bytes, kind: str) -> Iterator[tuple[str, str]]:
    """The (file name, address) pairs of a project page; a page that is neither format has none."""
    if "json" not in kind:
        parser = _Anchors()
        parser.feed(body.decode("utf-8", "replace"))
        for address in parser.addresses:
            yield unquote(posixpath.basename(urlsplit(address).path)), address
        return
    try:
        files = json.loads(body)["files"]
        yield from [(str(file["filename"]), str(file["url"])) for file in files]
    except (ValueError, KeyError, TypeError):
        return


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _with_credentials(url: httpx.URL, page: httpx.URL) -> httpx.URL:
    """A private index lists absolute addresses without the password that it asks for: it is the page's."""
    same_place = (url.scheme, url.host, url.port) == (page.scheme, page.host, page.port)
    return url.copy_with(userinfo=page.userinfo) if same_place and page.userinfo and not url.userinfo else url


def _locate_on_disk(directory: Path, project: str, file: str) -> Path:
    for path in (directory / file, directory / project / file):
        if path.is_file():
            return path
    raise _absent(str(directory), file, f"there is neither {file} nor {project}/{file} in it")


def _absent(index: str, file: str, cause: str) -> DownloadError:
    where = shown(index) if "://" in index else index
    return DownloadError(f"The package index {where} does not have {file}", cause=cause, remedy=INDEX_REMEDY)
