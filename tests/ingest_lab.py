"""What tests of ingest share: the settings of a plain source, what the ledger says of it, and how it is killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from availability.client import Acked, Client
from ingest.app import IngestDesk
from ingest.pipeline import Sender
from ingest.sources.drop_folder import DropFolderSource

NUMBERS = 'stream = "stream"\nsource_sequence = "number"\n'
"""Columns of a source that numbers its rows."""
_PLAIN = """
source = "{source}"
{top}

[format]
kind = "{kind}"

[mapping]
version = "1"
author = "ingest"

[mapping.columns]
type = "type"
sku = "sku"
node = "node"
quantity = "quantity"
{columns}

[drop]
folder = "{folder}"
settle_ms = 0
{more}
"""


def plain_source(
    source: str, *, kind: str = "csv", top: str = "", columns: str = "", folder: str = "drop", more: str = ""
) -> str:
    """Settings of a source whose columns bear our names. ``top``: of the source itself; ``more``: tables at the end."""
    return _PLAIN.format(source=source, kind=kind, top=top, columns=columns, folder=folder, more=more)


def breaking(client: Client, source: str, acks: int) -> Callable[[Callable[[Acked], None]], Sender]:
    """Open senders that take so many acks and fail at the next: "killed"; -1: never."""

    def open_sender(acked: Callable[[Acked], None]) -> Sender:
        def passed(ack: Acked) -> None:
            nonlocal acks
            if acks == 0:
                raise RuntimeError("killed")
            acks -= 1
            acked(ack)

        return client.delta_sender(source, acked=passed)

    return open_sender


@contextmanager
def killed_in(monkeypatch: pytest.MonkeyPatch, where: object, step: str) -> Iterator[None]:
    """Whoever comes to this step within the block is killed there, and the block sees it."""

    def dies(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(where, step, dies)
        with pytest.raises(RuntimeError, match="killed"):
            yield


def carry_ready(desk: IngestDesk, source: str) -> int:
    """Carry what is in a source's drop folder; answer how many files that were."""
    drop = desk.settings(source).drop
    assert drop is not None
    return len(list(DropFolderSource(drop, desk.pipeline(source)).carry_ready()))


def on_hand(client: Client, source: str, sku: str, node: str) -> int:
    """Ask the ledger for a position, by a channel that nobody else reads."""
    terms = client.explain(f"{source} all", sku).terms
    return sum(found.on_hand for found in terms.nodes if found.node == node)
