"""Every error reads as: what happened, why, what to change."""

from __future__ import annotations

from sixfold.errors import ContextLengthError, InvalidRequestError, SixfoldError


def test_the_message_joins_what_there_is() -> None:
    assert str(SixfoldError("It broke")) == "It broke."
    assert str(SixfoldError("It broke", cause="too heavy")) == "It broke: too heavy."
    assert str(SixfoldError("It broke", remedy="Carry less.")) == "It broke. Carry less."
    full = ContextLengthError("It broke", cause="too heavy", remedy="Carry less", param="load")
    assert full.message == "It broke: too heavy. Carry less."
    assert full.param == "load"
    assert isinstance(full, InvalidRequestError)
