"""The history's nightly job as deploy/ starts it: its own command lines and variables, run against PostgreSQL.

Only what a machine lacks is put in: the folders, and the secrets that systemd or Kubernetes would bring.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from availability.cli.errors import EXIT_BROKEN
from availability.cli.root import run
from availability.history.database import open_database
from availability.history.tables import DAY_MS, journal, journal_days
from tests.conftest import Names, Server
from tests.deploy_files import DEPLOY, ROOT, containers, environment, unit
from tests.history_lab import KEY, Lab
from tests.model import Delta
from tests.postgres import postgres, postgres_url
from tests.wire import Service

__all__ = ["postgres", "postgres_url"]

UNIT = DEPLOY / "systemd" / "availability-history-nightly.service"
FOLLOWS = DEPLOY / "systemd" / "availability-historian.service"
JOB = "CronJob/availability-history-nightly"
STATE = "/var/lib/availability"
SECONDS_MAX = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Commands in their order, as words after `availability`; the variables that they get; where they keep things."""

    commands: list[list[str]]
    variables: dict[str, str]
    state: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Runner = Callable[[Job], list[Done]]


@pytest.fixture
def night(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Run a job's commands one after the other, as systemd and Kubernetes do: the first that fails is the last.

    In this process, because each of its own would import polars and Alembic anew; with the job's variables only.
    """

    def started(job: Job) -> list[Done]:
        done: list[Done] = []
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AVAIL_")]:
                patch.delenv(name)
            for name, value in job.variables.items():
                patch.setenv(name, value)
            patch.chdir(job.state)
            for words in job.commands:
                capsys.readouterr()
                code = run(words)
                said = capsys.readouterr()
                done.append(Done(code=code, out=said.out, err=said.err))
                if code:
                    break
        return done

    return started


def of_unit(path: Path, folder: Path, url: str, config: str = "") -> Job:
    """A unit's ExecStart lines. ``config``: what stands in the server's own settings, a credential."""
    state = folder / "state"
    (state / "historian").mkdir(parents=True)
    (folder / "server.toml").write_text(config)
    given = {"AVAIL_HISTORY__DATABASE_URL": url}  # of the EnvironmentFile
    set_by_unit = {
        name: value.replace("%d", str(folder)).replace(STATE, str(state))
        for name, value in environment(path).items()
    }
    lines = [shlex.split(value) for _, name, value in unit(path) if name == "ExecStart"]
    assert all(line[0].endswith("/bin/availability") for line in lines)
    commands = [line[1:] for line in lines]
    return Job(commands=commands, variables={**set_by_unit, **given}, state=state / "historian")


def of_cron_job(folder: Path, url: str, config: str = "") -> Job:
    """The containers of Kubernetes, the first ones first. Settings of a file reach it as a file, too."""
    state = folder / "archive"
    state.mkdir(parents=True)
    (folder / "server.toml").write_text(config)
    variables = {"AVAIL_CONFIG": str(folder / "server.toml")} if config else {}
    mine = [one for where, one in containers() if where == JOB]
    mine.sort(key=lambda one: one["name"] != "retain")  # an init container is over before the others begin
    for container in mine:
        for one in container["env"]:
            secret = one.get("valueFrom", {}).get("secretKeyRef")
            assert secret in (None, {"name": "availability-postgres", "key": "url"})
            variables[one["name"]] = url if secret else one["value"].replace(f"{STATE}/archive", str(state))
    return Job(commands=[one["args"] for one in mine], variables=variables, state=state)


JOBS: dict[str, Callable[[Path, str, str], Job]] = {
    "systemd": lambda folder, url, config: of_unit(UNIT, folder, url, config),
    "CronJob": of_cron_job,
}


@pytest.mark.parametrize("where", JOBS)
def test_old_days_are_archived_and_the_rest_is_proved(
    where: str, tmp_path: Path, postgres_url: str, night: Runner
) -> None:
    """A day older than keep_days leaves as a file; what stays is proved with the key that sealed it; again: nothing."""
    key = tmp_path / "seal.key"
    key.write_bytes(KEY)
    key.chmod(0o600)
    lab = Lab(postgres_url, tmp_path)
    lab.ledger.clock_ms -= 500 * DAY_MS
    lab.ledger.set_node("a")
    lab.ledger.put(("x", "a", (9, 0, 0, 0, -1)))
    lab.catch_up()
    for _ in range(2):  # the last day is still going on
        lab.ledger.clock_ms += 250 * DAY_MS
        lab.ledger.reserve("x", "a", 1)
        lab.catch_up()
    job = JOBS[where](tmp_path, postgres_url, f'[history]\nseal_key_file = "{key}"\n')
    retained, proved = night(job)
    assert (retained.code, proved.code) == (0, 0), retained.err + proved.err
    assert "archived: " in retained.out
    assert "nothing was altered" in proved.out
    assert "sealed with the key" in proved.out
    assert len(list(job.state.rglob("*.parquet"))) == 1
    with lab.engine.connect() as connection:
        states = connection.scalars(sa.select(journal_days.c.state).order_by(journal_days.c.day)).all()
    lab.engine.dispose()
    assert states == ["ARCHIVED", "KEPT", "KEPT"]
    again = night(job)
    assert [one.code for one in again] == [0, 0]
    assert "no day is old enough" in again[0].out


def test_the_night_after_a_day_of_a_real_server(
    tmp_path: Path, postgres_url: str, server: Server, client: Service, names: Names, night: Runner
) -> None:
    """The historian's own unit writes what a server did, the night proves it; an altered row ends the job with 6."""
    told = Delta(
        source="wms", event_id=names.id(), type="RECEIPT", sku=names.sku(), node=names.node(), quantity=7
    )
    assert client.apply_delta(told)[0] == "APPLIED"
    follows = of_unit(FOLLOWS, tmp_path / "day", postgres_url, f'[redis]\nurl = "{server.redis}"\n')
    (words,) = follows.commands
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AVAIL_")}
    elsewhere = {"PYTHONPATH": str(ROOT), "AVAIL_METRICS__LISTEN": ""}  # the port is the machine's
    written = subprocess.run(
        [sys.executable, "-m", "availability", *words, "--once"],
        env={**kept, **follows.variables, **elsewhere},
        cwd=follows.state,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert written.returncode == 0, written.stderr
    jobs = [make(tmp_path / where, postgres_url, "") for where, make in JOBS.items()]
    for job in jobs:
        done = night(job)
        assert [one.code for one in done] == [0, 0], [one.err for one in done]
        assert "no day is old enough" in done[0].out
        assert "nothing was altered" in done[1].out
    engine = open_database(postgres_url, tmp_path, upgrade=False)
    with engine.begin() as connection:
        first = sa.select(sa.func.min(journal.c.version)).scalar_subquery()
        connection.execute(sa.update(journal).where(journal.c.version == first).values(author="somebody"))
    engine.dispose()
    for job in jobs:
        done = night(job)
        assert [one.code for one in done] == [0, EXIT_BROKEN]
        assert EXIT_BROKEN == 6  # as the unit and the manifest say
        assert "this is not what was written" in done[1].out
