"""A door for events over HTTP: a drop folder that others write into by POST.

An event is answered 202 only when it is on the disk: events that arrive together share one write and one fsync. Files
are closed every moment and then carried like any other, so an outage of the ledger only lets them wait; when they fill
their allowance, the answer is 503 with Retry-After. What a killed process left half written is cut at its last whole
event: nobody was told that the rest had arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from availability.telemetry import Trace
from ingest.settings import Webhook
from ingest.sources.feed import waiting_bytes

_LOG = structlog.get_logger(__name__)

OPEN_SUFFIX = ".tmp"
RETRY_AFTER_S = 5
SIGNATURE_HEADER = "x-signature-sha256"
USED_CHECK_S = 1.0


class SpoolFull(Exception):
    """As many events wait as may."""


class Spool:
    """Events of one source on their way into files. Belongs to one event loop."""

    def __init__(self, folder: Path, settings: Webhook, *, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._settings = settings
        self._now = now
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()
        self._file: int | None = None
        self._path = folder
        self._unnamed: list[Path] = []
        self._opened_at = 0.0
        self._count = 0
        self._used = 0
        self._used_at = -USED_CHECK_S
        self._stopping = False
        folder.mkdir(parents=True, exist_ok=True)
        for left in sorted(folder.glob(f"*{OPEN_SUFFIX}")):
            recover(left)

    async def put(self, events: bytes) -> None:
        """Return when the events (whole lines) are on the disk. Raises SpoolFull, OSError."""
        if self._over(len(events)):
            raise SpoolFull
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((events, durable))
        self._arrived.set()
        await durable

    def stop(self) -> None:
        """Let ``run`` write what waits, and end."""
        self._stopping = True
        self._arrived.set()

    async def run(self) -> None:
        """Write what waits, together; close files when their time is up."""
        try:
            while not self._stopping or self._waiting:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), self._settings.rotate_ms / 1000)
                self._arrived.clear()
                group, self._waiting = self._waiting, []
                if group:
                    try:
                        await asyncio.to_thread(self._write, b"".join(events for events, _ in group))
                    except OSError as error:
                        _LOG.error("events cannot be kept", error=str(error))
                        for _, durable in group:
                            if not durable.done():
                                durable.set_exception(SpoolFull())
                        self._close()
                        continue
                    for _, durable in group:
                        if not durable.done():
                            durable.set_result(None)
                if self._unnamed or (
                    self._file is not None
                    and self._now() - self._opened_at >= self._settings.rotate_ms / 1000
                ):
                    self._close()
        finally:
            self._close()

    def _write(self, events: bytes) -> None:
        if self._file is None:
            self._count += 1
            name = f"{int(self._now() * 1000):013d}-{os.getpid()}-{self._count:06d}.jsonl"
            self._path = self._folder / (name + OPEN_SUFFIX)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self._opened_at = self._now()
            _sync_folder(self._folder)
        kept = os.fstat(self._file).st_size
        try:
            view = memoryview(events)
            while view:
                view = view[os.write(self._file, view) :]
            os.fdatasync(self._file)
        except OSError:  # whoever sent them is told so: nothing of them may stay
            os.ftruncate(self._file, kept)
            raise
        self._used += len(events)

    def _close(self) -> None:
        """Give files that are complete their names; what cannot be named now is named later, or by the next start."""
        if self._file is not None:
            handle, self._file = self._file, None
            self._unnamed.append(self._path)
            os.close(handle)
        while self._unnamed:
            path = self._unnamed[0]
            try:
                path.replace(path.with_name(path.name.removesuffix(OPEN_SUFFIX)))
            except OSError as error:
                _LOG.error("a file of events waits for its name", name=path.name, error=str(error))
                return
            del self._unnamed[0]

    def _over(self, more: int) -> bool:
        now = time.monotonic()
        if now - self._used_at >= USED_CHECK_S:
            self._used_at = now
            self._used = waiting_bytes(self._folder)
        return self._used + more > self._settings.spool_bytes_max


def recover(path: Path) -> None:
    """Close a file that a killed process left: cut it at its last whole event."""
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
    if path.stat().st_size:
        path.replace(path.with_name(path.name.removesuffix(OPEN_SUFFIX)))
    else:
        path.unlink()


def webhook_app(
    doors: Mapping[str, tuple[Webhook, Path]],
    read_secret: Callable[[Path], bytes],
    *,
    shut: Callable[[str, bool], None] = lambda *_: None,
) -> Starlette:
    """Return the ASGI application: POST /events/SOURCE, for each source its settings and folder.

    ``shut`` is told, in a thread, when a source's door is shut because too much waits (True), and open again (False).

    Raises OSError where a secret cannot be read: a door without a lock does not open.
    """
    secrets = {name: read_secret(settings.secret_file) for name, (settings, _) in doors.items()}
    for name, secret in secrets.items():
        if len(secret) < 16:
            raise ValueError(f"the secret of {name!r} is shorter than 16 bytes")
    spools: dict[str, Spool] = {}
    shut_doors: set[str] = set()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        spools.update({name: Spool(folder, settings) for name, (settings, folder) in doors.items()})
        tasks = [asyncio.create_task(spool.run()) for spool in spools.values()]
        try:
            yield
        finally:
            for spool in spools.values():
                spool.stop()
            await asyncio.gather(*tasks)

    async def take(request: Request) -> Response:
        name = request.path_params["source"]
        door = doors.get(name)
        if door is None:
            return _told(
                401, "UNAUTHENTICATED", "who are you?"
            )  # as a wrong secret is told: sources stay unknown
        settings = door[0]
        length = request.headers.get("content-length", "")
        if (
            length.isascii()
            and length.isdigit()
            and (len(length) > 18 or int(length) > settings.body_bytes_max)
        ):
            return _too_large(settings)
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                if len(body) > settings.body_bytes_max:
                    return _too_large(settings)
        except ClientDisconnect:
            return Response(status_code=400)
        if not _allowed(request, settings, secrets[name], bytes(body)):
            return _told(401, "UNAUTHENTICATED", "who are you?")
        try:
            lines, count = _lines(bytes(body), settings.events_max, request.headers.get("traceparent", ""))
        except ValueError as error:
            return _told(400, "INVALID_REQUEST", str(error))
        try:
            await spools[name].put(lines)
        except (
            asyncio.CancelledError
        ):  # the server leaves; whether it is kept is not known, and once is enough
            headers = {"retry-after": str(RETRY_AFTER_S)}
            return _told(503, "OVERLOADED", "the server leaves; send it again", headers)
        except SpoolFull:
            if name not in shut_doors:
                shut_doors.add(name)
                await asyncio.to_thread(shut, name, True)
            headers = {"retry-after": str(RETRY_AFTER_S)}
            return _told(503, "OVERLOADED", "as many events wait as may; come again", headers)
        if name in shut_doors:
            shut_doors.discard(name)
            await asyncio.to_thread(shut, name, False)
        return JSONResponse({"accepted": count}, status_code=202)

    return Starlette(routes=[Route("/events/{source}", take, methods=["POST"])], lifespan=lifespan)


def _allowed(request: Request, settings: Webhook, secret: bytes, body: bytes) -> bool:
    if settings.lock == "bearer":
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        told = token.strip().encode("utf-8", "replace") if scheme.lower() == "bearer" else b""
        return hmac.compare_digest(hashlib.sha256(told).digest(), hashlib.sha256(secret).digest())
    expected = hmac.new(secret, body, hashlib.sha256).hexdigest()
    told_signature = request.headers.get(settings.signature_header or SIGNATURE_HEADER, "")
    return hmac.compare_digest(
        told_signature.removeprefix("sha256=").encode("utf-8", "replace"), expected.encode()
    )


def _lines(body: bytes, events_max: int, traceparent: str = "") -> tuple[bytes, int]:
    """One JSON object, a list of them, or JSON lines: as lines. Raises ValueError for what is none of these.

    A call's valid ``traceparent`` becomes a member of each event; where an event has one itself, its own stands later
    and wins.
    """
    text = body.strip()
    if not text:
        raise ValueError("the body is empty")
    try:
        if text.startswith(b"["):
            events = [bytes(event) for event in msgspec.json.decode(text, type=list[msgspec.Raw])]
        else:
            events = [bytes(event) for event in msgspec.json.Decoder(msgspec.Raw).decode_lines(text)]
    except msgspec.DecodeError as error:
        raise ValueError(f"the body is no JSON: {error}") from error
    if len(events) > events_max:
        raise ValueError(f"{len(events)} events, at most {events_max}")
    if not all(event.lstrip().startswith(b"{") for event in events):
        raise ValueError("an event is a JSON object")
    if Trace.parse(traceparent) is not None:
        events = [_traced(event.lstrip(), traceparent.encode()) for event in events]
    # An event may span lines as it came; in the file it is one.
    return b"".join(event.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n" for event in events), len(events)


def _traced(event: bytes, traceparent: bytes) -> bytes:
    rest = event[1:].lstrip()
    comma = b"" if rest.startswith(b"}") else b","
    return b'{"traceparent":"' + traceparent + b'"' + comma + rest


def _too_large(settings: Webhook) -> Response:
    return _told(413, "BATCH_TOO_LARGE", f"at most {settings.body_bytes_max} bytes")


def _told(status: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"reason": reason, "message": message}, status_code=status, headers=headers)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
