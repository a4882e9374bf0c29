"""Several Redis that stand in for each other: replicas with Sentinels, or a Cluster. Real processes, killed at will."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # Any: redis' clients answer unions

import redis
from redis.exceptions import RedisError, ResponseError

from availability.ledger.embedded import find_server
from tests.faults.lab import META, new_folder, poll

PASSWORD = "of the lab: %/@"  # what an address must quote
QUOTED = "of%20the%20lab%3A%20%25%2F%40"
NAME = "ledger"
READY_S = 120.0
"""Longest wait for anything that servers agree on: a failover takes seconds, on a busy machine many."""
SLOTS = 16384


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Node:
    """One process of the server binary, on a port and a folder of its own; ``config`` are lines of its file."""

    def __init__(self, *config: str, mode: Sequence[str] = (), password: str = PASSWORD) -> None:
        self.folder: Path = new_folder()
        self.port = free_port()
        self._mode = mode
        self._file = self.folder / "redis.conf"
        secret = (f'requirepass "{password}"',) if password else ()
        common = (f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}", "save ''", *secret)
        self._file.write_text("\n".join([*common, *config]) + "\n")
        self.client: Any = redis.Redis(
            port=self.port, password=password or None, socket_timeout=10, socket_connect_timeout=10
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start, again after it was killed, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [find_server().path, str(self._file), *self._mode], stdout=log, stderr=subprocess.STDOUT
            )
        poll(self._answers, f"the server at {self.port} answers", within_s=READY_S)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
        try:
            return bool(self.client.ping())
        except (RedisError, OSError):
            return False

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def discard(self) -> None:
        self.kill()
        self.client.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Watched:
    """A primary with two replicas, and three Sentinels that watch it."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.sentinels: list[Node] = []

    def start(self) -> None:
        common = [
            *("appendonly yes", "appendfsync everysec", "min-replicas-to-write 1", "min-replicas-max-lag 10"),
            *("repl-diskless-sync-delay 0", f'masterauth "{PASSWORD}"'),
        ]
        self.nodes.append(Node(*common))
        first = self.nodes[0].port
        for _ in range(2):
            self.nodes.append(Node(*common, f"replicaof 127.0.0.1 {first}"))
        for _ in range(3):
            watch = (
                f"sentinel monitor {NAME} 127.0.0.1 {first} 2",
                f'sentinel auth-pass {NAME} "{PASSWORD}"',
                f"sentinel down-after-milliseconds {NAME} 1500",
                f"sentinel failover-timeout {NAME} 5000",
            )
            self.sentinels.append(Node(*watch, mode=["--sentinel"]))
        self.settle()

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.sentinels)
        return f"redis+sentinel://:{QUOTED}@{hosts}/{NAME}?sentinel_password={QUOTED}"

    def settle(self) -> None:
        """Wait until all know each other and both replicas follow."""
        poll(self._settled, "the Sentinels see all, and the replicas follow", within_s=READY_S)

    def _settled(self) -> bool:
        time.sleep(0.05)
        try:
            seen = [node.client.sentinel_master(NAME) for node in self.sentinels if node.runs]
            primary = self.primary()
            return (
                primary is not None
                and primary.client.info("replication").get("min_slaves_good_slaves") == 2
                and all(one["port"] == primary.port and one["num-slaves"] >= 2 for one in seen)
                and all(one["num-other-sentinels"] == 2 for one in seen)
            )
        except (RedisError, OSError):
            return False

    def primary(self) -> Node | None:
        """Give the server that is primary."""
        for node in self.nodes:
            if node.runs and node.client.role()[0] in (b"master", "master"):
                return node
        return None

    def discard(self) -> None:
        for node in (*self.sentinels, *self.nodes):
            node.discard()


