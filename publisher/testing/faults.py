"""What goes wrong, on demand: each failure that was seen on a real shop, for the next calls that match.

A fault is armed with ``Faults.add`` and used up after ``times`` matching calls (0: until it is removed). Where several
match a call, the first armed one counts; those that let the call go on (``LOCK_TIMEOUT``, ``READ_ONLY``,
``TORN_STATUS``, ``STALE_READ``, ``SLOW``, ``BEFORE_ITEM``) may join one that ends it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto


class Kind(Enum):
    """The failures. "Stored" says what has happened to the values although the answer says otherwise."""

    FATAL_EARLY = auto()
    """500 JSON before anything is done (a plugin fails while loading)."""
    FATAL_AT_ITEM = auto()
    """500 JSON after ``items`` items were stored: a fatal error or the time limit in the middle of a batch."""
    HOOK_EXCEPTION = auto()
    """The item at index ``items`` answers an error although its value was stored (a plugin's hook threw)."""
    LOCK_TIMEOUT = auto()
    """200, and the item's answer shows the old value: the row was locked (``ids``) and nothing was stored."""
    READ_ONLY = auto()
    """200 with old values everywhere: the database is read-only."""
    DATABASE_DOWN = auto()
    """500 JSON of wp_die with HTML in the message."""
    PLUGIN_REFUSES = auto()
    """500 JSON of wp_die: a plugin stops the request."""
    MAINTENANCE = auto()
    """503 JSON with Retry-After ``seconds``, 600 where none are given."""
    TOO_MANY_REQUESTS = auto()
    """429 with Retry-After ``seconds``, from the proxy; nothing is done."""
    HTML_BEFORE_JSON = auto()
    """200, stored, but a plugin printed a warning before the JSON."""
    CHALLENGE_PAGE = auto()
    """200 text/html and nothing is done: a bot wall."""
    EMPTY_LIST = auto()
    """200 ``[]`` and nothing is done: the body was not understood."""
    BAD_GATEWAY = auto()
    """502 text/html and nothing is done: PHP is down."""
    GATEWAY_TIMEOUT = auto()
    """504 text/html after ``seconds``, while the work goes on to its end."""
    HANG = auto()
    """The answer comes ``seconds`` late; the work is done. The caller has probably gone by then."""
    CUT_ANSWER = auto()
    """The work is done, and the connection ends in the middle of the answer."""
    TORN_STATUS = auto()
    """The quantity is stored with the stock status it had before (two writes of one product at once)."""
    STALE_READ = auto()
    """A read shows each product as it was before its last write (an object cache that lags)."""
    SLOW = auto()
    """The work takes ``factor`` times as long."""
    BEFORE_ITEM = auto()
    """``action`` is called before the item at index ``items`` is stored: for a sale in the window of a write."""
    AFTER_READ = auto()
    """``action`` is called after a read was answered: for a sale between a read and the write that follows."""


JOINING = frozenset(
    (
        Kind.LOCK_TIMEOUT,
        Kind.READ_ONLY,
        Kind.TORN_STATUS,
        Kind.STALE_READ,
        Kind.SLOW,
        Kind.BEFORE_ITEM,
        Kind.AFTER_READ,
    )
)


@dataclass(slots=True, kw_only=True)
class Fault:
    """One armed failure. ``method`` and ``path`` say which calls; ``times`` how many of them, 0 for all."""

    kind: Kind
    method: str = ""
    path: str = ""
    times: int = 1
    items: int = 0
    seconds: float = 0.0
    factor: float = 1.0
    ids: frozenset[int] = frozenset()
    action: Callable[[], object] | None = None
    hits: int = 0

    def matches(self, method: str, path: str) -> bool:
        """Whether the call is one of those that it is for."""
        return (not self.method or method in self.method.split("|")) and re.search(
            self.path, path
        ) is not None


@dataclass(slots=True, kw_only=True)
class Active:
    """The faults of one call."""

    ending: Fault | None = None
    joining: dict[Kind, Fault] = field(default_factory=dict)

    def has(self, kind: Kind) -> bool:
        """Whether the call meets this failure."""
        return kind in self.joining or (self.ending is not None and self.ending.kind is kind)

    def fault(self, kind: Kind) -> Fault | None:
        """Return the fault of this kind."""
        return self.joining.get(kind) or (self.ending if self.has(kind) else None)


@dataclass(slots=True)
class Faults:
    """The armed failures, oldest first. May be changed from any thread."""

    armed: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> Fault:
        """Arm a failure and return it: ``hits`` says how often it has struck."""
        with self.lock:
            self.armed.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Disarm a failure that is still armed."""
        with self.lock:
            if fault in self.armed:
                self.armed.remove(fault)

    def clear(self) -> None:
        """Disarm all."""
        with self.lock:
            self.armed.clear()

    def take(self, method: str, path: str) -> Active:
        """Return what strikes this call, and use it up."""
        active = Active()
        with self.lock:
            for fault in list(self.armed):
                if not fault.matches(method, path):
                    continue
                if fault.kind in JOINING:
                    if fault.kind in active.joining:
                        continue
                    active.joining[fault.kind] = fault
                elif active.ending is None:
                    active.ending = fault
                else:
                    continue
                fault.hits += 1
                if fault.times and fault.hits >= fault.times:
                    self.armed.remove(fault)
        return active
