"""Bringing one pinned wheel from a package index with our own client, which resumes.

Owns: the HTTP client and its settings. Must not know: models, or what is in the wheel.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sixfold import config
from sixfold.errors import DownloadError
from sixfold.store import download, index
from sixfold.store.download import Pinned, Reached

if TYPE_CHECKING:
    import httpx  # takes a tenth of a second, which only a download needs to pay


def fetch(project: str, pinned: Pinned, reached: Reached) -> Path:
    """The verified wheel at ``pinned.part``. Raises :class:`DownloadError`; what arrived until then is kept."""
    address: list[httpx.URL | Path] = []
    where = config.package_index() or config.index_without_pip()
    if where is None:
        raise DownloadError(
            f"{pinned.file} cannot be fetched", cause="this Python has no pip, and no package index is set",
            remedy="Install pip, or set SIXFOLD_INDEX_URL to a simple index or a file: URL of a directory of wheels",
        )  # fmt: skip
    with _client() as client:

        def find() -> bool:
            address.append(index.locate(client, where, project, pinned.file))
            return True

        download.retrying(pinned.file, f"package index {index.shown(where)}", find)
        return download.fetch(client, pinned, address[0], reached)


def _client() -> httpx.Client:
    import httpx

    try:
        return httpx.Client(follow_redirects=True, timeout=httpx.Timeout(60, connect=15))
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        raise DownloadError(
            "The network settings of this machine cannot be used",
            cause=str(error),
            remedy="Correct SSL_CERT_FILE, SSL_CERT_DIR or the proxy variables (HTTPS_PROXY, ALL_PROXY)",
        ) from error
