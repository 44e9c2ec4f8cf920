"""An S3 bucket, or what speaks its protocol (MinIO, Ceph, R2), as a place for entries.

Owns: the URL, the names of objects, and S3's errors. Must not know: what values hold.

    s3://bucket[/prefix][?endpoint_url=http://host:9000][&region=NAME]

Credentials, region and endpoint come from where AWS's tools take them (environment, ``~/.aws``, the machine's role),
never from the URL. An object is ``prefix/`` and the entry's digest; how long it stays is for the bucket's lifecycle
rules.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from sixfold.cache.remote import SHORTEST_REST, Refused, RemoteCache, Unreachable
from sixfold.errors import ConfigError

CONNECT, ANSWER = 1.0, 3.0  # seconds
BATCH = 8  # pages read at a time, each over a connection of its own
PREFIX = "sixfold-kv"
MOST_AT_ONCE = 1000  # objects in one request that deletes
_ABSENT = ("NoSuchKey", "404", "NotFound")
_NEVER = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "NoSuchBucket", "403", "InvalidBucketName")


def open_s3(url: str, *, shortest_rest: float = SHORTEST_REST) -> RemoteCache:
    """Raises ConfigError for what will never work: a wrong URL, no library, no credentials, no bucket."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or query.keys() - {"endpoint_url", "region"}:
        raise ConfigError(
            "kv_s3 is no URL of a bucket", remedy="Write s3://bucket/prefix; credentials go into the environment",
            param="kv_s3",
        )  # fmt: skip
    where = f"s3://{parts.netloc}{parts.path}"
    client = _client(query.get("endpoint_url"), query.get("region"))
    store = S3Store(client, parts.netloc, parts.path.strip("/") or PREFIX, where)
    cache = RemoteCache("s3", where, store, batch=BATCH, shortest_rest=shortest_rest)
    cache.greet()
    return cache


class S3Store:
    def __init__(self, client: Any, bucket: str, prefix: str, where: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/"
        self._where = where
        self._pool = ThreadPoolExecutor(BATCH, thread_name_prefix="sixfold-kv-s3")

    def check(self) -> None:
        from botocore import exceptions

        with _failures():
            try:
                self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
            except exceptions.ClientError as error:
                if _code(error) in _NEVER:
                    raise self._no_entry(_code(error)) from None
                raise
            except (exceptions.NoCredentialsError, exceptions.ParamValidationError) as error:
                raise self._no_entry(type(error).__name__) from None

    def get(self, names: Sequence[bytes]) -> list[bytes | None]:
        with _failures():
            return list(self._pool.map(self._get, names))

    def put(self, name: bytes, value: bytes) -> None:
        from botocore import exceptions

        with _failures():
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=value)
            except exceptions.ClientError as error:
                raise Refused(_code(error)) from None

    def has(self, name: bytes) -> bool:
        from botocore import exceptions

        with _failures():
            try:
                self._client.head_object(Bucket=self._bucket, Key=self._key(name))
            except exceptions.ClientError as error:
                if _code(error) in _ABSENT:
                    return False
                raise
            return True

    def delete(self, name: bytes) -> None:
        with _failures():
            self._client.delete_object(Bucket=self._bucket, Key=self._key(name))

    def clear(self) -> None:
        """Deletes all it may, and is Unreachable if something is left: S3 answers 200 to that, with a list."""
        left: list[dict[str, Any]] = []
        with _failures():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, PaginationConfig={"PageSize": MOST_AT_ONCE}
            )
            for page in pages:
                found = [{"Key": one["Key"]} for one in page.get("Contents", [])]
                if found:
                    answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": found, "Quiet": True})
                    left += answer.get("Errors", [])
        if left:
            raise Unreachable(f"{len(left)} objects could not be deleted: {left[0].get('Code', 'unknown')}")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _get(self, name: bytes) -> bytes | None:
        from botocore import exceptions

        try:
            found = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
            content: bytes = found["Body"].read()
            return content
        except exceptions.ClientError as error:
            if _code(error) in _ABSENT:
                return None
            raise

    def _key(self, name: bytes) -> str:
        return self._prefix + name.hex()

    def _no_entry(self, cause: str) -> ConfigError:
        return ConfigError(
            f"{self._where} does not let us in", cause=cause,
            remedy="Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, or name another bucket",
            param="kv_s3",
        )  # fmt: skip


def _client(endpoint: str | None, region: str | None) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise ConfigError(
            "kv_s3 needs the package boto3", remedy="Install it: pip install 'sixfold[s3]'", param="kv_s3"
        ) from None
    config = Config(
        connect_timeout=CONNECT, read_timeout=ANSWER, retries={"total_max_attempts": 1},
        max_pool_connections=BATCH + 2,
    )  # fmt: skip
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except ValueError as error:
        raise ConfigError("kv_s3 has a wrong endpoint_url", cause=str(error), param="kv_s3") from None


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        raise Unreachable(_code(error)) from None
    except (exceptions.BotoCoreError, OSError) as error:
        raise Unreachable(type(error).__name__) from None
