"""Files into a real ledger: once, in order, whatever is wrong with them or happens on the way."""

from __future__ import annotations

import gzip
import itertools
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any  # Any: whoever watches

import pytest

from availability.client import Client
from ingest.database import open_database
from ingest.letters import Letters
from ingest.pipeline import Pipeline
from ingest.runs import DONE, REFUSED, Outcome
from ingest.settings import SettingsRefused, SourceSettings, read_source
from ingest.sources.drop_folder import DropFolderSource
from tests.conftest import Names, Server
from tests.ingest_lab import breaking, on_hand

SOURCE = """
source = "{source}"
all_or_nothing = {all_or_nothing}
batch_deltas = 10

[format]
kind = "csv"
delimiter = ";"
encoding = "{encoding}"

[mapping]
version = "3"
author = "ingest"
decimal_separator = ","

[mapping.columns]
type = "MOVE"
sku = "ARTICLE"
node = "PLANT"
quantity = "QTY"
unit = "UOM"
occurred_time = "AT"

[mapping.movements]
"101" = {{ type = "RECEIPT" }}
"551" = {{ type = "WRITE_OFF", reason = "scrap" }}
"701" = {{ type = "ADJUSTMENT" }}
"702" = {{ type = "ADJUSTMENT", sign = -1 }}
"999" = {{ ignore = true }}

[mapping.nodes]
P1 = "{node}"

[mapping.units.factors]
EA = "1"
CS = "12"
HC = "0.5"

[mapping.times]
zone = "Europe/Berlin"
formats = ["%d.%m.%Y %H:%M"]

[drop]
folder = "drop"
settle_ms = 0
"""
HEADER = "MOVE;ARTICLE;PLANT;QTY;UOM;AT"


class Desk:
    """One source's pipeline, its folder and its letters."""

    def __init__(self, folder: Path, server: Server, names: Names, **settings: str) -> None:
        self.source, self.node = names.id("wms"), names.id("east")
        values = {"source": self.source, "node": self.node, "all_or_nothing": "false", "encoding": "utf-8"}
        path = folder / "source.toml"
        path.write_text(SOURCE.format(**{**values, **settings}), encoding="utf-8")
        self.settings: SourceSettings = read_source(path)
        self.engine = open_database(str(folder / "ingest.db"))
        self.letters = Letters(self.engine)
        self.client = Client(server.grpc)
        self.clock = itertools.count(1_000)
        assert self.settings.drop is not None
        self.drop = self.settings.drop.folder

    def pipeline(self, breaks_after: int = -1) -> Pipeline:
        return Pipeline(
            self.settings,
            self.engine,
            self.letters,
            breaking(self.client, self.source, breaks_after),
            now=lambda: float(next(self.clock)),
            new_run_id=lambda: uuid.uuid4().hex,
        )

    def write(self, name: str, *lines: str, encoding: str = "utf-8") -> Path:
        self.drop.mkdir(exist_ok=True)
        path = self.drop / name
        path.write_bytes("\r\n".join((HEADER, *lines, "")).encode(encoding))
        return path

    def on_hand(self, sku: str) -> int:
        return on_hand(self.client, self.source, sku, self.node)

    def carry(self, path: Path) -> tuple[str, dict[str, int]]:
        outcome = self.pipeline().carry(path)
        return outcome.state, outcome.progress.reasons


@pytest.fixture
def desk(tmp_path: Path, server: Server, names: Names) -> Iterator[Desk]:
    made = Desk(tmp_path, server, names)
    yield made
    made.client.close()


def test_a_file_is_translated_to_the_unit(desk: Desk, names: Names) -> None:
    """Codes, signs, cases, half cases that divide, decimal commas, local times: each row means what it says."""
    tea = names.sku("tea")
    path = desk.write(
        "a.csv",
        f"101;{tea};P1;3;CS;01.11.2026 08:00",
        f"101;{tea};P1;4,0;EA;01.11.2026 08:01",
        f"702;{tea};P1;1;EA;01.11.2026 08:02",
        f"101;{tea};P1;4;HC;01.11.2026 08:03",
        f"999;{tea};P1;400;EA;01.11.2026 08:04",
    )
    assert desk.carry(path) == (DONE, {})
    assert desk.on_hand(tea) == 36 + 4 - 1 + 2


