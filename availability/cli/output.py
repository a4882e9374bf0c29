"""How answers look: tables for people, JSON with the API's names for programs."""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import select
import stat
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console
    from rich.table import Table

WIDTH_PIPED = 160
"""Columns of a table that no terminal limits."""
READER_LOOK_MS = 200


@contextlib.contextmanager
def while_somebody_reads() -> Iterator[None]:
    """End what waits for news as Ctrl-C does when nobody reads our output any more, as after `| head -1`.

    Writing would find it out too, but only with the next change, which may be hours away.
    """
    try:
        number = sys.stdout.fileno()
        mode = os.fstat(number).st_mode
    except (OSError, ValueError):  # no file at all
        mode = 0
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        yield
        return
    over = threading.Event()

    def look() -> None:
        ended = select.poll()
        ended.register(number, 0)  # only errors and hang-ups
        while not over.is_set():
            if ended.poll(READER_LOOK_MS) and not over.is_set():
                _thread.interrupt_main()
                return

    thread = threading.Thread(target=look, name="reader", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def console() -> Console:
    """Return a console for stdout."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_PIPED)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table; columns named in `right` hold numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, show_edge=False, header_style="bold", border_style="bright_black")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def counted(number: int, thing: str) -> str:
    """Return "1 unit", "1,200 units"."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def print_json(value: Any) -> None:  # Any: a message, or lists and dictionaries of them
    """Print a message, or a list of messages, as JSON."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False), flush=True)


def plain(value: Any) -> Any:  # Any: JSON's own types
    """Turn a message into JSON types: numbers stay numbers, times are ISO text, durations "90s", enums their names."""
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if not hasattr(value, "DESCRIPTOR"):
        return value
    if value.DESCRIPTOR.full_name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
        return value.ToJsonString()
    return {
        field.name: _field(value, field)
        for field in value.DESCRIPTOR.fields
        if not field.has_presence or value.HasField(field.name)
    }


def _field(message: Message, field: Any) -> Any:  # Any: a FieldDescriptor, JSON's own types
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        return [_single(one, field) for one in value]
    return _single(value, field)


def _single(value: Any, field: Any) -> Any:  # Any: as above
    if field.enum_type is not None:
        found = field.enum_type.values_by_number.get(value)
        return found.name if found is not None else value
    return plain(value)


def word(enum: Any, value: int) -> str:  # Any: a generated enum's wrapper
    """Return an enum value's name without the enum's own prefix: AVAILABILITY_STATE_IN_STOCK → IN_STOCK."""
    names: dict[int, str] = {number: name for name, number in enum.items()}
    prefix = names[0].removesuffix("UNSPECIFIED")
    return names.get(value, str(value)).removeprefix(prefix)
