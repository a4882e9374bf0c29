"""Generate, check and release the wire contract.

Reads proto/availability/v1/*.proto and writes the committed package availability/v1 (messages, gRPC stubs and
their types). Needs the `dev` extra; uses no network. Several steps may be named and run in the order given:

    python proto/generate.py write      generate availability/v1
    python proto/generate.py check      fail when availability/v1 is not what the sources give
    python proto/generate.py lint       fail on buf's lint and format rules (proto/buf.yaml)
    python proto/generate.py breaking   fail when the sources break proto/released.binpb
    python proto/generate.py release    make the sources the new baseline, proto/released.binpb
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent
PROJECT_ROOT = PROTO_ROOT.parent
PACKAGE = Path("availability/v1")
BASELINE = PROTO_ROOT / "released.binpb"
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")
INIT = '"""The wire contract as Python: generated from proto/availability/v1, never edited."""\n'


class StepFailed(Exception):
    """A step found something; the text says what and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    steps: dict[str, Callable[[], None]] = {
        "write": write,
        "check": check,
        "lint": lint,
        "breaking": breaking,
        "release": release,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="+", choices=steps, metavar="step", help=" | ".join(steps))
    for step in parser.parse_args(arguments).steps:
        try:
            steps[step]()
        except StepFailed as failure:
            print(f"proto {step}: {failure}", file=sys.stderr)
            return 1
        print(f"proto {step}: ok")
    return 0


def write() -> None:
    """Generate availability/v1 and remove files whose source is gone."""
    fresh, committed = _generated(), _committed()
    target = PROJECT_ROOT / PACKAGE
    target.mkdir(parents=True, exist_ok=True)
    for name in committed.keys() - fresh.keys():
        (target / name).unlink()
    for name, content in fresh.items():
        if committed.get(name) != content:  # an unchanged file keeps its time, so caches stay warm
            (target / name).write_bytes(content)


def check() -> None:
    """Compare availability/v1 with what the sources give, byte for byte."""
    fresh, committed = _generated(), _committed()
    stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    if stale:
        raise StepFailed(f"{PACKAGE} is stale ({', '.join(stale)}); run: python proto/generate.py write")


def lint() -> None:
    _sources()
    _buf("lint", complaint="the contract breaks the rules of proto/buf.yaml (above)")
    _buf(
        "format",
        "--diff",
        "--exit-code",
        complaint="formatting differs (above); run: buf format --write proto",
    )


def breaking() -> None:
    if not BASELINE.exists():
        raise StepFailed("no baseline proto/released.binpb; make one by: python proto/generate.py release")
    _sources()
    _buf(
        "breaking",
        "--against",
        str(BASELINE),
        complaint="incompatible with the released contract (above); add instead of changing",
    )


def release() -> None:
    """Write the baseline. Source comments and positions stay out: only the contract counts."""
    _sources()
    _buf(
        "build",
        "--exclude-source-info",
        "--output",
        str(BASELINE),
        complaint="the sources do not compile (above)",
    )


def _sources() -> list[str]:
    """Return the paths of the sources, relative to the proto root, in a stable order."""
    names = sorted(path.relative_to(PROTO_ROOT).as_posix() for path in (PROTO_ROOT / PACKAGE).glob("*.proto"))
    if not names:
        raise StepFailed(f"no .proto file under {(PROTO_ROOT / PACKAGE).relative_to(PROJECT_ROOT)}")
    return names


def _generated() -> dict[str, bytes]:
    """Generate into a temporary folder; return file name → content."""
    sources = _sources()
    with tempfile.TemporaryDirectory(prefix="availability-proto-") as folder:
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={PROTO_ROOT}",
            f"--python_out={folder}",
            f"--grpc_python_out={folder}",
            f"--mypy_out=quiet:{folder}",
            f"--mypy_grpc_out=quiet:{folder}",
            *sources,
        ]
        _run(command, complaint="protoc failed (above)")
        written = Path(folder) / PACKAGE
        files = {path.name: path.read_bytes() for path in written.iterdir()}
    return files | {"__init__.py": INIT.encode()}


def _committed() -> dict[str, bytes]:
    folder = PROJECT_ROOT / PACKAGE
    paths = [path for pattern in (*GENERATED, "__init__.py") for path in folder.glob(pattern)]
    return {path.name: path.read_bytes() for path in paths}


def _buf(step: str, *arguments: str, complaint: str) -> None:
    """Run buf on the proto root."""
    buf = shutil.which("buf", path=_search_path())
    if buf is None:
        raise StepFailed("buf is missing; run: pip install -c constraints.txt -e '.[dev]'")
    _run([buf, step, str(PROTO_ROOT), *arguments], complaint=complaint)


def _run(command: list[str], *, complaint: str) -> None:
    environment = os.environ | {"PATH": _search_path()}
    if subprocess.run(command, cwd=PROJECT_ROOT, env=environment, check=False).returncode != 0:
        raise StepFailed(complaint)


def _search_path() -> str:
    """Return PATH with this interpreter's scripts first, so that an inactive venv works too."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


if __name__ == "__main__":
    sys.exit(main())
