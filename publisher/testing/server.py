"""The double as a server on 127.0.0.1, in a thread of its own.

``serve`` starts it; ``Storefront.call`` answers without a socket, for tests that move the clock. The work of a call
goes on when its caller has hung up, as it does in PHP behind a proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from publisher.testing.clock import MovableClock
from publisher.testing.faults import Faults
from publisher.testing.latency import Latency, Machine
from publisher.testing.routes import respond
from publisher.testing.shop import Shop
from publisher.testing.webhooks import Delivery, Losses, Sender, deliver_all, send_pings
from publisher.testing.wire import Answer, Call, Work

START_S = 10.0
STOP_S = 5.0
DELIVERY_TIMEOUT_S = 10.0
"""A real shop waits 60 s for a webhook's answer; a test has no use for that."""


def post(url: str, headers: dict[str, str], body: bytes) -> int:
    """Send a webhook over HTTP and return the status, 0 where there was no answer. Redirects are not followed."""
    try:
        return httpx2.post(url, headers=headers, content=body, timeout=DELIVERY_TIMEOUT_S).status_code
    except httpx2.HTTPError:
        return 0


@dataclass(slots=True, kw_only=True)
class Storefront:
    """A running double. ``url`` is its address, ``shop`` its state (hold ``shop.lock`` to change it)."""

    shop: Shop
    url: str = "http://127.0.0.1"
    tls: bool = True
    machine: Machine = field(default_factory=lambda: Machine(Latency(factor=0)))
    send: Sender = post

    @property
    def faults(self) -> Faults:
        """Return the failures that can be armed."""
        return self.shop.faults

    def call(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        tls: bool | None = None,
    ) -> Answer:
        """Answer a call at once, without a socket; a clock that can be moved moves by the work's time."""
        lowered = {name.lower(): value for name, value in (headers or {}).items()}
        secure = self.tls if tls is None else tls
        work = respond(self.shop, Call(method=method, url=url, headers=lowered, body=body, tls=secure))
        with self.shop.lock:
            try:
                while True:
                    step = next(work)
                    if isinstance(self.shop.clock, MovableClock):
                        self.shop.clock.advance(self.machine.latency.seconds(step))
            except StopIteration as end:
                answer: Answer = end.value
        send_pings(self.shop, self.send)
        return answer

    def deliver_webhooks(self, losses: Losses | None = None) -> list[Delivery]:
        """Send what waits in the queue now, as the shop's cron does about once a minute."""
        return deliver_all(self.shop, self.send, losses)

    async def respond(self, call: Call) -> Answer:
        """Answer a call and let its real time pass."""
        work = respond(self.shop, call)
        debt_s = 0.0
        self.machine.enter()
        try:
            while True:
                with self.shop.lock:
                    step = next(work)
                if step.work is Work.WAIT:
                    self.machine.leave()
                try:
                    debt_s = await self.machine.spend(step, debt_s)
                finally:
                    if step.work is Work.WAIT:
                        self.machine.enter()
        except StopIteration as end:
            answer: Answer = end.value
        finally:
            self.machine.leave()
        if self.shop.pings:
            await asyncio.to_thread(send_pings, self.shop, self.send)
        return answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI call. Raises ConnectionAbortedError where the answer is cut on demand."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            body = await request.body()
        except ClientDisconnect:
            return
        url = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = {name.lower(): value for name, value in request.headers.items()}
        call = Call(method=request.method, url=url, headers=headers, body=body, tls=self.tls)
        answer = await asyncio.shield(asyncio.ensure_future(self.respond(call)))
        if answer.cut:
            await _send_half(answer, send)
            raise ConnectionAbortedError("the answer is cut on demand")
        await Response(answer.body, answer.status, answer.headers)(scope, receive, send)


async def _send_half(answer: Answer, send: Send) -> None:
    """Promise the whole answer and send half of it."""
    lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
    lines.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": lines})
    await send(
        {"type": "http.response.body", "body": answer.body[: len(answer.body) // 2], "more_body": True}
    )


@contextmanager
def serve(
    shop: Shop, *, latency: Latency | None = None, tls: bool = True, send: Sender = post
) -> Iterator[Storefront]:
    """Run the double until the block ends. ``tls``: whether it acts as behind a TLS proxy (Basic works) or not (OAuth).

    Raises RuntimeError where the server does not start.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    shop.home_url = url
    machine = Machine(latency if latency is not None else Latency(factor=0))
    storefront = Storefront(shop=shop, url=url, tls=tls, machine=machine, send=send)
    config = uvicorn.Config(
        storefront, log_level="critical", lifespan="off", access_log=False, timeout_keep_alive=30
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, daemon=True, name="storefront-double"
    )
    thread.start()
    try:
        _await_start(server, thread)
        yield storefront
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(STOP_S)
        with contextlib.suppress(OSError):
            listener.close()


def _await_start(server: uvicorn.Server, thread: threading.Thread) -> None:
    """Return when the server listens. Raises RuntimeError."""
    for _ in range(int(START_S * 100)):
        if server.started:
            return
        thread.join(0.01)
        if not thread.is_alive():
            break
    raise RuntimeError("the storefront double did not start")
