from __future__ import annotations

import json
from pathlib import Path

import pytest

from sixfold.cli.conversation import DEFAULTS, Conversation
from sixfold.errors import InvalidRequestError


def test_undo_takes_back_question_and_answer() -> None:
    talk = Conversation(system="s")
    assert talk.undo() is None
    for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")):
        talk.say(role, text)
    assert talk.undo() == "c" and [m["content"] for m in talk.messages] == ["s", "a", "b"]
    assert talk.undo() == "a" and talk.messages == [{"role": "system", "content": "s"}]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0", 0.0),
        ("top_k", "40", 40),
        ("seed", "7", 7),
        ("seed", "none", None),
        ("ignore_eos", "on", True),
        ("max_tokens", "none", None),
        ("stop", "END", ("END",)),
        ("stop", r"\n", ("\n",)),
        ("stop", '["a", "é"]', ("a", "é")),
        ("stop_token_ids", "[1, 2]", (1, 2)),
        ("logit_bias", '{"5": -100}', {5: -100.0}),
    ],
)
def test_settings_are_read_by_their_type(name: str, text: str, value: object) -> None:
    talk = Conversation()
    talk.set(name, text)
    assert talk.settings[name] == value
    talk.set(name, "default")
    assert talk.settings == DEFAULTS


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("bogus", "1", "temperature"),
        ("temperature", "hot", "float"),
        ("temperature", "-1", "between 0 and 100"),
        ("top_k", "1.5", "int"),
        ("ignore_eos", "perhaps", "bool"),
        ("stop", "[1]", "stop"),
        ("stop_token_ids", '["a"]', "stop_token_ids"),
        ("logit_bias", "[]", "logit_bias"),
        ("n", "2", "no setting"),
    ],
)
def test_wrong_settings_change_nothing(name: str, text: str, says: str) -> None:
    talk = Conversation()
    with pytest.raises(InvalidRequestError, match=says):
        talk.set(name, text)
    assert talk.settings == DEFAULTS


def test_save_and_load(tmp_path: Path) -> None:
    talk = Conversation(system="s")
    talk.say("user", "ü")
    for name, text in (("stop", '["a"]'), ("logit_bias", '{"5": 1}'), ("seed", "3"), ("ignore_eos", "yes")):
        talk.set(name, text)
    talk.save(tmp_path / "chat.json", "m")
    assert Conversation.load(tmp_path / "chat.json") == talk


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"messages": 1}', '{"messages": [{"role": "x", "content": ""}]}', "", "3", '"\ud800"']
)
def test_what_is_no_conversation(tmp_path: Path, content: str) -> None:
    (tmp_path / "chat.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InvalidRequestError, match=r"chat\.json"):
        Conversation.load(tmp_path / "chat.json")


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        Conversation.load(tmp_path / "absent")
    with pytest.raises(InvalidRequestError, match="cannot be written"):
        Conversation().save(tmp_path / "absent" / "chat.json", "m")


def test_a_plain_list_of_messages_loads(tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text(json.dumps([{"role": "user", "content": "a"}]))
    assert Conversation.load(tmp_path / "chat.json").turns == [{"role": "user", "content": "a"}]
