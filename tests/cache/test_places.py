from pathlib import Path

import pytest

from sixfold.cache import DiskCache, open_tier
from sixfold.errors import ConfigError


def test_nothing_asked_for_is_no_tier() -> None:
    assert open_tier() is None


def test_one_is_itself_and_several_are_layers(tmp_path: Path) -> None:
    assert isinstance(open_tier(disk=tmp_path), DiskCache)
    both = open_tier(disk=tmp_path, redis="redis://127.0.0.1:1")
    assert both is not None and list(both.levels()) == ["disk", "redis"]
    both.close()


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, url in (("redis", {"redis": "redis://host"}), ("boto3", {"s3": "s3://bucket"})):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(ConfigError, match=r"pip install 'sixfold\["):
            open_tier(**url)
