"""``_fields``: which parts of an answer the caller wants, by WordPress' rules, the odd ones included.

A list is filtered item by item; inside an object a list is an array with the keys 0, 1, 2 …, so that a batch answer
can be trimmed only as ``update.0.id``, while ``update.id`` finds nothing and ``id`` leaves an empty list.
"""

from __future__ import annotations

from typing import Any

Wanted = dict[str, Any]


def wanted_fields(raw: object) -> Wanted | None:
    """Return the tree of wanted names from a comma list or a list, or None where all are wanted."""
    if isinstance(raw, str):
        names = [part.strip() for part in raw.split(",")]
    elif isinstance(raw, list):
        names = [str(part).strip() for part in raw]
    else:
        return None
    names = [name for name in names if name]
    if not names:
        return None
    tree: Wanted = {}
    for name in names:
        level = tree
        for part in name.split("."):
            level = level.setdefault(part, {})
    return tree


def trimmed(body: Any, wanted: Wanted | None) -> Any:
    """Return the part of a JSON value that is wanted. ``_links`` of a single object are never trimmed away."""
    if wanted is None:
        return body
    if isinstance(body, list):
        return [_kept(item, wanted) for item in body]
    if not isinstance(body, dict):
        return body
    kept = _kept(body, wanted)
    if "_links" in body:
        kept = {**(kept if isinstance(kept, dict) else {}), "_links": body["_links"]}
    return kept


def _kept(value: Any, wanted: Wanted) -> Any:
    """Return what is wanted of an object or of a list inside one; nothing at all is PHP's empty array."""
    if not wanted:
        return value
    if isinstance(value, list):
        pairs = {str(index): item for index, item in enumerate(value)}
    elif isinstance(value, dict):
        pairs = value
    else:
        return value
    kept = {name: _kept(item, wanted[name]) for name, item in pairs.items() if name in wanted}
    if not kept:
        return []
    if isinstance(value, list) and list(kept) == [str(index) for index in range(len(kept))]:
        return list(kept.values())
    return kept
