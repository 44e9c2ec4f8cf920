"""From settings to a tier: a disk, a Redis, a bucket, or those of them that are asked for as one.

Owns: their order. Must not know: how any of them works.
"""

from __future__ import annotations

from pathlib import Path

from sixfold.cache.disk import DiskCache
from sixfold.cache.layered import LayeredCache
from sixfold.cache.redis import open_redis
from sixfold.cache.s3 import open_s3
from sixfold.cache.tier import Tier


def open_tier(
    *, disk: str | Path | None = None, disk_bytes: int = 10 << 30, redis: str | None = None, s3: str | None = None
) -> Tier | None:
    """The nearest first: a directory, the URLs of a Redis and of a bucket. Raises ConfigError if one is of no use."""
    tiers: list[Tier] = []
    if disk is not None:
        tiers.append(DiskCache(disk, disk_bytes))
    if redis is not None:
        tiers.append(open_redis(redis))
    if s3 is not None:
        tiers.append(open_s3(s3))
    return LayeredCache(tiers) if len(tiers) > 1 else next(iter(tiers), None)
