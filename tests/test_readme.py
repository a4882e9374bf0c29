"""README keeps its word: its settings table is the settings', and its commands do what they say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from availability.config import settings_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_settings_table_is_current() -> None:
    """README's table is what `python -m availability.config` prints."""
    assert settings_table().strip() in README


def test_the_first_two_blocks_are_the_two_commands() -> None:
    """The first block runs the demo, the second the tests, each by itself in a fresh clone."""
    demo, tests = BLOCKS[:2]
    for block in (demo, tests):
        assert block.startswith("python3 -m venv .venv && ")
        assert len(block.splitlines()) == 1
    assert demo.strip().endswith(".venv/bin/availability demo")
    assert tests.strip().endswith("-m pytest -q")


def test_the_first_use_works_as_printed(server: object) -> None:
    """Each command of "First use" ends with exit code 0 against a server, in the order printed."""
    commands = [line for line in BLOCKS[3].splitlines() if line]
    assert len(commands) >= 5
    target = server.grpc  # type: ignore[attr-defined]  # the fixture's own type
    environment = {**os.environ, "AVAIL_TARGET": target}
    for command in commands:
        words = shlex.split(command)
        assert words[0] == ".venv/bin/availability"
        ended = subprocess.run(
            [sys.executable, "-m", "availability", *words[1:]],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    exec(example.replace("127.0.0.1:7443", target), {})
