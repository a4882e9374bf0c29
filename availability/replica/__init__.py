"""Availability in memory: what every server, publisher and edge reads from. Start at ``replica.Replica``."""

from availability.replica.bootstrap import Progress
from availability.replica.explain import NodeTerms, NodeValue, PolicyTerm, Terms
from availability.replica.follow import Fork
from availability.replica.policies import default_channel
from availability.replica.replica import FRESHNESS_NEVER_MS, Counts, PolicySnapshot, Replica, Value
from availability.replica.settings import ReplicaSettings
from availability.replica.watch import Batch, Watcher

__all__ = [
    "FRESHNESS_NEVER_MS",
    "Batch",
    "Counts",
    "Fork",
    "NodeTerms",
    "NodeValue",
    "PolicySnapshot",
    "PolicyTerm",
    "Progress",
    "Replica",
    "ReplicaSettings",
    "Terms",
    "Value",
    "Watcher",
    "default_channel",
]
