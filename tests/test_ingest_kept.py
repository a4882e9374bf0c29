"""What is kept of letters and files, and for how long: no personal data; against a real server."""

from __future__ import annotations

import json
import time

import pytest

from ingest.retention import clean
from ingest.reverse import ReverseRefused
from ingest.runs import DONE
from ingest.settings import SettingsRefused, read_source
from tests.ingest_lab import plain_source
from tests.ingest_works import AT, ORDERS, Works, works

__all__ = ["works"]


def test_personal_data_is_not_kept(works: Works) -> None:
    """Not in the row, not in the sentence about it; two people are two letters; what is left can be replayed."""
    source = works.source(
        "wms", columns=ORDERS, more='[redact]\npatterns = ["[a-z.]+@[a-z.]+", "49\\\\d{6,}"]\n'
    )
    tea = works.names.sku("tea")
    works.carry(
        source,
        f"RECEIPT,{tea},{works.node},x,ann@example.org,,{AT}",
        f"RECEIPT,{tea},{works.node},x,bob@example.org,,{AT}",
        f"RECEIPT,{tea},{works.node},bob@example.org,,,{AT}",
    )
    letters = works.desk.letters.find(source=source)
    assert len(letters) == 3
    for letter in letters:
        assert b"example" not in letter.raw
        assert "example" not in letter.message


def test_json_keys_are_taken_out_at_any_depth(works: Works) -> None:
    """Whole values of the keys; a row that is no JSON is cut at the first of them."""
    path = works.folder / "hook.toml"
    redact = '[redact]\njson_keys = ["customer", "mail"]'
    text = plain_source(works.names.id("hook"), kind="json_lines", more=redact)
    path.write_text(text)
    settings = read_source(path)
    works.sources[settings.source] = settings
    file = works.folder / "a.jsonl"
    rows = [
        {"type": "RECEIPT", "sku": "tea", "node": "n", "quantity": "x", "customer": {"name": "Ann"}},
        {"type": "RECEIPT", "sku": "tea", "node": "n", "quantity": "y", "notes": [{"mail": "ann@x"}]},
    ]
    broken = '{"type": "RECEIPT", "customer": {"name": "Ann"'
    file.write_text("\n".join((*map(json.dumps, rows), broken)) + "\n")
    works.desk.pipeline(settings.source).carry(file)
    letters = works.desk.letters.find(source=settings.source)
    assert len(letters) == 3
    for letter in letters:
        assert b"nn" not in letter.raw
        assert b"[redacted]" in letter.raw
    path.write_text(text.replace('"mail"]', '"quantity"]'))
    with pytest.raises(SettingsRefused, match="the mapping reads quantity"):
        read_source(path)


def test_what_is_over_is_not_kept_for_ever(works: Works) -> None:
    """Closed letters and what a reversal needs go in time; waiting letters and checksums stay."""
    source = works.source("wms", more="[retention]\nletters_days = 10\nruns_days = 20\n")
    tea = works.names.sku("tea")
    outcome = works.carry(
        source,
        f"RECEIPT,{tea},{works.node},x",
        f"RECEIPT,{tea},{works.node},y",
        f"RECEIPT,{tea},{works.node},1",
    )
    desk = works.desk
    desk.discard(desk.letters.find(source=source)[:1], "known")
    now, settings = time.time(), works.sources[source]
    assert clean(works.engine, desk.letters, settings, now + 9 * 86_400) == (0, 0)
    assert clean(works.engine, desk.letters, settings, now + 11 * 86_400) == (1, 0)
    assert clean(works.engine, desk.letters, settings, now + 21 * 86_400) == (0, 1)
    assert len(desk.letters.find(source=source, state="")) == 1
    assert desk.pipeline(source).carry(works.write(source, "")).state == DONE
    drop = settings.drop
    assert drop is not None
    assert desk.pipeline(source).carry(drop.folder / "001.csv").known
    with pytest.raises(ReverseRefused, match="not kept any more"):
        desk.operations.reverser(outcome.run_id, settings, None, "late")
