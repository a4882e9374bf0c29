"""Exceptions over the wire: listed, taken in hand, streamed and resumed; and what is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest

from availability.client import Client, ClientError
from availability.v1 import exception_pb2 as exc
from availability.v1.exception_pb2_grpc import ExceptionServiceStub
from tests.conftest import Names, Server
from tests.model import Delta
from tests.wire import Service, refusal_of

WAIT_S = 20.0
NEGATIVE = exc.EXCEPTION_CATEGORY_NEGATIVE_ON_HAND


@pytest.fixture
def desk(server: Server) -> Iterator[Client]:
    with Client(server.grpc) as client:
        yield client


def lose(client: Service, names: Names, *skus: str) -> None:
    for sku in skus:
        delta = Delta(
            type="ADJUSTMENT",
            sku=names.sku(sku),
            node=names.node(),
            quantity=-1,
            source="erp",
            event_id=names.id(sku),
            reason="count",
        )
        assert client.apply_delta(delta)[0] == "APPLIED"


def wait_for(desk: Client, names: Names, count: int) -> list[exc.Exception]:
    until = time.monotonic() + WAIT_S
    while True:
        found = [one for one in desk.list_exceptions(categories=[NEGATIVE]) if one.node == names.node()]
        if len(found) >= count:
            return found
        assert time.monotonic() < until, f"{count} exceptions: {found}"
        time.sleep(0.05)


def refusal(desk: Client, request: exc.AcknowledgeExceptionRequest) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        desk.call(desk.exceptions.AcknowledgeException, request)
    return caught.value.reason, caught.value.metadata.get("field", "")


def test_an_exception_is_listed_and_taken_in_hand(desk: Client, client: Service, names: Names) -> None:
    """What is wrong is in the list with its figures, and who took it in hand shows; a repeat is a replay."""
    lose(client, names, "a")
    (one,) = wait_for(desk, names, 1)
    assert (one.category, one.severity, one.state, one.owner) == (
        NEGATIVE,
        exc.EXCEPTION_SEVERITY_WARNING,
        exc.EXCEPTION_STATE_OPEN,
        "stock",
    )
    assert (one.sku, one.quantity) == (names.sku("a"), -1)
    request_id = desk.new_request_id()
    taken = desk.acknowledge_exception(one.exception_id, "recounting", request_id=request_id)
    assert (taken.exception.state, taken.exception.note) == (exc.EXCEPTION_STATE_ACKNOWLEDGED, "recounting")
    assert taken.exception.acknowledged_by
    again = desk.acknowledge_exception(one.exception_id, "recounting", request_id=request_id)
    assert (again.replayed, again.version) == (True, taken.version)


def test_pages_join_to_the_list(desk: Client, client: Service, names: Names) -> None:
    """Pages of two tell each once, in the order of the whole."""
    lose(client, names, "a", "b", "c")
    wait_for(desk, names, 3)
    whole = [one.exception_id for one in desk.list_exceptions(categories=[NEGATIVE])]
    pages, token = list[str](), ""
    while True:
        request = exc.ListExceptionsRequest(categories=[NEGATIVE], page_size=2, page_token=token)
        page = desk.call(desk.exceptions.ListExceptions, request)
        pages += [one.exception_id for one in page.exceptions]
        token = page.next_page_token
        if not token:
            break
    assert [id_ for id_ in pages if id_ in whole] == whole


def test_a_stream_goes_on_where_it_was(desk: Client, client: Service, names: Names) -> None:
    """First what is open; resumed, only what changed since: an acknowledgement that nobody streamed."""
    lose(client, names, "a")
    (one,) = wait_for(desk, names, 1)
    version = ""
    calls: list[grpc.Call] = []
    for message in desk.watch_exceptions(categories=[NEGATIVE], opened=calls.append):
        assert message.initial
        version = message.version
        if version:
            break
    calls[0].cancel()
    desk.acknowledge_exception(one.exception_id, "seen")
    for message in desk.watch_exceptions(categories=[NEGATIVE], resume_version=version, opened=calls.append):
        assert not message.initial
        if one.exception_id in [told.exception_id for told in message.exceptions]:
            break
    calls[1].cancel()
    (told,) = [told for told in message.exceptions if told.exception_id == one.exception_id]
    assert (told.state, told.note) == (exc.EXCEPTION_STATE_ACKNOWLEDGED, "seen")


def test_what_is_not_there_or_too_long_is_refused(desk: Client) -> None:
    """An unknown id, a note of more than 500 bytes, no id."""
    ask = exc.AcknowledgeExceptionRequest
    assert refusal(desk, ask(exception_id="oversold-0")) == ("EXCEPTION_NOT_FOUND", "")
    assert refusal(desk, ask(exception_id="oversold-0", note="é" * 251)) == ("INVALID_REQUEST", "note")
    assert refusal(desk, ask(exception_id="oversold-0", note="a\nb")) == ("INVALID_REQUEST", "note")
    assert refusal(desk, ask()) == ("INVALID_REQUEST", "exception_id")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (exc.ListExceptionsRequest(page_token="nonsense"), "page_token"),
        (exc.ListExceptionsRequest(page_token="ä"), "page_token"),
        (exc.ListExceptionsRequest(page_token="My54LnkuMQ=="), "page_token"),
        (exc.ListExceptionsRequest(page_size=1_001), "page_size"),
        (exc.ListExceptionsRequest(page_size=-1), "page_size"),
        (exc.ListExceptionsRequest(categories=[exc.EXCEPTION_CATEGORY_UNSPECIFIED]), "categories"),
        (exc.ListExceptionsRequest(categories=[99]), "categories"),  # type: ignore[list-item]  # wrong on purpose
        (exc.ListExceptionsRequest(state=99), "state"),  # type: ignore[arg-type]  # wrong on purpose
    ],
)
def test_a_list_that_cannot_be_is_refused(
    desk: Client, request_: exc.ListExceptionsRequest, field: str
) -> None:
    """Each with the field that is wrong."""
    with pytest.raises(ClientError) as caught:
        desk.call(desk.exceptions.ListExceptions, request_)
    assert (caught.value.reason, caught.value.metadata["field"]) == ("INVALID_REQUEST", field)


@pytest.mark.parametrize(
    ("version", "reason"), [("x", "INVALID_REQUEST"), ("1:1-1", "INVALID_REQUEST"), ("1-999999999", "STALE")]
)
def test_a_stream_from_nowhere_is_refused(server: Server, version: str, reason: str) -> None:
    """A resume version that is none, or that this ledger has not reached."""
    with Service(server.grpc).channel as channel:
        request = exc.WatchExceptionsRequest(resume_version=version)
        with pytest.raises(grpc.RpcError) as caught:
            next(ExceptionServiceStub(channel).WatchExceptions(request, timeout=WAIT_S))

    assert refusal_of(caught.value).reason == reason


def test_what_is_over_cannot_be_taken_in_hand(desk: Client, client: Service, names: Names) -> None:
    """An exception whose cause stayed away for 10 s is over."""
    lose(client, names, "a")
    (one,) = wait_for(desk, names, 1)
    delta = Delta(
        type="RECEIPT",
        sku=names.sku("a"),
        node=names.node(),
        quantity=1,
        source="erp",
        event_id=names.id("back"),
    )
    assert client.apply_delta(delta)[0] == "APPLIED"
    until = time.monotonic() + 2 * WAIT_S
    while one.exception_id in [open_.exception_id for open_ in desk.list_exceptions()]:
        assert time.monotonic() < until
        time.sleep(0.2)
    ask = exc.AcknowledgeExceptionRequest(exception_id=one.exception_id)
    assert refusal(desk, ask) == ("EXCEPTION_RESOLVED", "")
    over = desk.list_exceptions(state=exc.EXCEPTION_STATE_RESOLVED)
    assert one.exception_id in [told.exception_id for told in over]


# --- What programs report -----------------------------------------------------------------------------------


def reported(names: Names, subject: str, **fields: object) -> exc.ReportedException:
    told = {"category": exc.EXCEPTION_CATEGORY_DEAD_LETTER, "message": "12 letters wait", **fields}
    return exc.ReportedException(subject=[names.id(subject)], **told)  # type: ignore[arg-type]  # as a test says them


def test_what_a_program_reports_is_in_the_list_until_it_is_over(desk: Client, names: Names) -> None:
    """Reported twice it is one; over, it is resolved; another source's of the same name is another one."""
    one = reported(names, "a", quantity=12, stream="s")
    first = desk.report_exceptions("erp", [one])
    again = desk.report_exceptions("erp", [one])
    other = desk.report_exceptions("wms", [one])
    assert (first.opened_count, again.opened_count, other.opened_count) == (1, 0, 1)
    assert first.exception_ids == again.exception_ids != other.exception_ids
    listed = {found.exception_id: found for found in desk.list_exceptions(categories=[one.category])}
    found = listed[first.exception_ids[0]]
    assert (found.message, found.source, found.stream, found.quantity) == ("12 letters wait", "erp", "s", 12)
    assert (found.severity, found.owner) == (exc.EXCEPTION_SEVERITY_WARNING, "feeds")
    over = exc.ReportedException(category=one.category, subject=one.subject)
    assert desk.report_exceptions("erp", over=[over]).resolved_count == 1
    assert desk.report_exceptions("erp", over=[over]).resolved_count == 0
    left = [found.exception_id for found in desk.list_exceptions(categories=[one.category])]
    assert first.exception_ids[0] not in left
    assert other.exception_ids[0] in left
    assert desk.report_exceptions("erp", [one]).opened_count == 1


