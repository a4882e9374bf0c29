"""The commands of the history, against a real server: what README prints, and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from availability.cli.root import run
from tests.conftest import Names, Server
from tests.test_readme import BLOCKS, ROOT
from tests.wire import Service

PYTHON = f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)} -m availability"


def sh(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run commands as README prints them."""
    script = script.replace(".venv/bin/availability", PYTHON)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AVAIL_")}
    return subprocess.run(
        ["sh", "-ec", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture
def ready(server: Server, tmp_path: Path) -> Path:
    """The ready file of a server, where README has it."""
    (tmp_path / "ready.json").write_text(json.dumps({"grpc": server.grpc, "redis": server.redis, "pid": 1}))
    return tmp_path


def test_the_first_history_works_as_printed(ready: Path, server: Server) -> None:
    """README's block word for word, after the first commands of "First use"."""
    block = next(block for block in BLOCKS if "historian run --ready-file" in block)
    lines = [line for line in block.splitlines() if "pip install" not in line]
    adjust = (
        ".venv/bin/availability adjust MUG-BLUE --node berlin --quantity +10 --reason 'opening count' "
        f"--target {server.grpc}"
    )
    done = sh("\n".join([adjust, *lines]), ready)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "= sellable" in done.stdout
    assert re.search(r"berlin +on_hand +\d+ +ADJUSTMENT .*opening count", done.stdout), done.stdout
    assert "on_hand +10" in done.stdout
    assert "nothing was altered" in done.stdout


def test_a_past_moment_is_told_as_json(
    ready: Path, client: Service, names: Names, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A version of before, its terms and who set them, with the names of the API; and the story by pages."""
    sku, node, channel = names.sku(), names.node(), names.channel()

    def said(*arguments: str) -> Any:  # Any: JSON's own types
        assert run([*arguments, "--data-dir", str(ready), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    for quantity, reason in (("+5", "first"), ("+2", "second")):
        place = ("--node", node, "--target", server.grpc)
        assert run(["adjust", sku, "--quantity", quantity, "--reason", reason, *place]) == 0
    capsys.readouterr()
    written = sh(".venv/bin/availability historian run --ready-file ready.json --data-dir . --once", ready)
    assert written.returncode == 0
    assert "alembic" not in written.stdout + written.stderr
    page = said("history", sku, "--node", node, "--size", "1")
    assert [one["on_hand"] for one in page["chapters"]] == [7]
    older = said("history", sku, "--node", node, "--before", page["before"])
    assert [(one["on_hand"], one["origin"]["reason"]) for one in older["chapters"]] == [(5, "first")]
    first = older["chapters"][0]["origin"]["version"]
    then = said("explain", sku, "-c", channel, "--at", first)
    assert (then["terms"]["sellable_quantity"], then["as_of"]["version"]) == (5, first)
    set_by = [(one["figure"], one["reason"]) for one in then["last_set"] if one["node"] == node]
    assert set_by == [("on_hand", "first")]


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("explain A -c web --at now", 1, "NOT_IN_HISTORY: nothing is written yet"),
        ("explain A -c web --at yesterday", 2, "neither a version"),
        ("history A --node n --at 1-x", 2, "neither a version"),
        ("audit verify-chain --since lately", 2, "is no day"),
        ("audit verify-chain", 1, "NOT_IN_HISTORY: nothing is written yet"),
    ],
)
def test_what_cannot_be_told_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, code: int, words: str
) -> None:
    """No history, no such time, no such day: one sentence on stderr and the right exit code."""
    assert run([*command.split(), "--data-dir", str(tmp_path)]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert len(said.err.splitlines()) == 1
