"""The root command: which commands there are, and how any error becomes one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from availability.cli import (
    audit,
    audit_chain,
    exceptions,
    health,
    historian,
    ingest,
    ingest_operations,
    order,
    past,
    policy,
    policy_files,
    policy_lists,
    publish,
    publish_checks,
    reads,
    reconcile,
    server,
    snapshot,
    token,
    writes,
)
from availability.cli.errors import EXIT_OTHER, EXIT_USAGE, Told, told
from availability.cli.options import CLIENT_CERTIFICATE

app = typer.Typer(
    name="availability",
    help="Real-time stock availability: what can each channel sell now, and holds that never oversell.",
    epilog="Exit codes: 2 usage, 3 refused or insufficient stock, 4 unreachable or overloaded, 1 other;"
    " what else a command answers with stands in its own help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from availability import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(  # noqa: ARG001 -- its callback acts
        False, "--version", callback=_version, is_eager=True, help="Print the version and end."
    ),
    tls_cert: Path | None = typer.Option(
        None,
        "--tls-cert",
        envvar="AVAIL_TLS_CERT",
        help="PEM certificate to show to the server, with --tls-ca.",
    ),
    tls_key: Path | None = typer.Option(None, "--tls-key", envvar="AVAIL_TLS_KEY", help="Its private key."),
) -> None:
    """Take the options of the root itself."""
    CLIENT_CERTIFICATE.set((tls_cert, tls_key))


app.command("serve", rich_help_panel="Server")(server.serve)
app.command("demo", rich_help_panel="Server")(server.demo)
app.command("health", rich_help_panel="Server")(health.health)
app.command("doctor", rich_help_panel="Server")(server.doctor)
app.add_typer(token.app, name="token", rich_help_panel="Server")
app.add_typer(historian.app, name="historian", rich_help_panel="Server")
app.command("get", rich_help_panel="Reading")(reads.get)
app.command("explain", rich_help_panel="Reading")(reads.explain)
app.command("history", rich_help_panel="Reading")(past.history)
app.command("watch", rich_help_panel="Reading")(reads.watch)
app.add_typer(exceptions.app, name="exceptions", rich_help_panel="Reading")
app.add_typer(order.app, name="order", rich_help_panel="Reading")
audit.app.command("verify-chain")(audit_chain.verify_chain)
app.add_typer(audit.app, name="audit", rich_help_panel="Reading")
app.command("reserve", rich_help_panel="Checkout")(writes.reserve)
app.command("commit", rich_help_panel="Checkout")(writes.commit)
app.command("release", rich_help_panel="Checkout")(writes.release)
app.command("adjust", rich_help_panel="Stock and policy")(writes.adjust)
policy.app.command("show")(policy_lists.show)
policy.app.command("list")(policy_lists.list_all)
policy.app.command("export")(policy_files.export_file)
policy.app.command("diff")(policy_files.diff_file)
policy.app.command("import")(policy_files.import_file)
app.add_typer(policy.app, name="policy", rich_help_panel="Stock and policy")
app.add_typer(snapshot.app, name="snapshot", rich_help_panel="Stock and policy")
ingest.app.add_typer(ingest_operations.app)
app.add_typer(ingest.app, name="ingest", rich_help_panel="Stock and policy")
app.add_typer(reconcile.app, name="reconcile", rich_help_panel="Stock and policy")
publish.app.add_typer(publish_checks.app)
app.add_typer(publish.app, name="publish", rich_help_panel="Stock and policy")


def run(args: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code. Every foreseen failure is one line on stderr."""
    try:
        result = app(args=args, prog_name="availability", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.BadParameter as error:
        return _say(Told(f"usage: {_one_line(error.format_message())}", EXIT_USAGE))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has had enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OTHER
    except typer.Abort:
        return 130
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's other usage errors have no public name
        if usage is not None:
            return _say(Told(f"usage: {_one_line(str(usage()))}", EXIT_USAGE))
        line = told(error)
        if line is None:
            raise  # a bug: the traceback is what helps
        return _say(line)


def _say(line: Told) -> int:
    print(line.text, file=sys.stderr, flush=True)
    return line.exit_code


def _one_line(text: str) -> str:
    return " ".join(text.split())