def test_a_report_may_say_how_severe_it_is(desk: Client, names: Names) -> None:
    """Severity where it is set, the category's where not."""
    critical = reported(names, "a", severity=exc.EXCEPTION_SEVERITY_CRITICAL)
    (id_,) = desk.report_exceptions("erp", [critical]).exception_ids
    (found,) = [one for one in desk.list_exceptions() if one.exception_id == id_]
    assert found.severity == exc.EXCEPTION_SEVERITY_CRITICAL


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"category": exc.EXCEPTION_CATEGORY_OVERSOLD}, "category"),
        ({"category": exc.EXCEPTION_CATEGORY_UNSPECIFIED}, "category"),
        ({"category": 99}, "category"),
        ({"message": ""}, "message"),
        ({"message": "a\nb"}, "message"),
        ({"message": "x" * 2_001}, "message"),
        ({"sku": "x" * 65}, "sku"),
        ({"severity": 7}, "severity"),
        ({"quantity": 2**60}, "quantity"),
    ],
)
def test_a_report_that_cannot_be_is_refused(
    desk: Client, names: Names, fields: dict[str, object], field: str
) -> None:
    """What servers see themselves, no sentence, text that is none: the field that is wrong is named."""
    with pytest.raises(ClientError) as caught:
        desk.report_exceptions("erp", [reported(names, "a", **fields)])
    assert (caught.value.reason, caught.value.metadata["field"]) == ("INVALID_REQUEST", field)


