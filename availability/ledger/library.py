"""The function library: the Lua files of ``functions/`` as one versioned Redis library.

Its name carries a digest of its source, so servers of two releases can work on one Redis during an upgrade, and a
library with our name and other code is found out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """Source text as loaded, its name, and the prefix of its function names."""

    name: str
    code: str
    function_prefix: str

    def function(self, name: str) -> str:
        """Full name of a function, as FCALL takes it."""
        return self.function_prefix + name


def read_sources() -> list[str]:
    """Texts of the Lua files, in the order of their names."""
    folder = resources.files(__package__) / "functions"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".lua")), key=lambda f: f.name)
    return [f.read_text(encoding="utf-8") for f in files]


def build(sources: list[str]) -> Library:
    """Join sources into a library named by their digest."""
    body = "\n".join(sources)
    version = hashlib.sha256(body.encode()).hexdigest()[:12]
    name = f"availability_{version}"
    return Library(
        name=name,
        code=f"#!lua name={name}\n" + body.replace("@VERSION@", version),
        function_prefix=f"{name}_",
    )


@cache
def packaged() -> Library:
    """The library of this release."""
    return build(read_sources())
