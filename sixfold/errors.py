"""The exception tree of Sixfold: every user-facing failure says what happened, why, and what to change.

Owns: the exceptions. Must not know: HTTP (the server maps classes to status codes) or any other module.
"""

from __future__ import annotations


class SixfoldError(Exception):
    """Base of every error a user can cause or meet.

    ``what`` is one sentence without a final full stop; ``cause`` says why; ``remedy`` says what to change.
    ``param`` names the offending request field or option when there is one.
    """

    def __init__(self, what: str, *, cause: str = "", remedy: str = "", param: str | None = None) -> None:
        self.what = what
        self.cause = cause
        self.remedy = remedy
        self.param = param
        super().__init__(self.message)

    @property
    def message(self) -> str:
        happened = f"{self.what}: {self.cause}" if self.cause else self.what
        return ". ".join(part.rstrip(".") for part in (happened, self.remedy) if part) + "."


class ConfigError(SixfoldError):
    """A setting (flag, environment variable or file) is unknown, mistyped or out of range."""


class ModelNotFoundError(SixfoldError):
    """No model goes by this name, or a served name does not match."""


class DownloadError(SixfoldError):
    """A pull failed or what arrived is not what was pinned."""


class ModelFileError(SixfoldError):
    """A model file is truncated, corrupted or lies about its contents."""


class UnsupportedModelError(SixfoldError):
    """The file is sound, but its architecture, tokenizer or tensor type is not one we run."""


class PlanError(SixfoldError):
    """A compiled plan is invalid or does not fit this build."""


class TemplateError(SixfoldError):
    """A chat template is missing, hostile, too slow, too large, or refused these messages."""


class InvalidRequestError(SixfoldError):
    """A request field is unknown, mistyped or out of range."""


class ContextLengthError(InvalidRequestError):
    """Prompt plus requested output does not fit into the context or the KV memory."""


class OverloadedError(SixfoldError):
    """The queue is full or the server is draining; trying again later may work."""


class EngineDeadError(SixfoldError):
    """The engine loop stopped on an internal failure; the process needs a restart."""
