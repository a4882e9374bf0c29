"""A proxy before Redis that loses replies: requests arrive, what comes back may not.

A lost reply is cut off (the connection ends, with nothing or half of it delivered) or swallowed (the client waits
until its timeout). The greeting of a connection is not lost: no effect hangs on it. Uses threads: one per direction of
a connection.
"""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress
from pathlib import Path

CHUNK = 65_536


class Proxy:
    """Listens on a unix socket of its own; ``loss`` is the share of replies that are lost."""

    def __init__(self, upstream: str, folder: Path, seed: int, *, loss: float) -> None:
        self._upstream = upstream
        self._random = random.Random(seed)
        self.loss = loss
        self.lost = 0
        self.path = str(folder / "proxy.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._upstream)
            called = threading.Event()
            threading.Thread(target=self._requests, args=(client, server, called), daemon=True).start()
            threading.Thread(target=self._replies, args=(server, client, called), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, called: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(CHUNK):
                if b"FCALL" in data:
                    called.set()
                server.sendall(data)
        _end(server)

    def _replies(self, server: socket.socket, client: socket.socket, called: threading.Event) -> None:
        swallowing = False
        with suppress(OSError):
            while data := server.recv(CHUNK):
                if swallowing:
                    continue
                if not called.is_set() or self._random.random() >= self.loss:
                    client.sendall(data)
                    continue
                self.lost += 1
                how = self._random.randrange(8)
                if how == 0:
                    swallowing = True
                    continue
                if how <= 2:
                    client.sendall(data[: self._random.randrange(len(data))])
                break
        _end(client)
        _end(server)


def _end(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
