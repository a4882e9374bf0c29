"""How a long-running command is observed: its metrics, its logs. The names are those of the server's settings."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from availability.cli.errors import usage

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_PANEL = "Observation"
MetricsListen = Annotated[
    str,
    typer.Option(
        "--metrics",
        metavar="HOST:PORT",
        envvar="AVAIL_METRICS__LISTEN",
        help="Serve /metrics here; none where empty.",
        rich_help_panel=_PANEL,
    ),
]
LogFormat = Annotated[
    str,
    typer.Option(
        "--log-format",
        envvar="AVAIL_LOGGING__FORMAT",
        help="json or text; empty: text on a terminal, else json.",
        rich_help_panel=_PANEL,
    ),
]
LogLevel = Annotated[
    str,
    typer.Option(
        "--log-level",
        envvar="AVAIL_LOGGING__LEVEL",
        help="DEBUG, INFO, WARNING or ERROR.",
        rich_help_panel=_PANEL,
    ),
]


def set_up_logs(log_format: str, log_level: str) -> None:
    """Send logs to stderr. A wrong value ends the command with one line."""
    from availability.telemetry import setup_logging

    if log_format not in ("", "json", "text"):
        raise usage(f"{log_format!r} is no format of logs: json or text")
    if log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise usage(f"{log_level!r} is no level of logs: DEBUG, INFO, WARNING or ERROR")
    setup_logging(log_level, log_format or ("text" if sys.stderr.isatty() else "json"))


@contextmanager
def logged(log_format: str = "", log_level: str = "WARNING") -> Iterator[None]:
    """Send logs to stderr meanwhile: stdout is for what a command answers."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    set_up_logs(log_format, log_level)
    try:
        yield
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])


@contextmanager
def observed(metrics: str, registry: CollectorRegistry, log_format: str, log_level: str) -> Iterator[None]:
    """Set logs up and serve a registry meanwhile. A wrong value ends the command with one line."""
    from availability.telemetry import start_metrics_listener

    with logged(log_format, log_level):
        try:
            stop = start_metrics_listener(metrics, registry)
        except (OSError, ValueError) as error:
            raise usage(f"metrics cannot be served at {metrics!r}: {error}") from None
        try:
            yield
        finally:
            if stop is not None:
                stop()
