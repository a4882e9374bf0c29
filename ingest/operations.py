"""What an operator does with sources besides carrying: look, skip a gap, compare, cut over, reverse, open."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.engine import Engine

from availability.client import Client, ClientError
from availability.v1 import policy_pb2
from availability.v1 import stock_pb2 as pb
from ingest import opening, reverse
from ingest.authority import NOT_GIVEN, Cutover, record_cutover, withdraw_cutover
from ingest.feed_health import FeedHealth
from ingest.ledger_views import on_hand_of
from ingest.letters import Letters
from ingest.marks import Mark, Marks
from ingest.pipeline import Pipeline
from ingest.runs import REFUSED
from ingest.settings import SourceSettings
from ingest.shadow import Compared, Shadow
from ingest.sources.drop_folder import ARCHIVE, DropFolderSource
from ingest.status import SourceLine, stream_lines


class CutoverRefused(Exception):
    """Authority cannot move so; the message says why."""


class OpeningRefused(Exception):
    """Nothing was loaded; ``found`` says what is wrong, where the files are."""

    def __init__(self, message: str, found: opening.Opening | None = None) -> None:
        super().__init__(message)
        self.found = found


class Operations:
    """Over one database and one server."""

    def __init__(
        self,
        engine: Engine,
        client: Client,
        letters: Letters,
        make_pipeline: Callable[[SourceSettings], Pipeline],
        *,
        now: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._engine = engine
        self._client = client
        self._letters = letters
        self._make_pipeline = make_pipeline
        self._now = now
        self._pause = pause

    # --- Order and ages -----------------------------------------------------------------------------------

    def marks(self, source: str) -> list[Mark]:
        """Return what is noted of a source's streams."""
        return Marks(self._engine, source).all()

    def status(self, settings: SourceSettings) -> SourceLine:
        """Return how a source fares. Raises ClientError."""
        files = None
        if settings.drop is not None:
            folder = DropFolderSource(settings.drop, self._make_pipeline(settings))
            try:
                files = len(folder.ready())
            except OSError:
                files = None
        counts = self._letters.counts()
        heard = self._client.call(
            self._client.stock.ListStreams, pb.ListStreamsRequest(source=settings.source)
        )
        return SourceLine(
            source=settings.source,
            mode=settings.mode,
            files=files,
            letters=sum(count for (source, _), count in counts.items() if source == settings.source),
            streams=stream_lines(self.marks(settings.source), heard.streams, self._now()),
            feeds=tuple(FeedHealth(self._engine, self._now).all(settings.source)),
        )

    def skip_gap(self, source: str, stream: str, next_sequence: int, reason: str) -> pb.StreamStatus:
        """Give up the numbers before ``next_sequence``. Raises ClientError."""
        answer = self._client.call(
            self._client.stock.SkipGap,
            pb.SkipGapRequest(source=source, stream=stream, next_sequence=next_sequence, reason=reason),
        )
        Marks(self._engine, source).skipped(stream)
        return answer.stream

    def reset_stream(self, source: str, stream: str, reason: str) -> pb.StreamStatus:
        """Forget where a stream stands: the next number opens it anew. Raises ClientError."""
        answer = self._client.call(
            self._client.stock.ResetStream,
            pb.ResetStreamRequest(source=source, stream=stream, reason=reason),
        )
        Marks(self._engine, source).skipped(stream)
        return answer.stream

    # --- ERP swap -----------------------------------------------------------------------------------------

    def shadow(self, settings: SourceSettings) -> Shadow:
        """Return the figures of a source. Raises CutoverRefused where nothing says how the ledger is read."""
        if not settings.shadow_channel:
            raise CutoverRefused(f"{settings.source} has no shadow_channel")
        return Shadow(self._engine, settings.source, on_hand_of(self._client, settings.shadow_channel))

    def cut_over(
        self, one: Cutover, new: SourceSettings, *, accept_differences: bool = False, settle_s: float = 2.0
    ) -> list[Compared]:
        """Move authority from now on; return the differences that were accepted. Raises CutoverRefused, ClientError.

        Refused where the old source is beyond its point already, or the new one's figures differ from the ledger's.
        """
        if not one.nodes and not one.skus:
            raise CutoverRefused("name nodes or skus")
        if one.from_source == one.to_source:
            raise CutoverRefused("the two sources are the same")
        for point, whose in ((one.from_point, one.from_source), (one.to_point, one.to_source)):
            if point.sequence == NOT_GIVEN and not point.at_time:
                raise CutoverRefused(f"no point of {whose} is given: a sequence, or a time for both")
        self._not_passed(one)
        differing: list[Compared] = []
        if new.mode == "shadow":
            compared = self.shadow(new).report(self._now(), nodes=one.nodes)
            differing = [row for row in compared if row.difference and one.covers(row.sku, row.node)]
        if differing and not accept_differences:
            first = differing[0]
            raise CutoverRefused(
                f"{len(differing)} positions differ, {first.sku} at {first.node} by {first.difference} for one; "
                "mend them, or accept the differences"
            )
        number = record_cutover(self._engine, one)
        try:
            self._pause(settle_s)  # batches that were on their way when it was written down
            self._not_passed(one)
        except (CutoverRefused, ClientError):
            withdraw_cutover(self._engine, number)
            raise
        if new.mode == "shadow":
            self.shadow(new).forget(one.covers)
        return differing

    def _not_passed(self, one: Cutover) -> None:
        point = one.from_point
        if point.sequence == NOT_GIVEN:
            return
        last = self._client.last_sequences(one.from_source)
        for stream, sequence in last.items():
            if (not point.stream or stream == point.stream) and sequence > point.sequence:
                raise CutoverRefused(
                    f"{one.from_source} is at {sequence} of {stream} already: name a point that is still to come"
                )

    # --- Undo and first load ------------------------------------------------------------------------------

    def reverser(
        self, run: str, settings: SourceSettings | None, file: Path | None, reason: str
    ) -> tuple[reverse.Reverser, Path]:
        """Return what reverses a run, and the file that it read. Raises ReverseRefused."""
        kept = reverse.find_run(self._engine, run)
        if file is None:
            if settings is None or settings.drop is None:
                raise reverse.ReverseRefused(f"{kept.source} has no drop folder; name the file with --file")
            file = reverse.archived(kept, settings.drop.folder / ARCHIVE)
        return reverse.Reverser(self._engine, kept, self._make_pipeline(kept.settings), reason), file

    def open(
        self,
        stock_file: Path,
        orders_file: Path,
        stock: SourceSettings,
        orders: SourceSettings,
        *,
        again: bool = False,
        new_nodes: bool = False,
    ) -> opening.Opening:
        """Load stock and open orders, both or neither. ``new_nodes``: the ledger takes nodes that it does not know.

        Raises OpeningRefused, ClientError.
        """
        files = (stock_file, orders_file)
        if not again:
            for settings in dict.fromkeys((stock.source, orders.source)):
                if said := opening.earlier_load(self._engine, settings, files):
                    raise OpeningRefused(f"{settings} has brought something already: {said}")
                if any(self._client.last_sequences(settings).values()):
                    loaded = opening.loaded_by(self._engine, settings, files)
                    if not loaded:
                        raise OpeningRefused(f"the ledger has streams of {settings} already")
        pipelines = self._make_pipeline(stock), self._make_pipeline(orders)
        policies = self._client.call(self._client.policies.ListPolicies, policy_pb2.ListPoliciesRequest())
        nodes = None if new_nodes else {node.node for node in policies.nodes}
        kits = {kit.kit_sku for kit in policies.kits if kit.flattened}
        found = opening.validate(stock_file, orders_file, *pipelines, nodes, kits)
        if found.problems:
            raise OpeningRefused(f"{len(found.problems)} rows are wrong: nothing is loaded", found)
        for file, pipeline in zip(files, pipelines, strict=True):
            outcome = pipeline.carry(file)
            found.outcomes.append(outcome)
            if outcome.state == REFUSED:
                raise OpeningRefused(f"{file.name}: {outcome.reason}", found)
        return found