def test_bad_rows_become_letters_and_the_others_go_in(desk: Desk, names: Names) -> None:
    """Each with its line, its bytes and a reason; nothing is rounded, guessed or lost."""
    tea = names.sku("tea")
    bad = {
        3: (f"101;{tea};P1;1;HC;01.11.2026 08:00", "REMAINDER", "VALIDATION"),
        4: (f"777;{tea};P1;1;EA;01.11.2026 08:00", "MOVEMENT_CODE", "MAPPING"),
        5: (f"101;{tea};P1;many;EA;01.11.2026 08:00", "NUMBER", "VALIDATION"),
        6: (f"101;{tea};P1;1;EA", "COLUMN_COUNT", "VALIDATION"),
        7: (f"101;{tea};P1;1;EA;yesterday", "TIME", "VALIDATION"),
        8: (f"101;{tea};P1;1;PAL;01.11.2026 08:00", "UNIT", "MAPPING"),
        9: (f"101;{tea};P1;0;EA;01.11.2026 08:00", "INVALID_QUANTITY", "VALIDATION"),
        10: (f'101;"{tea};P1;1;EA"x;01.11.2026 08:00', "MALFORMED_ROW", "VALIDATION"),
    }
    good = f"101;{tea};P1;5;EA;01.11.2026 08:00"
    path = desk.write("a.csv", good, *(line for line, _, _ in bad.values()), good)
    state, reasons = desk.carry(path)
    assert state == DONE
    assert desk.on_hand(tea) == 10
    assert reasons == {reason: 1 for _, reason, _ in bad.values()}
    for letter in desk.letters.find():
        line, reason, category = bad[letter.position]
        assert (letter.reason, letter.category, letter.count) == (reason, category, 1)
        assert letter.raw == f"{line}\r\n".encode()


def test_what_the_ledger_refuses_is_a_letter_with_its_line(desk: Desk, names: Names) -> None:
    """Nothing is wrong with the row's shape: the whole block goes in, and the row is found again."""
    tea = names.sku("tea")
    rows = [f"101;{tea};P1;{1 if n != 13 else 0};EA;01.11.2026 08:{n:02d}" for n in range(30)]
    outcome = desk.pipeline().carry(desk.write("a.csv", *rows))
    assert (outcome.progress.applied, outcome.progress.refused) == (29, 1)
    (letter,) = desk.letters.find()
    assert (letter.position, letter.reason) == (15, "INVALID_QUANTITY")
    assert letter.raw == (rows[13] + "\r\n").encode()
    assert letter.context == (HEADER + "\r\n").encode()
    assert desk.on_hand(tea) == 29


def test_a_file_that_comes_again_changes_nothing(desk: Desk, names: Names) -> None:
    """By another name too: its checksum is known."""
    tea = names.sku("tea")
    line = f"101;{tea};P1;5;EA;01.11.2026 08:00"
    desk.carry(desk.write("a.csv", line))
    outcome = desk.pipeline().carry(desk.write("b.csv", line))
    assert (outcome.known, outcome.state, desk.on_hand(tea)) == (True, DONE, 5)


def test_killed_after_each_batch_nothing_is_lost_or_doubled(desk: Desk, names: Names) -> None:
    """Each start gets a batch further, or dies between the ledger's ack and our note: the sum is exact."""
    tea = names.sku("tea")
    lines = [f"101;{tea};P1;{n + 1};EA;01.11.2026 08:00" for n in range(95)]
    lines.insert(50, "nonsense")
    path = desk.write("a.csv", *lines)
    for breaks_after in (0, 1, 0, 2, 3, 0):
        with pytest.raises(RuntimeError, match="killed"):
            desk.pipeline(breaks_after).carry(path)
    assert desk.carry(path)[0] == DONE
    assert desk.on_hand(tea) == sum(range(1, 96))
    assert [(letter.position, letter.count) for letter in desk.letters.find()] == [(52, 1)]


def test_all_or_nothing_means_it(tmp_path: Path, server: Server, names: Names) -> None:
    """One bad row: refused as a whole, its letter is there, and not a unit has moved."""
    desk = Desk(tmp_path, server, names, all_or_nothing="true")
    tea = names.sku("tea")
    good = f"101;{tea};P1;5;EA;01.11.2026 08:00"
    state, _ = desk.carry(desk.write("a.csv", good, f"101;{tea};P1;5;PAL;01.11.2026 08:00"))
    assert state == REFUSED
    assert len(desk.letters.find()) == 1
    assert desk.carry(desk.write("b.csv", good, good))[0] == DONE
    assert desk.on_hand(tea) == 10
    desk.client.close()


def test_missing_columns_refuse_the_file(desk: Desk, names: Names) -> None:
    """A file of another kind is no ten thousand dead letters."""
    desk.drop.mkdir()
    path = desk.drop / "a.csv"
    path.write_text("MOVE;SKU\n101;x\n", encoding="utf-8")
    outcome = desk.pipeline().carry(path)
    assert outcome.state == REFUSED
    assert "ARTICLE" in outcome.reason
    assert desk.letters.find() == []


