"""Child processes that do the same work: started, started again when they end, and told to leave together.

It knows nothing of what they do. A child gets its task and stays tied to its parent by one pipe, its standard
input: the end of that pipe is the end of the parent, however it came (`parent_gone`). It says that it serves by one
line on its standard output. Children are spawned, not forked: grpc does not survive a fork.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import structlog

_LOG = structlog.get_logger(__name__)

BACKOFF_S = 0.1
BACKOFF_MAX_S = 10.0
HEALTHY_S = 60.0
"""A child that served so long is started again at once; one that ended sooner waits, twice as long each time."""
NOBODY_SERVES_MAX_S = 120.0
"""When no child has served for so long, the group gives up: who runs it must see that."""
KILL_WAIT_S = 5.0
READY = b"serving\n"
_LENGTH = struct.Struct("<q")


class GroupFailed(Exception):
    """The group cannot go on; the message is for the operator."""


class _Worker:
    """One place of the group, and the process that fills it now."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.starts = 0
        self.started_at = 0.0
        self.start_at = 0.0
        self.early_ends = 0

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0


class WorkerGroup:
    """``count`` children of one command. One thread calls its methods; none of them waits but ``stop``.

    ``task`` makes what a child is to do from (its index, how many-th start it is).
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        task: Callable[[int, int], bytes],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = list(command)
        self._task = task
        self._monotonic = monotonic
        self._workers = [_Worker(index) for index in range(count)]
        self._served_at = monotonic()
        self._whole = False  # whether all have served at once since the start

    @property
    def pids(self) -> list[int]:
        """Process ids of the children, in their order; 0 for one that waits to be started again."""
        return [worker.pid for worker in self._workers]

    @property
    def all_serve(self) -> bool:
        """Whether every child has said that it serves."""
        return all(worker.ready for worker in self._workers)

    def look(self) -> None:
        """Start what is due, notice who serves and who ended.

        Raises GroupFailed where one ends before all served for the first time (it has told why on stderr), and where
        none has served for NOBODY_SERVES_MAX_S.
        """
        now = self._monotonic()
        for worker in self._workers:
            if worker.process is None and now >= worker.start_at:
                self._start(worker, now)
            elif worker.process is not None:
                self._look_at(worker, worker.process, now)
        self._whole = self._whole or self.all_serve
        if any(worker.ready for worker in self._workers):
            self._served_at = now
        elif now - self._served_at > NOBODY_SERVES_MAX_S:
            raise GroupFailed(f"no worker has served for {NOBODY_SERVES_MAX_S:.0f} s")

    def stop(self, timeout_s: float) -> None:
        """Tell all to leave, wait so long, kill who is still there."""
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is None:
                worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        for worker in self._workers:
            if worker.process is None:
                continue
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _LOG.error("worker_killed", worker=worker.index, pid=worker.pid, waited_s=timeout_s)
                worker.process.kill()
                worker.process.wait(KILL_WAIT_S)
            _close(worker.process)
            worker.process, worker.ready = None, False

    def _start(self, worker: _Worker, now: float) -> None:
        worker.starts += 1
        worker.started_at = now
        worker.ready = False
        task = self._task(worker.index, worker.starts)
        worker.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the parent's, which passes it on
        )
        assert worker.process.stdin is not None
        assert worker.process.stdout is not None
        os.set_blocking(worker.process.stdout.fileno(), False)
        with contextlib.suppress(BrokenPipeError):  # ended already: the next look sees it
            worker.process.stdin.write(_LENGTH.pack(len(task)) + task)
            worker.process.stdin.flush()

    def _look_at(self, worker: _Worker, process: subprocess.Popen[bytes], now: float) -> None:
        assert process.stdout is not None
        code = process.poll()
        if code is None:
            if not worker.ready and (process.stdout.read() or b"").startswith(READY):
                worker.ready = True
                if self._whole:
                    _LOG.info("worker_serves", worker=worker.index, pid=process.pid, starts=worker.starts)
            return
        _close(process)
        worker.process, worker.ready = None, False
        if not self._whole:
            raise GroupFailed(f"worker {worker.index} ended with code {code} before it served")
        lived_s = now - worker.started_at
        worker.early_ends = 0 if lived_s >= HEALTHY_S else worker.early_ends + 1
        wait_s = (
            min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(worker.early_ends - 1, 16))
            if worker.early_ends
            else 0.0
        )
        worker.start_at = now + wait_s
        _LOG.error(
            "worker_ended",
            worker=worker.index,
            pid=process.pid,
            code=code,
            lived_s=round(lived_s, 1),
            again_in_s=round(wait_s, 1),
        )


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


# --- In the child -----------------------------------------------------------------------------------------


def receive_task(pipe: int) -> bytes:
    """Read from a file descriptor what the parent wants done. Raises EOFError where there is no parent any more."""
    (length,) = _LENGTH.unpack(_read(pipe, _LENGTH.size))
    return _read(pipe, length)


def _read(pipe: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = os.read(pipe, count)
        if not part:
            raise EOFError("the parent ended")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def parent_gone(pipe: int, then: Callable[[], None], *, within_s: int) -> None:
    """Call ``then`` when the parent ends, and end this process so many seconds later whatever it does."""

    def watch() -> None:
        while os.read(pipe, 1):  # by number: a file object would be locked when the interpreter ends
            pass
        signal.alarm(within_s)  # nobody handles it: the kernel ends a process that hangs
        then()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def tell_serving() -> None:
    """Say to the parent that this child serves; nothing may be written to standard output before it."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # from now on nobody reads the pipe
