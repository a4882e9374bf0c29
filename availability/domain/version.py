"""Version: a point in one shard's log. Opaque to callers, ordered for us.

Text form is ``epoch-seq``, with ``shard:`` before it for every shard but the first, so that more shards need no
new format.
"""

from __future__ import annotations

from typing import NamedTuple, Self


class Version(NamedTuple):
    """A point in a shard's log; compares as (epoch, seq) within one shard."""

    epoch: int
    seq: int
    shard: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form. Raises ValueError with a plain sentence for anything else."""
        prefix, colon, rest = text.rpartition(":")
        shard_text = prefix if colon else "0"
        epoch_text, dash, seq_text = rest.partition("-")
        parts = (shard_text, epoch_text, seq_text)
        if not dash or not all(part.isascii() and part.isdecimal() and len(part) <= 15 for part in parts):
            raise ValueError(f"not a version: {text[:64]!r}")
        return cls(int(epoch_text), int(seq_text), int(shard_text))

    def __str__(self) -> str:
        point = f"{self.epoch}-{self.seq}"
        return f"{self.shard}:{point}" if self.shard else point


ZERO = Version(0, 0)
