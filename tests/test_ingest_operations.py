"""How old and how far sources are, what waits, and how a gap is skipped; against a real server."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from google.protobuf.duration_pb2 import Duration
from structlog.testing import capture_logs

from availability.client import ClientError, SequenceGapError
from availability.v1 import policy_pb2 as pol
from availability.v1 import stock_pb2 as stk
from ingest.runs import DONE
from ingest.status import ParkedAlarm
from tests.ingest_lab import NUMBERS
from tests.ingest_works import AT, Works, works

__all__ = ["works"]


def test_status_shows_what_waits_and_a_gap_can_be_skipped(works: Works) -> None:
    """Numbers, ages, the watermark; since when and for which number a stream waits; skipping lets it go on."""
    source = works.source("wms", columns=NUMBERS + 'occurred_time = "at"\n')
    tea = works.names.sku("tea")
    works.carry(
        source,
        f"RECEIPT,{tea},{works.node},3,s,1,2026-11-01T08:00:00Z",
        f"RECEIPT,{tea},{works.node},x,s,2,2026-11-01T09:00:00Z",
        f"RECEIPT,{tea},{works.node},4,s,3,2026-11-01T08:30:00Z",
    )
    line = works.desk.operations.status(works.sources[source])
    assert (line.files, line.letters) == (1, 1)  # carried by hand: the file still lies there
    (stream,) = line.streams
    assert (stream.stream, stream.last_sequence, stream.parked_s) == ("s", 3, None)
    assert stream.watermark == datetime(2026, 11, 1, 8, 30, tzinfo=UTC).timestamp()
    path = works.write(source, f"RECEIPT,{tea},{works.node},5,s,6,2026-11-01T10:00:00Z")
    with pytest.raises(SequenceGapError):
        works.desk.pipeline(source).carry(path)
    first = works.desk.operations.marks(source)[0].parked_at
    with pytest.raises(SequenceGapError):
        works.desk.pipeline(source).carry(path)
    assert works.desk.operations.marks(source)[0].parked_at == first
    (stream,) = works.desk.operations.status(works.sources[source]).streams
    assert stream.waits_for == 4
    assert stream.parked_s is not None
    works.desk.operations.skip_gap(source, "s", 6, "lost for good")
    assert works.desk.pipeline(source).carry(path).state == DONE
    (stream,) = works.desk.operations.status(works.sources[source]).streams
    assert (stream.last_sequence, stream.parked_s, stream.waits_for) == (6, None, 0)
    assert works.on_hand(tea) == 12


def test_a_stream_that_was_reset_says_so_until_its_next_number(works: Works) -> None:
    """ListStreams as ResetStream: a source that counts anew is seen to, and waits for nothing; then it is open."""
    source = works.source("wms", columns=NUMBERS)
    tea = works.names.sku("tea")
    works.carry(source, f"RECEIPT,{tea},{works.node},3,s,8")
    with pytest.raises(SequenceGapError):
        works.desk.pipeline(source).carry(works.write(source, f"RECEIPT,{tea},{works.node},1,s,12"))

    def state() -> tuple[str, int]:
        request = stk.ListStreamsRequest(source=source)
        (stream,) = works.desk.client.call(works.desk.client.stock.ListStreams, request).streams
        return stk.StreamState.Name(stream.state).removeprefix("STREAM_STATE_"), stream.last_sequence

    assert state() == ("PARKED", 8)
    answer = works.desk.operations.reset_stream(source, "s", "the WMS was set up anew")
    assert answer.state == stk.STREAM_STATE_RESET
    assert state() == ("RESET", 0)
    (stream,) = works.desk.operations.status(works.sources[source]).streams
    assert (stream.was_reset, stream.parked_s, stream.waits_for) == (True, None, 0)
    works.carry(source, f"RECEIPT,{tea},{works.node},5,s,1")
    assert state() == ("OPEN", 1)
    (stream,) = works.desk.operations.status(works.sources[source]).streams
    assert (stream.was_reset, stream.last_sequence, stream.parked_s) == (False, 1, None)
    assert works.on_hand(tea) == 8


def test_a_stream_that_waits_too_long_is_told_once_in_a_while(works: Works) -> None:
    """One error in the log when the time is over, the next after as long again; none once it goes on."""
    source = works.source("wms", columns=NUMBERS)
    marks = works.desk.pipeline(source).marks
    marks.parked("s", 4, 1_000.0)
    clock = [1_000.0]
    alarm = ParkedAlarm(lambda: clock[0])
    with capture_logs() as logs:
        for clock[0] in (1_010.0, 1_060.0, 1_070.0, 1_121.0, 1_130.0):
            alarm.look(marks.all(), 60.0)
    assert [(line["log_level"], line["parked_s"], line["waits_for"]) for line in logs] == [
        ("error", 60, 4),
        ("error", 121, 4),
    ]
    marks.skipped("s")
    assert alarm.look(marks.all(), 60.0) == []


def test_an_idle_source_is_heard_while_its_folder_is_healthy(works: Works) -> None:
    """Heartbeats keep a watched feed fresh; without a folder that can be read there are none."""
    source = works.source("wms", top="heartbeat_s = 0.2")
    works.carry(source, f"RECEIPT,{works.names.sku('tea')},{works.node},3")
    drop = works.sources[source].drop
    assert drop is not None
    for path in drop.folder.glob("*.csv"):
        path.unlink()
    works.client.call(
        works.client.policies.SetFeed,
        pol.SetFeedRequest(
            reason="test",
            source=source,
            node=works.node,
            expected_interval=Duration(seconds=1),
            grace=Duration(nanos=500_000_000),
        ),
    )
    desk, until = works.desk, time.monotonic() + 3.0
    desk.run(once=False, stopped=lambda: time.monotonic() > until, watch=lambda *_: None, told=lambda _: None)
    assert _feed_age_s(works, source) < 1.5


def _feed_age_s(works: Works, source: str) -> float:
    feeds = works.client.explain(works.channel, works.names.sku("tea")).terms.feeds
    (feed,) = [one for one in feeds if one.source == source]
    assert not feed.stale
    return feed.age_ms / 1000


def test_a_gap_of_nobody_is_refused(works: Works) -> None:
    """By the ledger, with its reason."""
    source = works.source("wms", columns=NUMBERS)
    with pytest.raises(ClientError):
        works.desk.operations.skip_gap(source, "s", 3, "")


def test_metrics_tell_what_came_and_what_waits(works: Works) -> None:
    """Rows and files by what became of them; letters, waiting files, a parked stream and the source's age."""
    wms = works.source("wms", columns=NUMBERS + 'occurred_time = "at"\n')
    tea = works.names.sku("tea")
    works.write(wms, f"RECEIPT,{tea},{works.node},5,s,1,{AT}", f"RECEIPT,{tea},{works.node},x,s,2,{AT}")
    works.write(wms, f"RECEIPT,{tea},{works.node},5,s,4,{AT}")
    desk = works.desk

    def scrape(name: str, **labels: str) -> float | None:
        value: float | None = desk.metrics.registry.get_sample_value(
            f"availability_ingest_{name}", {**labels, "source": wms}
        )
        return value

    desk.run(once=True, stopped=lambda: False, watch=lambda *_: None, told=lambda _: None)
    assert scrape("rows_total", result="applied") == 1
    assert scrape("rows_total", result="refused") == 1
    assert scrape("artifacts_total", state="done") == 1
    assert scrape("files_waiting") == 1
    assert scrape("dead_letters", category="VALIDATION") == 1
    for name in ("parked_age_seconds", "dead_letter_age_seconds"):
        age = scrape(name)
        assert age is not None
        assert 0 < age < 60
    source_age = scrape("source_age_seconds")
    assert source_age is not None
    assert source_age > 86_400  # it told of the first of November
    works.write(wms, f"RECEIPT,{tea},{works.node},5,s,3,{AT}")
    desk.run(once=True, stopped=lambda: False, watch=lambda *_: None, told=lambda _: None)
    desk.run(once=True, stopped=lambda: False, watch=lambda *_: None, told=lambda _: None)
    assert scrape("rows_total", result="applied") == 3
    assert (scrape("files_waiting"), scrape("parked_age_seconds")) == (0, 0)
