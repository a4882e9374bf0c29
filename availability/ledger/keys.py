"""Names of Redis keys. The functions derive all others from the meta key; Python needs only these.

The hash tag is the shard, so every key of a shard lives in one cluster slot whatever ids follow it.
"""

from __future__ import annotations


def base(prefix: str, shard: int) -> str:
    """Start of every key of a shard."""
    return f"{prefix}:{{{shard}}}:"


def meta(prefix: str, shard: int) -> str:
    """Key of epoch, sequence, chain, clock and replication id; the one key that calls declare."""
    return base(prefix, shard) + "meta"


def log(prefix: str, shard: int) -> str:
    """Key of the change log, a stream."""
    return base(prefix, shard) + "log"


def confirm(prefix: str, shard: int) -> str:
    """Key of the tiny write before WAIT: a group of pure repeats would otherwise wait for nothing."""
    return base(prefix, shard) + "confirm"
