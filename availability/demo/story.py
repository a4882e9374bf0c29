"""What the demo's actors share: connection, journal, the clock of the show, and queues between systems."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from availability.client import Client, ClientError, DeltaSender
from availability.demo.books import Line
from availability.demo.journal import Journal
from availability.v1 import stock_pb2 as stk


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order as one system hands it to the next."""

    source: str
    ref: str
    lines: tuple[Line, ...]


@dataclass(slots=True)
class Story:
    """Shared by all actors."""

    client: Client
    journal: Journal
    seed: int
    length_s: float
    stop: threading.Event = field(default_factory=threading.Event)
    placed: queue.SimpleQueue[Order] = field(default_factory=queue.SimpleQueue)
    to_ship: queue.SimpleQueue[Order] = field(default_factory=queue.SimpleQueue)
    begin_s: float = field(default_factory=time.monotonic)

    def chance(self, who: str) -> random.Random:
        """Return an actor's own chance."""
        return random.Random(f"{self.seed} {who}")

    def wait_until(self, part: float) -> bool:
        """Wait for a moment of the show (a part of its length); False when it is stopped before."""
        left_s = self.begin_s + part * self.length_s - time.monotonic()
        return not self.stop.wait(max(0.0, left_s))

    def has_passed(self, part: float) -> bool:
        """Say whether a moment of the show is over."""
        return time.monotonic() >= self.begin_s + part * self.length_s

    def run(self, name: str, actor: Callable[[Story], None]) -> threading.Thread:
        """Run an actor in a thread of its own; what it cannot handle ends the demo, and fails it."""

        def guarded() -> None:
            try:
                actor(self)
            except ClientError as error:
                self.fail(f"{name}: {error}")
            except Exception as error:
                self.fail(f"{name}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def fail(self, text: str) -> None:
        """End the show because of something that should not have happened."""
        self.journal.fail(text)
        self.stop.set()


class Feed:
    """One source's stream of deltas: numbers them per stream, sends them in batches, journals the acks."""

    def __init__(self, story: Story, source: str) -> None:
        self._source = source
        self._sequences: Counter[str] = Counter()
        self._batch: list[stk.Delta] = []
        self._sender: DeltaSender = story.client.delta_sender(source, acked=story.journal.enter_acked)

    def add(self, stream: str, delta: stk.Delta) -> None:
        """Put a delta into the next batch; the feed fills in source, number and time."""
        self._sequences[stream] += 1
        delta.source = self._source
        delta.stream = stream
        delta.source_sequence = self._sequences[stream]
        delta.occurred_time.GetCurrentTime()
        self._batch.append(delta)

    def send(self, *, settle: bool = False) -> Sequence[stk.Delta]:
        """Send what was added; with ``settle`` wait for its ack. Returns what was sent."""
        batch, self._batch = self._batch, []
        if batch:
            self._sender.send(batch)
        if settle:
            self._sender.flush()
        return batch

    def send_again(self, batch: Sequence[stk.Delta]) -> None:
        """Send a batch a second time, as a source does that has lost the ack."""
        self._sender.send(batch)
        self._sender.flush()

    def close(self) -> None:
        """Settle everything and end the stream."""
        self.send()
        self._sender.close()
