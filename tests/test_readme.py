"""README keeps its word: its settings table is the settings', and its commands do what they say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from availability.config import settings_table
from ingest import settings_table as source_settings
from ingest.reconcile.settings import SnapshotSettings
from ingest.reconcile.settings_table import snapshot_table
from ingest.settings import SourceSettings
from publisher import settings_table as shop_settings
from publisher.settings import ShopSettings, read_shops

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
STOREFRONTS = (ROOT / "publisher" / "README.md").read_text(encoding="utf-8")
FEEDS = (ROOT / "ingest" / "README.md").read_text(encoding="utf-8")
SNAPSHOTS = (ROOT / "ingest" / "reconcile" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_settings_table_is_current() -> None:
    """README's table is what `python -m availability.config` prints."""
    assert settings_table().strip() in README


def test_the_table_of_source_settings_is_current() -> None:
    """Its README's table is what `python -m ingest.settings_table` prints, and each setting says what it is."""
    assert f"\n{source_settings.settings_table()}\n\n<!-- end of source settings -->" in FEEDS
    assert [
        name for name, field in source_settings.settings_of(SourceSettings) if not field.description
    ] == []


def test_the_table_of_shop_settings_is_current() -> None:
    """Its README's table is what `python -m publisher.settings_table` prints, and each setting says what it is."""
    assert f"\n{shop_settings.settings_table()}\n\n<!-- end of shop settings -->" in STOREFRONTS
    assert [name for name, field in shop_settings.settings_of(ShopSettings) if not field.description] == []


def test_the_file_of_shops_is_one(tmp_path: Path) -> None:
    """The file of shops is taken as printed."""
    found = re.search(r"^```toml\n(\[shops.*?)^```", STOREFRONTS, re.MULTILINE | re.DOTALL)
    assert found is not None
    (tmp_path / "shops.toml").write_text(found[1], encoding="utf-8")
    assert list(read_shops(tmp_path / "shops.toml")) == ["web"]


def run_as_printed(readme: str, server: object, folder: Path, below: str, mapping: str) -> str:
    """Write a README's first file and mapping below a folder and run its first commands; return what they print."""
    (folder / below / "drop").mkdir(parents=True)
    for language, name in (("csv", "drop/stock.csv"), ("toml", mapping)):
        (folder / below / name).write_text(first_block(readme, language), encoding="utf-8")
    python = f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)} -m availability"
    ended = subprocess.run(
        ["sh", "-ec", first_block(readme, "sh").replace(".venv/bin/availability", python)],
        cwd=folder, env={**os.environ, "AVAIL_TARGET": server.grpc},  # type: ignore[attr-defined]
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def first_block(readme: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_first_feed_works_as_printed(server: object, tmp_path: Path) -> None:
    """Its file and its mapping as printed: each command ends as it says, and one row is a letter."""
    printed = run_as_printed(FEEDS, server, tmp_path, "feeds", "wms.toml")
    assert "stock.csv: DONE: 3 applied, 1 refused" in printed
    assert printed.count("'PAL' is not") == 2, printed


def test_the_table_of_snapshot_settings_is_current() -> None:
    """Its README's table is what `python -m ingest.reconcile.settings_table` prints; each setting says what it is."""
    assert f"\n{snapshot_table()}\n\n<!-- end of snapshot settings -->" in SNAPSHOTS
    settings = source_settings.settings_of(SnapshotSettings)
    assert [name for name, field in settings if not field.description] == []


def test_the_first_snapshot_works_as_printed(server: object, tmp_path: Path) -> None:
    """The file and the settings of reconciliation as printed: each command ends well, and the page is written."""
    printed = run_as_printed(SNAPSHOTS, server, tmp_path, "snapshots", "wms-stock.toml")
    assert "REPORTED" in printed
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_first_two_blocks_are_the_two_commands() -> None:
    """The first block runs the demo, the second the tests, each by itself in a fresh clone."""
    demo, tests = BLOCKS[:2]
    for block in (demo, tests):
        assert block.startswith("python3 -m venv .venv && ")
        assert len(block.splitlines()) == 1
    assert demo.strip().endswith(".venv/bin/availability demo")
    assert tests.strip().endswith("-m pytest -q -n 2")


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
