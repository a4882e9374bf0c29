"""Under load snapshots are refused first, then reads, then reserves, the rest never."""

from __future__ import annotations

import pytest

from availability.service.admission import Admission, AdmissionLimits, CallClass

NEVER_REFUSED = (CallClass.ORDER, CallClass.INGEST, CallClass.ADMIN)
LIMITS = AdmissionLimits(
    reads_queue_wait_ms=100,
    reserves_queue_wait_ms=400,
    reads_commit_queue_max=50,
    reserves_commit_queue_max=200,
    retry_after_ms=100,
    retry_after_ms_max=800,
)


@pytest.mark.parametrize(
    ("queue_wait_ms", "refused"),
    [
        (0, set()),
        (50, set()),
        (50.1, {CallClass.SNAPSHOT}),
        (100, {CallClass.SNAPSHOT}),
        (100.1, {CallClass.SNAPSHOT, CallClass.READ}),
        (400, {CallClass.SNAPSHOT, CallClass.READ}),
        (401, {CallClass.SNAPSHOT, CallClass.READ, CallClass.RESERVE}),
        (1e9, {CallClass.SNAPSHOT, CallClass.READ, CallClass.RESERVE}),
    ],
)
def test_by_the_wait_for_a_thread(queue_wait_ms: float, refused: set[CallClass]) -> None:
    """The limit itself is still served."""
    admission = Admission(LIMITS)
    assert {kind for kind in CallClass if admission.check(kind, queue_wait_ms)} == refused


@pytest.mark.parametrize(
    ("length", "refused"),
    [
        (50, set()),
        (51, {CallClass.READ}),
        (101, {CallClass.SNAPSHOT, CallClass.READ}),
        (201, {CallClass.SNAPSHOT, CallClass.READ, CallClass.RESERVE}),
    ],
)
def test_by_the_commit_queue(length: int, refused: set[CallClass]) -> None:
    """The gauge is asked at each decision."""
    admission = Admission(LIMITS, lambda: length)
    assert {kind for kind in CallClass if admission.check(kind, 0.0)} == refused


def test_by_default_a_slow_ledger_refuses_no_read_from_memory() -> None:
    """A long commit queue is no reason to stop answering from memory."""
    admission = Admission(AdmissionLimits(), lambda: 1_000_000)
    assert admission.check(CallClass.READ, 0.0) is None
    assert admission.check(CallClass.RESERVE, 0.0) is not None


def test_zero_switches_a_limit_off() -> None:
    """Without limits nothing is refused."""
    off = AdmissionLimits(
        reads_queue_wait_ms=0, reserves_queue_wait_ms=0, reserves_commit_queue_max=0, reads_blocked_max=0
    )
    admission = Admission(off, lambda: 1_000_000)
    assert not any(admission.check(kind, 1e9) for kind in CallClass)
    assert admission.blocked_max(CallClass.READ) is None


def test_come_back_later_the_longer_the_queue() -> None:
    """The pause doubles with the pressure, up to its limit."""
    admission = Admission(LIMITS)
    pauses = []
    for wait_ms in (101, 199, 200, 399, 400, 800, 1e6):
        overload = admission.check(CallClass.READ, wait_ms)
        assert overload is not None
        pauses.append(overload.retry_after_ms)
    assert pauses == [100, 100, 200, 200, 400, 800, 800]


def test_waiting_has_limits_by_class() -> None:
    """Reads may occupy fewer waiting threads than reserves, commits and facts any number."""
    admission = Admission(AdmissionLimits(reads_blocked_max=8, reserves_blocked_max=24))
    assert admission.blocked_max(CallClass.READ) == 8
    assert admission.blocked_max(CallClass.RESERVE) == 24
    assert [admission.blocked_max(kind) for kind in NEVER_REFUSED] == [None] * 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"reads_queue_wait_ms": 500, "reserves_queue_wait_ms": 400},
        {"reads_commit_queue_max": 3_000},
        {"reads_blocked_max": 200},
        {"reads_queue_wait_ms": -1},
    ],
)
def test_reads_do_not_outlast_reserves(wrong: dict[str, int]) -> None:
    """Limits in the wrong order are refused when they are set."""
    with pytest.raises(ValueError, match=r"reads|at least"):
        AdmissionLimits(**wrong)
