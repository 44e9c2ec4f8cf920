"""Where KV pages are kept beyond memory: tiers that hold checked entries under full keys.

Owns: entries as bytes, and where they lie. Must not know: tokens, sequences, or what is in an entry.
"""

from sixfold.cache.disk import DiskCache
from sixfold.cache.frame import CacheKey
from sixfold.cache.places import open_tier
from sixfold.cache.tier import Tier, TierCounts

__all__ = ["CacheKey", "DiskCache", "Tier", "TierCounts", "open_tier"]
