"""`policy export`, `diff` and `import`: all that operators set as a file, to keep, compare and bring back."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from availability.cli.errors import EXIT_OTHER, EXIT_REFUSED, usage
from availability.cli.options import DEFAULT_TARGET, AsJson, Target, TlsCa, TokenFile, connect
from availability.cli.output import counted, print_json

if TYPE_CHECKING:
    from availability.cli.policy_file import Difference, Kind, Rows
    from availability.client import Client

File = Annotated[Path, typer.Argument(metavar="FILE", help="TOML file; - for stdin or stdout.")]
_SIGNS = {"add": "+", "change": "~", "remove": "-", "left": "="}


def export_file(
    file: File,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Write all that is set as TOML; the same state gives the same file."""
    from availability.cli.policy_file import read_policies, to_toml

    with connect(target, token_file, tls_ca) as client:
        text = to_toml(read_policies(client))
    if str(file) == "-":
        sys.stdout.write(text)
    else:
        file.write_text(text, encoding="utf-8")


def diff_file(
    file: File,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> int:
    """Show where a file differs from what is set; exit code 1 where it does."""
    from availability.cli.policy_file import differences, read_policies

    wanted = _read(file)
    with connect(target, token_file, tls_ca) as client:
        found = differences(read_policies(client), wanted)
    if as_json:
        print_json([_plain(one) for one in found])
    else:
        for one in found:
            _show(one)
        print(counted(len(found), "difference") if found else "no difference")
    return EXIT_OTHER if found else 0


def import_file(
    file: File,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with each change.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would move, and change nothing.")
    ] = False,
    as_json: AsJson = False,
    target: Target = DEFAULT_TARGET,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> int:
    """Bring what is set in line with a file. Each entry is a change of its own; one that is refused stops no other.

    What somebody changed since it was read is refused (ETAG_MISMATCH): run it again.
    """
    from availability.cli.policy_file import Kind, differences, read_policies

    wanted = _read(file)
    results: list[dict[str, Any]] = []
    with connect(target, token_file, tls_ca) as client:
        for one in differences(read_policies(client), wanted):
            result = {**_plain(one), **_settle(client, one, reason, dry_run=dry_run)}
            results.append(result)
            if not as_json:
                _show(one)
                print(f"    {_outcome(result, one.kind)}")
    refused = sum("refused" in result for result in results)
    left = sum(result["kind"] == Kind.LEFT for result in results)
    settled = len(results) - refused - left
    if as_json:
        print_json(results)
    else:
        verb = "would be made" if dry_run else "made"
        print(f"{counted(settled, 'change')} {verb}, {refused} refused, {left} left as they are")
    return EXIT_REFUSED if refused else 0


def _settle(client: Client, one: Difference, reason: str, *, dry_run: bool) -> dict[str, Any]:
    """Preview each request of a difference, and (not dry_run) make it; stop at the first that is refused."""
    from availability.cli.policy_file import writes
    from availability.client import ClientError

    told: dict[str, Any] = {"moved_skus": 0, "moved_sellables": 0, "versions": []}
    version = ""
    for write in writes(one):
        request, method = write.request, getattr(client.policies, write.method)
        request.reason = reason
        if version:
            request.etag = version
        try:
            asked = type(request)()
            asked.CopyFrom(request)
            asked.validate_only = True
            preview = client.call(method, asked).preview
            told["moved_skus"] = max(told["moved_skus"], preview.moved_skus)
            told["moved_sellables"] += preview.moved_sellables
            if not dry_run:
                version = client.call(method, request).version
                told["versions"].append(version)
            else:
                request.etag = ""  # the next one of this entry would meet the version that this one makes
        except ClientError as error:
            return {**told, "refused": error.reason, "message": error.message}
    return told


def _outcome(result: dict[str, Any], kind: Kind) -> str:
    if kind == "left":
        return "left as it is: it cannot be removed"
    if "refused" in result:
        return f"REFUSED {result['refused']}: {result['message']}"
    moved = f"{result['moved_sellables']} sellables of {result['moved_skus']} skus"
    if result["versions"]:
        return f"moved {moved}; version {result['versions'][-1]}"
    return f"would move {moved}"


def _read(file: Path) -> dict[str, Rows]:
    from availability.cli.policy_file import PolicyFileError, from_toml

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:  # not 1: that says that the file differs
        raise usage(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise usage(f"{file}: it is no UTF-8 text") from None
    try:
        return dict(from_toml(text))
    except PolicyFileError as error:
        raise usage(f"{file}: {error}") from None


def _show(one: Difference) -> None:
    print(f"{_SIGNS[one.kind]} {one.name}")
    for field, now, wanted in one.fields():
        print(f"    {field}: {_word(now)} → {_word(wanted)}")


def _word(value: Any) -> str:  # Any: what a TOML field holds
    if value is None:
        return "(none)"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list):
        words = (f"{one['units']} × {one['sku']}" if isinstance(one, dict) else str(one) for one in value)
        return "[" + ", ".join(words) + "]"
    return str(value)


def _plain(one: Difference) -> dict[str, Any]:
    return {
        "section": one.section,
        "key": list(one.key),
        "kind": str(one.kind),
        "fields": {
            field: {"now": _json(now), "wanted": _json(wanted)} for field, now, wanted in one.fields()
        },
    }


def _json(value: Any) -> Any:  # Any: JSON's own types
    return value.isoformat() if isinstance(value, datetime) else value
