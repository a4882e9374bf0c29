"""Failures of the ledger's calls, as exceptions; refusals are results."""

from __future__ import annotations


class LedgerError(Exception):
    """Base of what can go wrong between a caller and the ledger."""


class LedgerUnreachable(LedgerError):
    """Redis did not answer. Whether a write in flight counts is unknown: send it again with its ids."""


class LedgerOutOfMemory(LedgerError):
    """Redis is at maxmemory: nothing was done. Releases and commits still work."""


class LedgerRefused(LedgerError):
    """Redis answered with an error that a retry will not mend; the message names it."""


class LedgerFunctionFailed(LedgerError):
    """A function of ours failed inside Redis and undid what it had written: a bug. Nothing was done."""
