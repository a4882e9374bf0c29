"""The table of what a snapshot's file may say: ``python -m ingest.reconcile.settings_table``."""

from __future__ import annotations

import sys

from ingest.reconcile.settings import SnapshotSettings
from ingest.settings_table import settings_table

ELSEWHERE = ("format.", "mapping.")
"""Formats and mappings are those of feeds, and stand in their table."""


def snapshot_table() -> str:
    """Return every setting of a snapshot as a Markdown table."""
    return settings_table(SnapshotSettings, ELSEWHERE)


if __name__ == "__main__":
    sys.stdout.write(snapshot_table() + "\n")
