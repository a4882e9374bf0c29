"""Settings: where they come from, what is refused, and that the README's table can be made of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from availability.config import Settings, SettingsError, load_settings, settings_table
from availability.service.admission import AdmissionLimits


@pytest.fixture(autouse=True)
def no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AVAIL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "availability.toml"
    path.write_text('listen = "127.0.0.1:1"\n[limits]\nlines_max = 600\nbatch_skus_max = 50\n')
    return path


def test_defaults_need_nothing() -> None:
    """Without file and environment the documented defaults hold."""
    settings = load_settings()
    assert settings.limits.lines_max == 500
    assert settings.reads.max_staleness_ms == 2_000
    assert settings.sweep.interval_ms == 250
    assert settings.redis.prefix == "avail"
    assert settings.tls.cert_file is None


def test_the_environment_outranks_the_file_and_the_file_the_defaults(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One nested variable replaces one value; its neighbours keep the file's, others the default."""
    monkeypatch.setenv("AVAIL_LIMITS__LINES_MAX", "700")
    settings = load_settings(file)
    assert settings.limits.lines_max == 700
    assert settings.limits.batch_skus_max == 50
    assert settings.listen == "127.0.0.1:1"
    assert settings.limits.batch_deltas_max == 5_000


def test_the_file_may_be_named_by_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AVAIL_CONFIG names the file where the command line does not."""
    monkeypatch.setenv("AVAIL_CONFIG", str(file))
    assert load_settings().limits.lines_max == 600


def test_all_problems_are_told_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values out of bounds, unknown names and unknown sections, of file and environment, in one message."""
    file.write_text("listne = 1\n[limits]\nlines_max = 2001\n[redis]\nprofile = 'fast'\n")
    monkeypatch.setenv("AVAIL_LIMIT__LINES_MAX", "1")
    monkeypatch.setenv("AVAIL_READS__MAX_STALENES_MS", "1")
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    message = str(caught.value)
    for part in (
        "listne: no such setting",
        "limits.lines_max: Input should be less than or equal to 2000",
        "redis.profile: Input should be",
        "AVAIL_LIMIT__LINES_MAX: no section 'limit'",
        "reads.max_stalenes_ms: no such setting",
        str(file),
    ):
        assert part in message


@pytest.mark.parametrize("content", ["listen = ", "\x00", None])
def test_a_named_file_must_be_there_and_be_toml(tmp_path: Path, content: str | None) -> None:
    """A typing error in --config does not start a server on defaults."""
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match="settings file"):
        load_settings(path)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"AVAIL_AUTH__NO_AUTH": "true", "AVAIL_AUTH__TOKENS_FILE": "t"}, "exclude each other"),
        ({"AVAIL_TLS__CERT_FILE": "c"}, "belong together"),
        ({"AVAIL_TLS__CLIENT_CA_FILE": "c"}, "needs cert_file"),
        ({"AVAIL_LIMITS__THREADS_MAX": "2"}, "threads_max"),
        ({"AVAIL_ADMISSION__READS_QUEUE_WAIT_MS": "5000"}, "reads are refused first"),
        ({"AVAIL_LOG__RECORDS_CAP": "1000"}, "records_kept"),
        ({"AVAIL_READS__PAGE_SIZE_MAX": "5"}, "page_size"),
        ({"AVAIL_REDIS__PREFIX": "a{b"}, "prefix"),
        ({"AVAIL_REDIS__PREFIX": "avail\n"}, "prefix"),
        ({"AVAIL_METRICS__LISTEN": "9090"}, "metrics.listen"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    wrong: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot mean anything is an error, not a guess."""
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=told):
        load_settings()


def test_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the settings' text nor an error message holds the address of Redis."""
    monkeypatch.setenv("AVAIL_REDIS__URL", "redis://user:hunter2@host/0")
    assert "hunter2" not in repr(load_settings())
    monkeypatch.setenv("AVAIL_REDIS", '{"url": ["hunter2"], "prefix": 1}')
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_every_setting_is_in_the_table() -> None:
    """Each has a description, and every number has bounds."""
    rows = [row.split(" | ") for row in settings_table().splitlines()[2:]]
    assert len(rows) > 50
    for name, default, bounds, description in rows:
        assert len(description) > 10, name
        assert "None" not in description, name
        if default.replace(",", "").isdigit():
            assert " to " in bounds, name


def test_the_table_is_printed_by_the_module() -> None:
    """The README's table comes from here."""
    command = [sys.executable, "-m", "availability.config"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert printed.strip() == settings_table()


def test_admission_settings_are_admission_limits() -> None:
    """The same names and defaults on both sides, so that a root can hand one to the other."""
    assert Settings().admission.model_dump() == {
        name: getattr(AdmissionLimits(), name) for name in AdmissionLimits.__dataclass_fields__
    }


def test_importing_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken environment is no obstacle to an import."""
    command = [sys.executable, "-c", "import availability.config"]
    environment = {**os.environ, "AVAIL_LIMITS__LINES_MAX": "no number", "AVAIL_CONFIG": "/nowhere"}
    subprocess.run(command, env=environment, check=True, timeout=60)
