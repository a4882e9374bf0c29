"""What a failure says to a person, and which exit code it has."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from availability.client import ClientError

EXIT_OTHER, EXIT_USAGE, EXIT_REFUSED, EXIT_UNREACHABLE = 1, 2, 3, 4
EXIT_FORGOTTEN, EXIT_BROKEN = 5, 6
"""Of `audit`: something was forgotten; the ledger's sums do not add up."""

_EXIT_CODES = {
    "INVALID_ARGUMENT": EXIT_USAGE,
    "NOT_FOUND": EXIT_REFUSED,
    "ABORTED": EXIT_REFUSED,
    "FAILED_PRECONDITION": EXIT_REFUSED,
    "OUT_OF_RANGE": EXIT_REFUSED,
    "PERMISSION_DENIED": EXIT_REFUSED,
    "UNAUTHENTICATED": EXIT_REFUSED,
    "UNAVAILABLE": EXIT_UNREACHABLE,
    "DEADLINE_EXCEEDED": EXIT_UNREACHABLE,
    "RESOURCE_EXHAUSTED": EXIT_UNREACHABLE,
}


class Told(NamedTuple):
    """One line for stderr, and the exit code."""

    text: str
    exit_code: int


class CommandError(Exception):
    """A command's own refusal: a reason, a sentence, an exit code."""

    def __init__(self, reason: str, message: str, exit_code: int = EXIT_OTHER) -> None:
        super().__init__(f"{reason}: {message}")
        self.exit_code = exit_code


def usage(message: str) -> CommandError:
    """Make the error of arguments that cannot be understood."""
    return CommandError("usage", message, EXIT_USAGE)


def told(error: Exception) -> Told | None:
    """Return the line for a foreseen failure; None for a bug."""
    if isinstance(error, CommandError):
        return Told(_one_line(str(error)), error.exit_code)
    client = sys.modules.get("availability.client")  # not loaded: then it is none of its errors
    if client is not None and isinstance(error, client.ClientError):
        return _told_by_server(error)
    if type(error).__module__.split(".")[0] in (
        "availability",
        "ingest",
        "publisher",
    ):  # our parts' own errors hold a sentence for people
        reason = getattr(error, "reason", "")
        return Told(_one_line(f"{reason}: {error}" if reason else f"error: {error}"), EXIT_OTHER)
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return Told(_one_line(f"error: {what}{error.strerror or error}"), EXIT_OTHER)
    return None


def _told_by_server(error: ClientError) -> Told:
    exit_code = _EXIT_CODES.get(error.code, EXIT_OTHER)
    message = error.message
    if error.reason == "UNAVAILABLE":  # gRPC's own word, not the server's: keep what a person can use
        last = re.split(r": ", _one_line(message))[-1]
        return Told(
            f"UNREACHABLE: no server at {error.metadata.get('target', 'the target')} ({last})", exit_code
        )
    return Told(_one_line(f"{error.reason}: {message}"), exit_code)


def _one_line(text: str) -> str:
    return "; ".join(" ".join(line.split()) for line in text.splitlines() if line.strip()).replace(":;", ":")
