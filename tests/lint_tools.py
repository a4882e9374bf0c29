"""Tools of others that check deploy/: where they are, and what their absence means.

Those of PyPI come with the extra `dev`. Others are looked for on PATH and in the folders of AVAIL_LINT_TOOLS, where
.ci/run puts them. With AVAIL_LINT_REQUIRED=1 (the checks of a change) an absent tool is a failure, else its test is
skipped and says what is missing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

TIMEOUT_S = 60


def tool(name: str) -> str:
    """Return the path of a program. Skips the test, or fails it, where there is none."""
    folders = [str(Path(sys.executable).parent), *os.environ.get("AVAIL_LINT_TOOLS", "").split(os.pathsep)]
    found = shutil.which(name, path=os.pathsep.join([*filter(None, folders), os.environ.get("PATH", "")]))
    if found is None:
        _absent(f"{name} is not here")
    return found


def module(name: str) -> ModuleType:
    """Import a module of the extra `dev`. Skips the test, or fails it, where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        _absent(f"{name} is not installed (extra dev)")


def installed(name: str) -> None:
    """Skip the test, or fail it, where a library of the extra `dev` is not installed. Does not import it."""
    if importlib.util.find_spec(name) is None:
        _absent(f"{name} is not installed (extra dev)")


def _absent(what: str) -> NoReturn:
    if os.environ.get("AVAIL_LINT_REQUIRED") == "1":
        pytest.fail(f"{what}, and AVAIL_LINT_REQUIRED says that it must be: see .ci/run")
    pytest.skip(f"{what}: not linted here")


def passes(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a tool; fail with what it says unless it ends with 0. Returns what it says."""
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, f"{' '.join(map(str, command))}\n{said}"
    return said
