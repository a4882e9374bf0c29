"""Files at an SFTP server as a feed: picked up complete, once, into the drop folder.

A server whose host key is not in ``known_hosts`` is not spoken to. A file is downloaded under a hidden name, synced,
remembered by name, size and time, and only then gets its name; what is done with it over there comes last. Killed
anywhere, the next look finishes that. What should still come twice has the checksum of a file that was carried.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Engine

from ingest.database import fetched
from ingest.settings import DropFolder, Sftp
from ingest.sources.feed import FeedFailed, sync_folder, waiting_bytes

if TYPE_CHECKING:
    import asyncssh

_LOG = structlog.get_logger(__name__)

KIND = "sftp"
DAY_S = 86_400
KEEPALIVE_S = 15
NAME_BYTES_MAX = 200


@dataclass(frozen=True, slots=True, order=True)
class RemoteFile:
    """A file as the server lists it; ``changed_at`` in whole seconds of the server's clock."""

    changed_at: int
    name: str
    size: int


class SftpFeed:
    """Complete files of one remote folder into one drop folder. One connection a look."""

    kind = KIND
    eager = False

    def __init__(
        self,
        source: str,
        settings: Sftp,
        drop: DropFolder,
        engine: Engine,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        if not settings.known_hosts.is_file():
            raise ValueError(f"{settings.known_hosts}: the known_hosts of {source!r} is not there")
        self.source = source
        self.interval_s = settings.interval_ms / 1000
        self._settings = settings
        self._drop = drop
        self._engine = engine
        self._now = now
        self._monotonic = monotonic
        self._pause = pause
        self._seen: dict[RemoteFile, float] = {}  # since when it looks like this
        drop.folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, *, once: bool) -> int:
        """Pick up what is complete. Raises FeedFailed."""
        self._recover()
        if waiting_bytes(self._drop.folder) > self._settings.waiting_bytes_max:
            return 0
        count = self._look()
        if once and self._seen:
            self._pause(self._settings.settle_ms / 1000)
            count += self._look()
        return count

    def _look(self) -> int:
        with _told_as_failure(self._settings):
            return asyncio.run(self._visit())

    async def _visit(self) -> int:
        import asyncssh

        settings = self._settings
        timeout_s = settings.timeout_ms / 1000
        secrets = self._secrets()
        async with (
            asyncssh.connect(
                settings.host,
                settings.port,
                config=None,  # only what the source's file says
                known_hosts=str(settings.known_hosts),
                username=settings.username,
                agent_path=None,
                connect_timeout=timeout_s,
                login_timeout=timeout_s,
                keepalive_interval=min(KEEPALIVE_S, timeout_s),
                **secrets,
            ) as connection,
            connection.start_sftp_client() as sftp,
        ):
            return await self._pick_up(sftp)

    def _secrets(self) -> dict[str, object]:
        settings = self._settings
        if settings.password_file is not None:
            return {
                "password": _secret(settings.password_file),
                "client_keys": None,
                "preferred_auth": "password",
            }
        phrase = _secret(settings.passphrase_file) if settings.passphrase_file is not None else None
        return {
            "client_keys": [str(settings.key_file)],
            "passphrase": phrase,
            "preferred_auth": "publickey",
        }

    async def _pick_up(self, sftp: asyncssh.SFTPClient) -> int:
        settings, count = self._settings, 0
        files, companions = await self._listed(sftp)
        known = self._fetched()
        for file in files:
            if file in known:
                await self._put_away(sftp, file)
                continue
            if not self._is_complete(file, companions):
                continue
            if (self._drop.folder / file.name).exists():
                continue  # an older one of this name has not been carried yet
            if file.size > settings.file_bytes_max:
                _LOG.error("a file is too large", source=self.source, name=file.name, bytes=file.size)
                continue
            if waiting_bytes(self._drop.folder) > settings.waiting_bytes_max:
                break
            if await self._download(sftp, file):
                count += 1
                await self._put_away(sftp, file)
        self._forget(files)
        return count

    async def _listed(self, sftp: asyncssh.SFTPClient) -> tuple[list[RemoteFile], set[str]]:
        """Return the files that may count, the oldest first, and the names of all."""
        settings, drop = self._settings, self._drop
        names: set[str] = set()
        found: list[RemoteFile] = []
        async for entry in sftp.scandir(settings.folder):
            name = entry.filename.decode() if isinstance(entry.filename, bytes) else entry.filename
            names.add(name)
            if len(names) > settings.files_max:
                raise FeedFailed("TOO_MANY_FILES", f"more than {settings.files_max} files are there")
            attributes = entry.attrs
            if not stat.S_ISREG(attributes.permissions or 0) or not _is_plain(name):
                continue
            if name.endswith((*drop.unfinished, settings.renamed_suffix)):
                continue
            if settings.done_suffix and name.endswith(settings.done_suffix):
                continue
            if fnmatch(name, drop.pattern):
                found.append(RemoteFile(int(attributes.mtime or 0), name, int(attributes.size or 0)))
        return sorted(found), names

    def _is_complete(self, file: RemoteFile, names: set[str]) -> bool:
        settings = self._settings
        if settings.done_suffix:
            return file.name + settings.done_suffix in names
        since = self._seen.setdefault(file, self._monotonic())
        return self._monotonic() - since >= settings.settle_ms / 1000

    async def _download(self, sftp: asyncssh.SFTPClient, file: RemoteFile) -> bool:
        remote, hidden = self._remote(file.name), self._hidden(file)
        await sftp.get(remote, str(hidden))
        after = await sftp.stat(remote)
        if (int(after.size or 0), int(after.mtime or 0)) != (file.size, file.changed_at) or (
            hidden.stat().st_size != file.size
        ):
            hidden.unlink()
            _LOG.info("a file changes while it is read", source=self.source, name=file.name)
            return False
        # Its own time, so that the oldest is carried first; settled in any case.
        at = min(float(file.changed_at), self._now() - self._drop.settle_ms / 1000)
        os.utime(hidden, (at, at))
        _sync_file(hidden)
        self._remember(file)
        self._publish(hidden, file.name)
        self._seen.pop(file, None)
        _LOG.info("fetched", source=self.source, name=file.name, bytes=file.size)
        return True

    async def _put_away(self, sftp: asyncssh.SFTPClient, file: RemoteFile) -> None:
        """Do with a fetched file what the settings say; its companion first, so that none waits for a file to come."""
        import asyncssh

        settings = self._settings
        if settings.after == "leave":
            return
        names = [file.name + settings.done_suffix, file.name] if settings.done_suffix else [file.name]
        for name in names:
            remote = self._remote(name)
            try:
                if settings.after == "delete":
                    await sftp.remove(remote)
                else:
                    target = remote + settings.renamed_suffix
                    if await sftp.exists(target):
                        target = f"{remote}.{file.changed_at}-{int(self._now())}{settings.renamed_suffix}"
                    await sftp.rename(remote, target)
            except asyncssh.SFTPNoSuchFile:
                continue

    # --- What is remembered -------------------------------------------------------------------------------

    def _fetched(self) -> set[RemoteFile]:
        columns = (fetched.c.changed_at, fetched.c.name, fetched.c.size)
        with self._engine.connect() as connection:
            query = sa.select(*columns).where(fetched.c.source == self.source)
            return {RemoteFile(*row) for row in connection.execute(query)}

    def _remember(self, file: RemoteFile) -> None:
        row = {"name": file.name, "size": file.size, "changed_at": file.changed_at, "fetched_at": self._now()}
        with self._engine.begin() as connection:
            connection.execute(sa.insert(fetched).values(source=self.source, **row))

    def _forget(self, listed: list[RemoteFile]) -> None:
        """Forget what left the server long ago, and what is no longer looked at."""
        still = set(listed)
        self._seen = {file: since for file, since in self._seen.items() if file in still}
        table, before = fetched, self._now() - self._settings.remember_days * DAY_S
        old = sa.and_(table.c.source == self.source, table.c.fetched_at < before)
        with self._engine.begin() as connection:
            columns = (table.c.changed_at, table.c.name, table.c.size)
            gone = {RemoteFile(*row) for row in connection.execute(sa.select(*columns).where(old))} - still
            for file in gone:
                mine = (table.c.changed_at == file.changed_at, table.c.name == file.name)
                connection.execute(sa.delete(table).where(old, *mine, table.c.size == file.size))

    def _recover(self) -> None:
        """Give a remembered download its name; one that was not remembered is fetched anew."""
        known = self._fetched()
        for hidden in self._drop.folder.glob(".*.sftp.tmp"):
            changed_at, _, name = hidden.name[1 : -len(".sftp.tmp")].partition(".")
            file = RemoteFile(int(changed_at), name, hidden.stat().st_size) if changed_at.isdigit() else None
            if file not in known:
                hidden.unlink()
            elif not (self._drop.folder / name).exists():  # else it waits for the other of its name
                self._publish(hidden, name)

    def _publish(self, hidden: Path, name: str) -> None:
        hidden.replace(self._drop.folder / name)
        sync_folder(self._drop.folder)

    def _hidden(self, file: RemoteFile) -> Path:
        return self._drop.folder / f".{file.changed_at}.{file.name}.sftp.tmp"

    def _remote(self, name: str) -> str:
        return f"{self._settings.folder.rstrip('/') or ''}/{name}"


