"""A webhook as the shop keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field

FAILURES_MAX = 6
"""Consecutive failures that a webhook survives; the next one disables it and is not counted."""

TOPICS = tuple(
    f"{resource}.{event}"
    for resource in ("order", "product", "customer", "coupon")
    for event in ("created", "updated", "deleted", "restored")
    if not (resource == "customer" and event == "restored")
)


@dataclass(slots=True, kw_only=True)
class Webhook:
    """A webhook. ``waiting`` are its deliveries that are queued."""

    id: int
    name: str
    topic: str
    delivery_url: str
    secret: str = field(repr=False)
    created_s: float
    status: str = "active"
    failure_count: int = 0
    waiting: set[tuple[int, int]] = field(default_factory=set)
