"""What travels: a request, an answer, the work between them, and the errors as the shop words them.

No HTTP library here: the server adapts, and a test may call the double without a socket.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

# A JSON object of the shop. Any: it is exactly what json.loads gives, checked where it is read.
Json = dict[str, Any]

JSON_TYPE = "application/json; charset=UTF-8"
HTML_TYPE = "text/html; charset=UTF-8"


class Work(Enum):
    """What a request does between two of its effects."""

    REQUEST = auto()
    """Starting PHP and WordPress: costs the machine."""
    WRITE_ITEM = auto()
    """Storing one product: costs the machine."""
    READ_ITEM = auto()
    """Reading one product: costs the machine."""
    WAIT = auto()
    """Waiting for something else (a lock, a slow upstream): costs nobody, takes time."""


@dataclass(frozen=True, slots=True)
class Step:
    """Work of a request: ``count`` times its kind, or for WAIT that many seconds."""

    work: Work
    count: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request as it arrived. ``url`` is the path with the query, header names are lower case."""

    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    tls: bool = True


@dataclass(slots=True, kw_only=True)
class Answer:
    """An answer on its way out. ``cut`` sends half of the body and then closes the connection."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


class RestError(Exception):
    """A WP_Error: code, message, status and further facts. Carries no more than the shop tells."""

    def __init__(self, code: str, message: str, status: int, **facts: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.facts = facts

    def body(self) -> Json:
        """Return the error as the shop's JSON."""
        return {"code": self.code, "message": self.message, "data": {"status": self.status, **self.facts}}


def invalid_param(name: str, reason: str, code: str = "rest_invalid_type") -> RestError:
    """Return the error of a parameter that the schema refuses."""
    return RestError(
        "rest_invalid_param",
        f"Invalid parameter(s): {name}",
        400,
        params={name: reason},
        details={name: {"code": code, "message": reason, "data": None}},
    )


def no_route() -> RestError:
    """Return the error of a path or method that the shop does not know."""
    return RestError("rest_no_route", "No route was found matching the URL and request method.", 404)
