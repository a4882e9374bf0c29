"""What a process tells of itself: metrics for Prometheus, logs as JSON lines on stderr, trace context.

Metrics are objects that a root makes and hands to the parts: nothing is registered or started at import, and no part
imports a metric of another. One module per process: `server`, `ingest`, `publish`, `history`; `catalogue` lists every
metric there is. Children are looked up once (`labels` costs more than counting). Logs carry reasons and ids, never
payloads or secrets. Spans for OpenTelemetry (`spans`) are an extra and off unless an endpoint is set.
"""

from availability.telemetry.history import HistoryMetrics, ReconcileFigures
from availability.telemetry.ingest import IngestMetrics, SourceFigures
from availability.telemetry.listener import start_metrics_listener
from availability.telemetry.logs import setup_logging
from availability.telemetry.publish import ChannelFigures, PublishMetrics
from availability.telemetry.server import (
    CallMetrics,
    ExceptionFigures,
    ExceptionMetrics,
    LedgerMetrics,
    OutcomeMetrics,
    Telemetry,
)
from availability.telemetry.trace import Trace

__all__ = [
    "CallMetrics",
    "ChannelFigures",
    "ExceptionFigures",
    "ExceptionMetrics",
    "HistoryMetrics",
    "IngestMetrics",
    "LedgerMetrics",
    "OutcomeMetrics",
    "PublishMetrics",
    "ReconcileFigures",
    "SourceFigures",
    "Telemetry",
    "Trace",
    "setup_logging",
    "start_metrics_listener",
]
