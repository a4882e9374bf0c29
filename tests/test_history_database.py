"""The history database: the same tables on both kinds, made once, by whoever comes first."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from availability.domain.version import Version
from availability.history import database, shop_tables, tables
from availability.history.database import DatabaseRefused, DatabaseUnreachable, open_database
from ingest.database import open_database as open_ingest
from tests.postgres import Postgres, database_url, postgres, postgres_url

__all__ = ["database_url", "postgres", "postgres_url"]


def test_migrations_make_the_tables_that_the_code_uses(database_url: str, tmp_path: Path) -> None:
    """Opening makes every table as `tables` has it; opening again changes nothing."""
    open_database(database_url, tmp_path).dispose()
    engine = open_database(database_url, tmp_path)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "version_table": tables.VERSION_TABLE}
        )
        assert compare_metadata(context, shop_tables.metadata) == []
    engine.dispose()


def test_there_is_one_line_of_migrations() -> None:
    """Two files that follow the same one would leave it to chance what a database gets."""
    script = ScriptDirectory(str(Path(database.__file__).parent / "migrations"))
    assert len(script.get_heads()) == 1
    assert len(script.get_bases()) == 1


def test_processes_that_start_together_make_the_tables_once(database_url: str, tmp_path: Path) -> None:
    """Historian and publisher may start at the same moment on an empty database."""
    failed: list[BaseException] = []
    ready = threading.Barrier(4)

    def start() -> None:
        ready.wait()
        try:
            open_database(database_url, tmp_path).dispose()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_an_error_names_no_password_and_no_host(tmp_path: Path) -> None:
    """What is told of a database that is away is safe for a log."""
    with pytest.raises(DatabaseUnreachable) as caught:
        open_database("postgresql://shop:s3cret@127.0.0.1:9/history", tmp_path)
    assert "s3cret" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["mysql://shop:s3cret@here/x", "postgresql://shop:s3cret@here:port/x", "nonsense://x"]
)
def test_an_address_that_is_none_is_refused_in_one_sentence(url: str, tmp_path: Path) -> None:
    """A wrong setting is told as such, without what may be secret in it."""
    with pytest.raises(DatabaseRefused) as caught:
        open_database(url, tmp_path)
    assert "s3cret" not in str(caught.value)


def test_tables_of_a_newer_release_are_left_alone(database_url: str, tmp_path: Path) -> None:
    """An older program refuses a database that a newer one has changed."""
    engine = open_database(database_url, tmp_path)
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {tables.VERSION_TABLE} SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(DatabaseRefused, match="another release"):
        open_database(database_url, tmp_path)


def test_packed_versions_keep_their_order() -> None:
    """One number stands for a version wherever the database compares them."""
    versions = [Version(0, 0), Version(1, 1), Version(1, 2), Version(1, (1 << 44) - 1), Version(2, 0)]
    numbers = [tables.packed(version) for version in versions]
    assert numbers == sorted(numbers)
    assert [tables.unpacked(number) for number in numbers] == versions
    with pytest.raises(OverflowError):
        tables.packed(Version(1, 1 << 44))


def test_a_database_without_an_encoding_keeps_text(postgres: Postgres, tmp_path: Path) -> None:
    """A cluster that was made without a locale is SQL_ASCII: text is text there too, not bytes."""
    name = postgres.new_database("ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'")
    for engine in (open_database(postgres.url(name), tmp_path), open_ingest(postgres.url(name))):
        with engine.connect() as connection:
            assert connection.execute(sa.text("SELECT 'Größe'")).scalar_one() == "Größe"
            assert connection.execute(sa.text("SHOW server_encoding")).scalar_one() == "SQL_ASCII"
        engine.dispose()
    postgres.execute(f"DROP DATABASE {name}")
