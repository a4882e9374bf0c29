"""A snapshot's rows: translated in columns or one by one, both ways say the same."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.mapping import Mapper
from ingest.reconcile import staging
from ingest.reconcile.columns import POSITION_COLUMNS
from ingest.reconcile.settings import SnapshotSettings, read_snapshots
from ingest.reconcile.staging import Staged, stage
from ingest.rows import ArtifactRefused
from ingest.settings import SettingsRefused


def snapshot(**more: Any) -> SnapshotSettings:
    given: dict[str, Any] = {
        "name": "stock",
        "source": "erp",
        "format": {"kind": "csv", "delimiter": ";"},
        "files": {"folder": "/nowhere"},
        "mapping": {
            "version": "1",
            "columns": {"sku": "ARTICLE", "node": "PLANT", "quantity": "QTY", "unit": "UOM"},
            "nodes": {"P1": "berlin"},
            "skus": {"OLD": "NEW"},
            "units": {"factors": {"EA": "1", "CS": "12", "KG": "0.5"}, "by_sku": {"TEA": {"CS": "6"}}},
        },
    }
    for key, value in more.items():
        given[key] = given[key] | value if key == "mapping" else value
    return SnapshotSettings.model_validate(given)


def rows_of(staged: Staged) -> list[tuple[Any, ...]]:
    frame = pl.read_parquet(staged.path, columns=list(POSITION_COLUMNS)).drop("row")
    return sorted(frame.iter_rows())


def numbered(staged: Staged) -> list[tuple[Any, ...]]:
    return sorted(pl.read_parquet(staged.path, columns=list(POSITION_COLUMNS)).iter_rows())


def write(folder: Path, *lines: str, head: str = "ARTICLE;PLANT;QTY;UOM") -> Path:
    file = folder / "stock.csv"
    file.write_text("\n".join((head, *lines)) + "\n", encoding="utf-8")
    return file


CELLS = st.sampled_from(
    ["TEA", " TEA", "OLD", "Käse", "", "a b", "x" * 65, "P1", "P2", "EA", "CS", "KG", "PAL", "3", "-4", "+5", "007",
     "4.0", "4,0", "1.000", "5-", "2.5", "1000000001", "9999999999", "zwölf", '"', "\x1f7", "\u00a0"]
)  # fmt: skip
ROWS = st.lists(st.tuples(CELLS, CELLS, CELLS, CELLS), max_size=12)


@given(rows=ROWS, german=st.booleans(), strict_nodes=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_columns_and_rows_say_the_same(
    tmp_path: Path, rows: list[tuple[str, ...]], german: bool, strict_nodes: bool
) -> None:
    """Whatever is in the cells: what the columns take, and what is refused why, is what the mapper says row by row."""
    mapping = snapshot().mapping.model_copy(
        update={
            "decimal_separator": "," if german else ".",
            "thousands_separator": "." if german else "",
            "other_nodes": "refuse" if strict_nodes else "as_they_are",
        }
    )
    config = snapshot().model_copy(update={"mapping": mapping})
    file = write(tmp_path, *(";".join(cells) for cells in rows))
    fast = stage(file, config, tmp_path / "fast.parquet")
    mapper = Mapper(config.source, config.mapping)
    slow = staging._by_rows(file, config, mapper, tmp_path / "slow.parquet", lambda _: None)
    assert rows_of(fast) == rows_of(slow)
    if not any(
        '"' in cell for cells in rows for cell in cells
    ):  # a cell may hold a line end: lines are not rows
        assert numbered(fast) == numbered(slow)
    assert (fast.reasons, fast.rows) == (slow.reasons, slow.rows)


@given(rows=st.lists(st.tuples(CELLS, CELLS, st.one_of(st.integers(-(2**40), 2**40), st.none())), max_size=8))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parquet_in_columns_and_by_rows_say_the_same(tmp_path: Path, rows: list[tuple[Any, ...]]) -> None:
    """The same for typed columns."""
    config = snapshot(
        format={"kind": "parquet"},
        mapping={"columns": {"sku": "sku", "node": "node", "quantity": "qty"}},
    )
    file = tmp_path / "stock.parquet"
    schema = {"sku": pl.String, "node": pl.String, "qty": pl.Int64}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(file)
    fast = stage(file, config, tmp_path / "fast.parquet")
    mapper = Mapper(config.source, config.mapping)
    slow = staging._by_rows(file, config, mapper, tmp_path / "slow.parquet", lambda _: None)
    assert fast.by_columns
    assert numbered(fast) == numbered(slow)
    assert fast.reasons == slow.reasons


def test_a_plain_file_is_read_in_columns(tmp_path: Path) -> None:
    """Aliases, node codes and units are those of ingest; by_sku comes before the factor for all."""
    file = write(tmp_path, "TEA;P1;2;CS", "OLD;P1;2;CS", "CUP;P2;4;EA")
    staged = stage(file, snapshot(), tmp_path / "rows.parquet")
    assert staged.by_columns
    assert [row[:3] for row in rows_of(staged)] == [
        ("CUP", "P2", 4),
        ("NEW", "berlin", 24),
        ("TEA", "berlin", 12),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("TEA;P1;x;2;EA;more", "COLUMN_COUNT"),
        ("TEA;P1;x;2", "COLUMN_COUNT"),
        ('TEA;P1;"a""b"c;2;EA', "MALFORMED_ROW"),
    ],
)
def test_a_bad_line_is_refused_wherever_it_stands(tmp_path: Path, line: str, reason: str) -> None:
    """Far down in a file whose fault is in a column that nobody needs: the line is refused, and no other."""
    good = ["CUP;P1;n;1;EA"] * 20_000
    file = write(tmp_path, *good, line, "POT;P1;n;3;EA", head="ARTICLE;PLANT;NOTE;QTY;UOM")
    staged = stage(file, snapshot(), tmp_path / "rows.parquet")
    assert (staged.good, staged.refused, dict(staged.reasons)) == (20_001, 1, {reason: 1})
    assert staged.examples[0].position == 20_002


def test_what_columns_cannot_tell_is_translated_with_its_own_cells(tmp_path: Path) -> None:
    """Rows that only the mapper understands, here and there in a wide file: each is taken as it stands there."""
    names = [f"Käse{n}" if n % 777 == 0 else f"CUP{n}" for n in range(1, 5_001)]
    lines = [f"{name};P1;n{n};{n};EA" for n, name in enumerate(names, 1)]
    file = write(tmp_path, *lines, "POT;P1;x;zwei;EA", head="ARTICLE;PLANT;NOTE;QTY;UOM")
    staged = stage(file, snapshot(), tmp_path / "rows.parquet")
    assert staged.by_columns
    assert rows_of(staged) == sorted((name, "berlin", n, False, "") for n, name in enumerate(names, 1))
    (refused,) = staged.examples
    assert (refused.position, refused.raw) == (5_002, b"POT;P1;x;zwei;EA")


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cut short between the look at all rows and that at single ones: it says nothing."""
    file = write(tmp_path, *["CUP;P1;1;EA"] * 5_000, "Käse;P1;1;EA")
    scan = pl.scan_parquet

    def scan_parquet(path: Path) -> pl.LazyFrame:
        write(tmp_path, "CUP;P1;1;EA")
        return scan(path)

    monkeypatch.setattr(pl, "scan_parquet", scan_parquet)
    with pytest.raises(ArtifactRefused, match="changed while it was read"):
        stage(file, snapshot(), tmp_path / "rows.parquet")


