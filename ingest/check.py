"""What a file would do, without doing it; and the golden samples that a mapping carries."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from availability.v1 import stock_pb2 as pb
from ingest.pipeline import Pipeline
from ingest.runs import checksum_of
from ingest.settings import Sample

EXAMPLES = 3


@dataclass(slots=True)
class Effects:
    """Counts by (type, node): rows and units; refusals by (category, reason) with the first few as examples."""

    rows: int = 0
    ignored: int = 0
    movements: Counter[tuple[str, str]] = field(default_factory=Counter)
    units: Counter[tuple[str, str]] = field(default_factory=Counter)
    skus: set[str] = field(default_factory=set)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[tuple[int, str]]] = field(default_factory=dict)


def check(pipeline: Pipeline, path: Path) -> Effects:
    """Read and translate a file. Raises ArtifactRefused where it would be refused as a whole."""
    effects = Effects()
    with path.open("rb") as artifact:
        for row, delta, refused in pipeline.translated(artifact, checksum_of(path)[0]):
            effects.rows += 1
            if refused is not None:
                key = (refused.category.value, refused.reason)
                effects.refusals[key] += 1
                examples = effects.examples.setdefault(key, [])
                if len(examples) < EXAMPLES:
                    examples.append((row.position, refused.message))
            elif delta is None:
                effects.ignored += 1
            else:
                movement = (type_name(delta), delta.node)
                effects.movements[movement] += 1
                effects.units[movement] += delta.quantity
                if delta.sku:
                    effects.skus.add(delta.sku)
    return effects


def prove(pipeline: Pipeline, sample: Sample, folder: Path) -> list[str]:
    """Translate a sample and compare; return what differs, one line each."""
    path = folder / sample.artifact
    expected = [
        json.loads(line) for line in (folder / sample.expect).read_text(encoding="utf-8").splitlines() if line
    ]
    found: list[dict[str, object]] = []
    with path.open("rb") as artifact:
        for row, delta, refused in pipeline.translated(artifact, "sample"):
            if refused is not None:
                found.append({"position": row.position, "refused": refused.reason})
            elif delta is None:
                found.append({"position": row.position, "ignored": True})
            else:
                found.append({"position": row.position, **said(delta)})
    problems = [
        f"{sample.artifact}: row {mine.get('position')}: {mine} instead of {theirs}"
        for mine, theirs in zip(found, expected, strict=False)
        if mine != theirs
    ]
    if len(found) != len(expected):
        problems.append(f"{sample.artifact}: {len(found)} rows instead of {len(expected)}")
    return problems


def said(delta: pb.Delta) -> dict[str, object]:
    """Return a delta as a sample writes it: the API's names, numbers as numbers; what is always there left out."""
    found: dict[str, object] = MessageToDict(delta, preserving_proto_field_name=True)
    for name in ("source", "author", "event_id"):
        found.pop(name, None)
    for name in ("quantity", "source_sequence", "shipped_quantity"):
        if name in found:
            found[name] = int(str(found[name]))
    found["type"] = type_name(delta)
    return found


def type_name(delta: pb.Delta) -> str:
    """Return RECEIPT and so on."""
    return pb.DeltaType.Name(delta.type).removeprefix("DELTA_TYPE_")