def test_a_truncated_gzip_gives_what_it_has(desk: Desk, names: Names) -> None:
    """The rows that can be read go in, and one letter says that the file ends too early."""
    tea = names.sku("tea")
    lines = [f"101;{tea};P1;1;EA;01.11.2026 08:{n % 60:02d}" for n in range(20_000)]
    whole = gzip.compress("\n".join((HEADER, *lines)).encode())
    desk.drop.mkdir()
    path = desk.drop / "a.csv.gz"
    path.write_bytes(whole[: len(whole) // 2])
    state, reasons = desk.carry(path)
    assert (state, reasons) == (DONE, {"TRUNCATED": 1})
    assert 0 < desk.on_hand(tea) < 20_000


def test_other_encodings_and_a_byte_order_mark(tmp_path: Path, server: Server, names: Names) -> None:
    """Latin-1 where the source says so; a line that is not what the source says is one letter."""
    desk = Desk(tmp_path, server, names, encoding="latin-1")
    tea = names.sku("thé")
    line = f"101;{tea};P1;5;EA;01.11.2026 08:00"
    assert desk.carry(desk.write("a.csv", line, encoding="latin-1")) == (DONE, {})
    assert desk.on_hand(tea) == 5
    other = Desk(tmp_path, server, names)
    other.drop.mkdir(exist_ok=True)
    path = other.drop / "b.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEADER}\n{line}\n".encode() + line.encode("latin-1") + b"\n")
    assert other.carry(path) == (DONE, {"ENCODING": 1})
    assert other.on_hand(tea) == 10
    for one in (desk, other):
        one.client.close()


def test_a_drop_folder_takes_what_is_complete_and_puts_it_away(desk: Desk, names: Names) -> None:
    """Unfinished names stay, carried files are archived, refused ones lie beside their reason."""
    tea = names.sku("tea")
    line = f"101;{tea};P1;5;EA;01.11.2026 08:00"
    old = desk.write("old.csv", line)
    os.utime(old, (1, 1))
    desk.write("new.csv", line, line)
    desk.write("unfinished.csv.tmp", line)
    (desk.drop / "wrong.csv").write_text("what is this?\n", encoding="utf-8")
    assert desk.settings.drop is not None
    source = DropFolderSource(desk.settings.drop, desk.pipeline())
    states = {path.name: outcome.state for path, outcome in source.carry_ready()}
    assert states == {"old.csv": DONE, "new.csv": DONE, "wrong.csv": REFUSED}
    assert next(iter(states)) == "old.csv"
    assert desk.on_hand(tea) == 15
    assert [path.name for path in desk.drop.glob("*.*")] == ["unfinished.csv.tmp"]
    assert len(list((desk.drop / "archive").iterdir())) == 2
    assert "columns are missing" in next((desk.drop / "rejected").glob("*.reason")).read_text()
    assert list(source.carry_ready()) == []


def test_all_errors_of_a_mapping_are_told_at_once(tmp_path: Path) -> None:
    """Each with its place in the file."""
    path = tmp_path / "bad.toml"
    text = SOURCE.format(source="", node="n", all_or_nothing="false", encoding="utf-8")
    path.write_text(text.replace('zone = "Europe/Berlin"', 'zone = "Mars"').replace('CS = "12"', 'CS = "-1"'))
    with pytest.raises(SettingsRefused) as refused:
        read_source(path)
    said = str(refused.value)
    assert "source:" in said
    assert "mapping.times.zone" in said
    assert "mapping.units.factors" in said


def test_a_file_that_cannot_be_read_stops_no_other(
    desk: Desk, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays and is told of; what is behind it goes in. One that somebody took away meanwhile is nobody's failure."""
    assert desk.settings.drop is not None
    pipeline = desk.pipeline()
    carry = pipeline.carry

    def picky(path: Path, **watch: Any) -> Outcome:
        if path.name == "3 broken.csv":
            raise PermissionError(13, "Permission denied", str(path))
        return carry(path, **watch)

    monkeypatch.setattr(pipeline, "carry", picky)
    paths = [
        desk.write(name, f"101;{names.sku('rope')};P1;{number};EA;01.02.2026 10:00")
        for number, name in enumerate(
            ("1 good.csv", "2 taken away.csv", "3 broken.csv", "4 good.csv"), start=1
        )
    ]
    for number, path in enumerate(paths):
        os.utime(path, (number, number))
    source = DropFolderSource(desk.settings.drop, pipeline)
    found = []

    def carry_all() -> None:
        for path, _ in source.carry_ready():
            found.append(path.name)
            paths[1].unlink(missing_ok=True)

    with pytest.raises(PermissionError):
        carry_all()
    assert found == ["1 good.csv", "4 good.csv"]
    assert paths[2].exists()
    paths[2].unlink()
    assert list(source.carry_ready()) == []


def test_a_name_that_is_no_text_is_carried_like_any_other(desk: Desk, names: Names) -> None:
    """A partner's name in another encoding: its rows go in, its letters name it, and it is put away."""
    tea = names.sku("tea")
    line = f"101;{tea};P1;5;EA;01.11.2026 08:00"
    desk.write(os.fsdecode(b"bestand-m\xfcnchen.csv"), line, line.replace(";5;", ";x;"))
    assert desk.settings.drop is not None
    source = DropFolderSource(desk.settings.drop, desk.pipeline())
    ((_, outcome),) = source.carry_ready()
    assert (outcome.state, outcome.progress.name) == (DONE, "bestand-m\\xfcnchen.csv")
    assert desk.on_hand(tea) == 5
    assert [letter.artifact for letter in desk.letters.find()] == ["bestand-m\\xfcnchen.csv"]
    assert list(source.carry_ready()) == []
