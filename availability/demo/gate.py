"""The demo's gate: the WMS of a third warehouse hall that knows no API, and drops CSV files of receipts into a folder.

They are carried as `availability ingest run` does it: mapped, sent, and settled in a database. One file has a bad row,
which becomes a dead letter while its other rows go in; one comes a second time and changes nothing.
"""

from __future__ import annotations

import random
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from availability.client import Acked
from availability.demo.catalogue import ITEMS, NODES
from availability.demo.story import Story
from ingest.database import open_database
from ingest.letters import Letters
from ingest.pipeline import Pipeline, Sender
from ingest.settings import SourceSettings

FILES_AT = (0.15, 0.45, 0.7)
"""Moments of the show, as parts of its length. The second file has the bad row, the third is the first once more."""
ROWS = 3
UNITS_MAX = 6
SOURCE = "gate"
HEADER = "MOVE,ARTICLE,PLANT,QTY,UOM\n"
PLANTS = dict(zip(("P10", "P20", "S1"), NODES, strict=True))
MAPPING = {
    "version": "1",
    "author": "demo",
    "columns": {"type": "MOVE", "sku": "ARTICLE", "node": "PLANT", "quantity": "QTY", "unit": "UOM"},
    "movements": {"101": {"type": "RECEIPT"}},
    "nodes": PLANTS,
    "other_nodes": "refuse",
    "units": {"factors": {"EA": "1", "PR": "2"}},
}


def gate(story: Story) -> None:
    """Drop the files, and carry each."""
    chance = story.chance("gate")
    with tempfile.TemporaryDirectory(prefix="availability-gate-") as name:
        folder = Path(name)
        engine = open_database(str(folder / "ingest.db"))
        letters = Letters(engine)
        settings = SourceSettings.model_validate(
            {"source": SOURCE, "format": {"kind": "csv"}, "mapping": MAPPING}
        )
        pipeline = Pipeline(
            settings, engine, letters, _opener(story), now=time.time, new_run_id=lambda: uuid.uuid4().hex
        )
        try:
            first = _rows(chance)
            for number, at in enumerate(FILES_AT, 1):
                if not story.wait_until(at):
                    return
                text = HEADER + (first if number in (1, len(FILES_AT)) else _rows(chance, bad=True))
                path = folder / f"receipts-{number}.csv"
                path.write_text(text, encoding="utf-8")
                _carry(story, pipeline, letters, path)
        finally:
            engine.dispose()


def _opener(story: Story) -> Callable[[Callable[[Acked], None]], Sender]:
    """Open senders whose acks are journaled for the books as well."""

    def open_sender(acked: Callable[[Acked], None]) -> Sender:
        def both(ack: Acked) -> None:
            story.journal.enter_acked(ack)
            acked(ack)

        return story.client.delta_sender(SOURCE, acked=both)

    return open_sender


def _rows(chance: random.Random, *, bad: bool = False) -> str:
    rows = [
        f"101,{chance.choice(ITEMS).sku},{chance.choice(list(PLANTS))},{chance.randint(1, UNITS_MAX)},"
        f"{chance.choice(('EA', 'PR'))}\n"
        for _ in range(ROWS)
    ]
    if bad:
        rows.insert(1, f"101,{chance.choice(ITEMS).sku},P10,1O,EA\n")  # somebody typed a letter for a zero
    return "".join(rows)


def _carry(story: Story, pipeline: Pipeline, letters: Letters, path: Path) -> None:
    journal, outcome = story.journal, pipeline.carry(path)
    journal.count("files")
    if outcome.known:
        journal.tell("file", f"{path.name} holds what came before: known by its checksum, nothing is booked")
        return
    applied = outcome.progress.applied
    journal.tell("file", f"{path.name}: {applied} receipts of the gate booked from a file")
    for letter in letters.find(source=SOURCE, run_id=outcome.run_id):
        journal.count("letters")
        journal.tell("letter", f"dead letter: {path.name} line {letter.position}: {letter.message}")
