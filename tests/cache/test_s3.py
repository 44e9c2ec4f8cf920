from __future__ import annotations

from collections.abc import Iterator

import pytest

from sixfold.cache.s3 import open_s3
from sixfold.errors import ConfigError
from tests.cache.fake_s3 import FakeS3, fake_s3
from tests.cache.faults import key_of, payload_of


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "nowhere")
    with fake_s3() as fake:
        monkeypatch.setenv("AWS_ENDPOINT_URL", fake.url)
        yield fake


def test_what_one_puts_another_gets(s3: FakeS3) -> None:
    one, other = open_s3("s3://pages/team"), open_s3(f"s3://pages/team?endpoint_url={s3.url}")
    keys = [key_of(number) for number in range(20)]
    for number in range(15):
        assert one.put(keys[number], payload_of(number))
    assert other.read(keys) == [payload_of(number) for number in range(15)]
    assert other.put(keys[0], payload_of(0)) and other.counts.stored == 0
    s3.objects["team/" + keys[1].digest.hex()] = b"torn"
    assert one.get(keys[1]) is None and one.counts.rejected == 1 and one.get(keys[1]) is None
    s3.objects["other"] = b"kept"
    one.clear()
    assert one.read(keys) == [] and list(s3.objects) == ["other"]
    one.close()
    other.close()


def test_one_that_fails_is_left_alone(s3: FakeS3, caplog: pytest.LogCaptureFixture) -> None:
    cache = open_s3("s3://pages")
    cache.put(key_of(0), payload_of(0))
    s3.status = 503
    assert cache.get(key_of(0)) is None and cache.counts.failed == 1
    assert cache.get(key_of(0)) is None and cache.counts.failed == 1
    assert "s3://pages does not answer" in caplog.text
    cache.close()


def test_what_is_not_deleted_is_not_cleared(s3: FakeS3, caplog: pytest.LogCaptureFixture) -> None:
    cache = open_s3("s3://pages", shortest_rest=0.0)
    for number in range(3):
        cache.put(key_of(number), payload_of(number))
    s3.locked.add("sixfold-kv/" + key_of(1).digest.hex())
    cache.clear()
    assert list(s3.objects) == list(s3.locked) and cache.counts.failed == 1
    assert "1 objects could not be deleted: AccessDenied" in caplog.text
    assert cache.get(key_of(1)) is None and cache.counts.failed == 2, "not read before it is cleared"
    s3.locked.clear()
    assert cache.get(key_of(1)) is None and not s3.objects and cache.counts.failed == 2
    cache.close()


@pytest.mark.parametrize("url", ["http://pages", "s3://", "s3://me:secret@pages", "s3://pages?secret=1"])
def test_a_wrong_url_is_a_clear_error(url: str) -> None:
    with pytest.raises(ConfigError, match="no URL of a bucket") as error:
        open_s3(url)
    assert "secret" not in str(error.value)


def test_a_bucket_that_is_not_there_is_a_clear_error(s3: FakeS3) -> None:
    with pytest.raises(ConfigError, match="NoSuchBucket"):
        open_s3("s3://elsewhere")


def test_no_credentials_are_a_clear_error(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigError, match="NoCredentials"):
        open_s3("s3://pages")