def test_a_report_has_a_subject_and_a_size(desk: Client, names: Names) -> None:
    """No subject, nine names, an empty name, 101 at once."""
    for subject in ([], ["a"] * 9, [""], ["x" * 129]):
        one = exc.ReportedException(category=exc.EXCEPTION_CATEGORY_VARIANCE, subject=subject, message="m")
        with pytest.raises(ClientError) as caught:
            desk.report_exceptions("erp", [one])
        assert caught.value.metadata["field"] == "subject"
    with pytest.raises(ClientError) as caught:
        desk.report_exceptions("erp", [reported(names, str(n)) for n in range(101)])
    assert caught.value.reason == "BATCH_TOO_LARGE"


def test_short_picks_and_damages_reach_the_list(desk: Client, client: Service, names: Names) -> None:
    """Ten units of a position in quarantine as short_pick or damage are an exception; nine are none."""
    for sku, units, reason in (("a", 10, "short_pick"), ("b", 9, "short_pick"), ("c", 12, "damage")):
        for kind, quantity, why in (("RECEIPT", 20, ""), ("QUARANTINE", units, reason)):
            delta = Delta(
                type=kind,
                sku=names.sku(sku),
                node=names.node(),
                quantity=quantity,
                source="wms",
                event_id=names.id(f"{kind}-{sku}"),
                reason=why,
            )
            assert client.apply_delta(delta)[0] == "APPLIED"
    wanted = [exc.EXCEPTION_CATEGORY_SHORT_PICK, exc.EXCEPTION_CATEGORY_DAMAGE]
    until = time.monotonic() + WAIT_S
    while True:
        found = [one for one in desk.list_exceptions(categories=wanted) if one.node == names.node()]
        if len(found) >= 2:
            break
        assert time.monotonic() < until
        time.sleep(0.1)
    assert {(one.category, one.sku, one.quantity) for one in found} == {
        (wanted[0], names.sku("a"), 10),
        (wanted[1], names.sku("c"), 12),
    }