@contextmanager
def _told_as_failure(settings: Sftp) -> Iterator[None]:
    """The library's many errors, each as one sentence without secrets."""
    import asyncssh

    where = f"{settings.host}:{settings.port}"
    try:
        yield
    except asyncssh.HostKeyNotVerifiable as error:
        raise FeedFailed(
            "HOST_KEY", f"the host key of {where} is not in {settings.known_hosts}: {error.reason}"
        ) from error
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise FeedFailed("SECRET", f"{settings.key_file} cannot be read: {error}") from error
    except asyncssh.PermissionDenied as error:
        raise FeedFailed("AUTHENTICATION", f"{where} does not let {settings.username} in") from error
    except asyncssh.SFTPError as error:
        raise FeedFailed("SFTP", f"{where}: {settings.folder}: {error.reason}") from error
    except (asyncssh.Error, OSError, TimeoutError) as error:
        raise FeedFailed("UNREACHABLE", f"{where}: {type(error).__name__}: {error}") from error


def _is_plain(name: str) -> bool:
    """A name that means the same here: no path, nothing hidden, room for a suffix."""
    return (
        not name.startswith(".")
        and "/" not in name
        and "\\" not in name
        and name.isprintable()
        and len(name.encode()) <= NAME_BYTES_MAX
    )


def _secret(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FeedFailed("SECRET", f"{path} cannot be read") from error


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