class Cluster:
    """Servers of one Cluster; the slots are dealt to the first of them."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.slot = 0

    def start(self, primaries: int) -> None:
        """Start so many primaries that share the slots."""
        self.add(primaries)
        share = SLOTS // primaries + 1
        for index, node in enumerate(self.nodes):
            last = min(SLOTS, (index + 1) * share) - 1
            node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", index * share, last)
        self.slot = int(self.nodes[0].client.execute_command("CLUSTER", "KEYSLOT", META))
        self.settle()

    def add(self, count: int) -> list[Node]:
        """Let more servers join, as primaries without slots."""
        for _ in range(count):
            node = Node(
                *(
                    "appendonly yes",
                    "appendfsync everysec",
                    "cluster-enabled yes",
                    f"cluster-port {free_port()}",
                ),
                *(
                    "cluster-node-timeout 5000",
                    "cluster-require-full-coverage no",
                    "repl-diskless-sync-delay 0",
                ),
                *(f'masterauth "{PASSWORD}"', "cluster-allow-replica-migration no"),  # as deploy/redis has it
            )
            self.nodes.append(node)
            first = self.nodes[0]
            if node is not first:
                bus = int(first.client.config_get("cluster-port")["cluster-port"])
                node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port, bus)
        self.settle()
        return self.nodes[-count:]

    def replicate(self, replica: Node, primary: Node) -> None:
        """Make a server the replica of another, and wait until it follows."""
        replica.client.execute_command("CLUSTER", "REPLICATE", self.id_of(primary))
        poll(
            lambda: replica.client.info("replication").get("master_link_status") == "up",
            "the replica follows",
            within_s=READY_S,
        )

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://:{QUOTED}@{hosts}"

    def id_of(self, node: Node) -> str:
        return str(node.client.execute_command("CLUSTER", "MYID").decode())

    def settle(self) -> None:
        """Wait until all running servers know each other and serve."""
        poll(self._settled, "the servers of the Cluster agree", within_s=READY_S)

    def _settled(self) -> bool:
        time.sleep(0.05)
        running = [node for node in self.nodes if node.runs]
        texts = [node.client.execute_command("CLUSTER", "INFO") for node in running]
        known = f"cluster_known_nodes:{len(self.nodes)}\r".encode()
        dealt = not self.slot or all(b"cluster_state:ok" in text for text in texts)
        return dealt and all(known in text for text in texts)

    def owner(self) -> Node | None:
        """Give the server that serves the ledger's slot."""
        for node in self.nodes:
            try:
                node.client.execute_command("EXISTS", META)
                return node
            except (RedisError, OSError):
                continue
        return None

    def move_slot(self, to: Node) -> None:
        """Move the ledger's slot as one where the server can (Valkey 9), and wait until it has moved."""
        source = poll(self.owner, "somebody serves the slot", within_s=READY_S)
        arguments = ("MIGRATESLOTS", "SLOTSRANGE", self.slot, self.slot, "NODE", self.id_of(to))
        try:
            source.client.execute_command("CLUSTER", *arguments)
        except ResponseError as error:
            if "unknown subcommand" not in str(error).lower():
                raise
            self.open_slot(source, to)
            while found := self.keys_at(source):
                self.move_key(source, to, *found)
            self.close_slot(source, to)
        poll(lambda: self.owner() is to, "the slot has moved", within_s=READY_S)

    def open_slot(self, source: Node, to: Node) -> None:
        """Begin a move key by key."""
        to.client.execute_command("CLUSTER", "SETSLOT", self.slot, "IMPORTING", self.id_of(source))
        source.client.execute_command("CLUSTER", "SETSLOT", self.slot, "MIGRATING", self.id_of(to))

    def keys_at(self, source: Node) -> list[bytes]:
        """Name keys that have not moved yet."""
        return list(source.client.execute_command("CLUSTER", "GETKEYSINSLOT", self.slot, 100_000))

    def move_key(self, source: Node, to: Node, *names: bytes) -> None:
        where = ("127.0.0.1", to.port, "", 0, 10_000, "AUTH", PASSWORD)
        source.client.execute_command("MIGRATE", *where, "KEYS", *names)

    def close_slot(self, source: Node, to: Node) -> None:
        """End a move key by key: the slot is the target's."""
        for node in (to, source):
            node.client.execute_command("CLUSTER", "SETSLOT", self.slot, "NODE", self.id_of(to))

    def discard(self) -> None:
        for node in self.nodes:
            node.discard()