def test_a_half_written_archive_is_refused(tmp_path: Path) -> None:
    """A compressed file that ends too early is no snapshot."""
    whole = gzip.compress(write(tmp_path, *(f"S{number};P1;1;EA" for number in range(5_000))).read_bytes())
    file = tmp_path / "stock.csv.gz"
    file.write_bytes(whole)
    assert stage(file, snapshot(), tmp_path / "rows.parquet").good == 5_000
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactRefused, match="half written"):
        stage(file, snapshot(), tmp_path / "rows.parquet")


def test_half_a_parquet_file_is_refused(tmp_path: Path) -> None:
    """Parquet says itself whether it is whole."""
    file = tmp_path / "stock.parquet"
    pl.DataFrame({"ARTICLE": ["A"] * 100, "PLANT": "P1", "QTY": 1, "UOM": "EA"}).write_parquet(file)
    file.write_bytes(file.read_bytes()[:-40])
    config = SnapshotSettings.model_validate(snapshot().model_dump() | {"format": {"kind": "parquet"}})
    with pytest.raises(ArtifactRefused, match="no whole Parquet file"):
        stage(file, config, tmp_path / "rows.parquet")


def test_quarantine_rows_come_with_their_reason(tmp_path: Path) -> None:
    """A stock type column says which rows are quarantined, and why."""
    config = snapshot(
        quarantine="BESIDE",
        mapping={
            "columns": {"sku": "ARTICLE", "node": "PLANT", "quantity": "QTY", "type": "UOM"},
            "movements": {
                "F": {"type": "SET_ON_HAND"},
                "S": {"type": "QUARANTINE", "reason": "damage"},
                "X": {"ignore": True},
            },
        },
    )
    staged = stage(write(tmp_path, "A;P1;5;F", "A;P1;2;S", "A;P1;9;X"), config, tmp_path / "rows.parquet")
    assert rows_of(staged) == [("A", "berlin", 2, True, "damage"), ("A", "berlin", 5, False, "")]
    assert (staged.rows, staged.ignored, staged.by_columns) == (3, 1, True)


def test_settings_are_checked_as_a_whole(tmp_path: Path) -> None:
    """All errors of all files are told at once."""
    for name, text in (("a", 'name = "a"'), ("b", "name = 1\nabsent = 'ZERO'")):
        (tmp_path / f"{name}.toml").write_text(text)
    with pytest.raises(SettingsRefused) as caught:
        read_snapshots(tmp_path)
    assert "a.toml: source" in str(caught.value)
    assert "b.toml: name" in str(caught.value)
    with pytest.raises(ValueError, match="absent = ZERO needs nodes"):
        snapshot(absent="ZERO")
    with pytest.raises(ValueError, match="QUARANTINE"):
        snapshot(quarantine="BESIDE")


def test_too_many_rows_are_refused(tmp_path: Path) -> None:
    """A file larger than the limit is refused as a whole, whichever way it is read."""
    config = snapshot(rows_max=2)
    file = write(tmp_path, "A;P1;1;EA", "B;P1;1;EA", "C;P1;1;EA")
    with pytest.raises(ArtifactRefused, match="rows"):
        stage(file, config, tmp_path / "rows.parquet")
    with pytest.raises(ArtifactRefused, match="rows"):
        staging._by_rows(file, config, Mapper("erp", config.mapping), tmp_path / "r.parquet", lambda _: None)


def test_refused_rows_are_kept_as_examples(tmp_path: Path) -> None:
    """A refused row is told with its place and its sentence; of very many only the first."""
    file = write(tmp_path, "A;P1;1;EA", *("B;P1;1;PAL" for _ in range(30)))
    staged = stage(file, snapshot(), tmp_path / "rows.parquet")
    assert (staged.good, staged.refused, len(staged.examples)) == (1, 30, staging.EXAMPLES_MAX)
    assert replace(staged.examples[0], raw=b"").message == "the unit 'PAL' is not mapped"
    assert staged.examples[0].position == 3
