"""The command line: one root command, `availability`. Start reading at ``availability.cli.root``.

Nothing heavy is imported before a command needs it: `availability --help` answers at once.
"""

from __future__ import annotations


def main() -> int:
    """Run the command line with the process's arguments; return the exit code."""
    from availability.cli.root import run

    return run()
