"""Who may import whom, what may happen at import, and what no tracked file may contain.

The table below is the design's layering (CONTRIBUTING.md explains it); a module that no row names is an
error, so that a new part is placed on purpose. Imports are read from the source: nothing is executed, and an
import inside a function or under TYPE_CHECKING counts like any other.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parent.parent
OURS = ("availability", "ingest", "publisher")

# What replica and history may know of the authority: its records, versions and reads; never its writes.
LEDGER_READS = ("availability.ledger.record", "availability.ledger.reader", "availability.ledger.errors")
# What a guest package may use of the server's.
GUEST_PARTS = (
    "availability.client",
    "availability.v1",
    "availability.client_errors",
    "availability.audit",
    "availability.delta_sender",
    "availability.encoded_deltas",
    "availability.replica",
    "availability.history",
    "availability.domain",
    "availability.telemetry",
)

# module prefix → prefixes of ours that it may import besides itself. The longest matching prefix is the rule.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "availability": (),  # the package's own __init__: importing it pulls nothing in
    "availability.v1": (),
    "availability.domain": (),
    "availability.telemetry": (),
    "availability.config": ("availability.domain",),
    "availability.ledger": ("availability.domain",),
    "availability.replica": ("availability.domain", *LEDGER_READS),
    "availability.history": (
        "availability.domain",
        "availability.replica",
        "availability.telemetry",
        *LEDGER_READS,
    ),
    "availability.history.app": OURS,
    "availability.service": (
        "availability.v1",
        "availability.domain",
        "availability.ledger",
        "availability.replica",
        "availability.history",
        "availability.telemetry",
    ),
    "availability.client": (
        "availability.client_errors",
        "availability.client_snapshots",
        "availability.delta_sender",
        "availability.v1",
        "availability.domain",
    ),
    "availability.client_errors": (),
    "availability.client_snapshots": ("availability.client_errors", "availability.v1"),
    "availability.audit": (
        "availability.client",
        "availability.client_errors",
        "availability.v1",
        "availability.domain",
    ),
    "availability.delta_sender": (
        "availability.client_errors",
        "availability.encoded_deltas",
        "availability.v1",
        "availability.domain",
    ),
    "availability.encoded_deltas": ("availability.domain", "availability.v1"),
    # Composition roots: they read the configuration, build the parts and hand them to each other.
    "availability.app": OURS,
    "availability.cli": OURS,
    "availability.workers": (),
    "availability.workers.app": OURS,
    "availability.workers.__main__": OURS,
    "availability.demo": OURS,
    "availability.__main__": OURS,
    "ingest": GUEST_PARTS,
    "ingest.app": ("availability",),
    "publisher": GUEST_PARTS,
    "publisher.testing": (),  # the storefront double: a stand-in for a shop knows nothing of ours
    "publisher.app": ("availability",),
}
ROOTS = tuple(name for name in MAY_IMPORT if name.split(".")[-1] in {"app", "cli", "demo", "__main__"})

# The domain is a calculator: no I/O, no clock, no chance. Of what is not ours it may import numpy and the
# standard library without these.
# fmt: off
DOMAIN_MAY_NOT = frozenset(
    {"asyncio", "concurrent", "io", "logging", "multiprocessing", "os", "pathlib", "random",
     "secrets", "select", "shutil", "socket", "sqlite3", "ssl", "subprocess", "tempfile",
     "threading", "time", "urllib", "uuid"}
)
# fmt: on
DOMAIN_LIBRARIES = frozenset({"numpy"})

# Calls and reads that connect, start something or look at the environment. Fine in a function, not at import.
EFFECTS = re.compile(
    r"""os\.(environ(b)?|getenv(b)?)\b
    | threading\.(Thread|Timer)$
    | concurrent\.futures(\.\w+)?\.\w+Executor$
    | multiprocessing(\.\w+)?\.(Process|Pool)$
    | subprocess\.(run|Popen|call|check_call|check_output)$
    | socket\.(socket|create_connection|create_server)$
    | redis(\.\w+)*\.(\w*Redis|RedisCluster|Sentinel|ConnectionPool|from_url)(\.from_url)?$
    | grpc(\.aio)?\.(server|insecure_channel|secure_channel)$
    | sqlalchemy(\.\w+)*\.create_engine$
    | asyncio\.(run|new_event_loop)$
    | (\w+\.)*\w*Settings$""",
    re.VERBOSE,
)


def test_every_import_follows_the_table() -> None:
    """A part imports only the parts that its row in the table names."""
    assert_none(
        f"{where}: {module} imports {target}"
        for module, path, tree in sources()
        for where, target in imports(module, path, tree)
        if target.split(".")[0] in OURS and not allowed(module, target)
    )


def test_every_module_has_a_row() -> None:
    """A new part of `availability` gets its own row, not the package's."""
    assert_none(
        f"{relative(path)}: no row of MAY_IMPORT names {module}"
        for module, path, _ in sources()
        if rule(module) == "availability" and module != "availability"
    )


def test_only_composition_roots_know_composition_roots() -> None:
    """Whoever imports a root builds things; only roots do."""
    assert_none(
        f"{where}: {module} imports the composition root {target}"
        for module, path, tree in sources()
        if rule(module) not in ROOTS
        for where, target in imports(module, path, tree)
        if any(within(target, root) for root in ROOTS)
    )


def test_the_domain_is_pure() -> None:
    """The domain imports no I/O, no clock, no randomness, and of libraries only numpy."""
    assert_none(
        f"{where}: {module} imports {target}"
        for module, path, tree in sources()
        if within(module, "availability.domain")
        for where, target in imports(module, path, tree)
        for top in [target.split(".")[0]]
        if top in DOMAIN_MAY_NOT
        or (top not in sys.stdlib_module_names and top not in {*OURS, *DOMAIN_LIBRARIES})
    )


def test_nothing_happens_at_import() -> None:
    """Importing a module connects to nothing, starts nothing and reads no environment."""
    assert_none(
        f"{relative(path)}:{line}: {name} at import"
        for _, path, tree in sources()
        for line, name in effects_at_import(tree)
    )


@pytest.mark.parametrize(
    "source",
    [
        "import os\nHOME = os.environ['HOME']",
        "from os import getenv as g\nclass A:\n    home = g('HOME')",
        "from threading import Thread\nThread(target=print).start()",
        "import redis\ndef f(client=redis.Redis()): ...",
        "import redis.asyncio as r\nif True:\n    c = r.Redis.from_url('redis://localhost')",
        "import grpc\n@grpc.insecure_channel('a')\ndef f(): ...",
        "from pydantic_settings import BaseSettings\nclass Settings(BaseSettings): ...\nS = Settings()",
    ],
)
def test_the_import_check_sees(source: str) -> None:
    """The check finds an effect under aliases, in class bodies, defaults, branches and decorators."""
    assert list(effects_at_import(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import os\ndef f():\n    return os.environ['HOME']",
        "import redis\ndef f(client: redis.Redis) -> None: ...",
        "import redis\nCLIENTS: dict[str, redis.Redis] = {}\nKind = redis.Redis | None",
        "from threading import Thread\nmake = lambda: Thread()",
        "from threading import Thread\nif __name__ == '__main__':\n    Thread().start()",
        "from pydantic_settings import BaseSettings\nclass Settings(BaseSettings): ...",
    ],
)
def test_the_import_check_lets_pass(source: str) -> None:
    """Functions, annotations and the script guard do nothing at import."""
    assert not list(effects_at_import(ast.parse(source)))


def test_the_table_decides_by_the_longest_row() -> None:
    """Spot checks of the table, so that a loose edit of it is noticed."""
    assert allowed("availability.service.grpc", "availability.ledger.client")
    assert allowed("availability.replica.tail", "availability.ledger.record")
    assert not allowed("availability.replica.tail", "availability.ledger.client")
    assert not allowed("availability.domain.formula", "availability.v1.stock_pb2")
    assert not allowed("availability.ledger.client", "availability.replica")
    assert not allowed("ingest.files", "publisher.delivery")
    assert not allowed("publisher.app", "ingest.files")
    assert not allowed("ingest.files", "availability.ledger.record")


def test_tracked_files_name_no_machine() -> None:
    """What is committed runs anywhere: no absolute path of somebody's working copy or environment."""
    paths = re.compile(rb"(?<![\w.$}/-])/(?:(?:work|root)/|tmp/venv\b)")
    assert_none(
        f"{name}:{number}: {line.decode(errors='replace').strip()[:120]}"
        for name in tracked_files()
        for number, line in enumerate((PROJECT_ROOT / name).read_bytes().splitlines(), start=1)
        if paths.search(line)
    )


def test_constraints_are_versions_only() -> None:
    """constraints.txt pins versions; addresses, hashes and index options belong to whoever installs."""
    pin = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+(\s*;[^/]+)?")
    lines = (PROJECT_ROOT / "constraints.txt").read_text().splitlines()
    assert_none(
        f"constraints.txt:{number}: {line}"
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.startswith("# ") and not pin.fullmatch(line)
    )


# --- Reading the sources ----------------------------------------------------------------------------------


def sources() -> Iterator[tuple[str, Path, ast.Module]]:
    """Yield (module name, path, syntax tree) of every module that is installed."""
    for package in OURS:
        for path in sorted((PROJECT_ROOT / package).rglob("*.py")):
            parts = path.relative_to(PROJECT_ROOT).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield module, path, ast.parse(path.read_bytes(), filename=str(path))


def imports(module: str, path: Path, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (file:line, imported module) of every import; relative ones are resolved.

    `from a import b` yields `a.b` where that is a module of ours, else `a`.
    """
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            targets = [
                f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base for alias in node.names
            ]
        else:
            continue
        for target in dict.fromkeys(targets):
            yield f"{relative(path)}:{node.lineno}", target


def is_module(name: str) -> bool:
    if name.split(".")[0] not in OURS:
        return False
    place = PROJECT_ROOT.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def effects_at_import(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of each effect that running the module's top level would have."""
    names = aliases(tree)
    for node in at_import(tree):
        if isinstance(node, ast.Call):
            name = dotted(node.func, names)
            if name and EFFECTS.match(name):
                yield node.lineno, f"{name}()"
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            name = dotted(node, names)
            if name in {"os.environ", "os.environb"}:
                yield node.lineno, name


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what is evaluated at import: no function bodies, no annotations, no script guard."""
    yield node
    children: Iterable[ast.AST | None]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        children = [*node.decorator_list, *node.args.defaults, *node.args.kw_defaults]
    elif isinstance(node, ast.Lambda):
        children = [*node.args.defaults, *node.args.kw_defaults]
    elif isinstance(node, ast.AnnAssign):
        children = [node.value]
    elif isinstance(node, ast.If) and "__name__" in ast.dump(node.test):
        children = node.orelse
    else:
        children = ast.iter_child_nodes(node)
    for child in children:
        if child is not None:
            yield from at_import(child)


def aliases(tree: ast.Module) -> dict[str, str]:
    """Return local name → full dotted name for everything imported in the module."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, names)
        return f"{base}.{node.attr}" if base else None
    return None


# --- The table --------------------------------------------------------------------------------------------


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def rule(module: str) -> str:
    """Return the table's longest row that covers the module."""
    return max((prefix for prefix in MAY_IMPORT if within(module, prefix)), key=len)


def allowed(module: str, target: str) -> bool:
    """Say whether the table lets `module` import `target`."""
    row = rule(module)
    if row == "availability":
        return target == "availability"
    own = row.split(".")[0] if row in ROOTS else row
    # The bare package is empty: `from availability import client` is judged by what it names.
    return target == "availability" or any(within(target, prefix) for prefix in (own, *MAY_IMPORT[row]))


# --- Reporting --------------------------------------------------------------------------------------------


def relative(path: Path) -> str:
    return path.relative_to(PROJECT_ROOT).as_posix()


def tracked_files() -> list[str]:
    """Return the names of tracked files that exist as files here."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=PROJECT_ROOT, capture_output=True, check=True, timeout=30
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: nothing is tracked")
    names = [name for name in listing.stdout.decode().split("\0") if name]
    return [name for name in names if (PROJECT_ROOT / name).is_file()]


def assert_none(found: Iterable[str]) -> None:
    """Fail with every finding on a line of its own."""
    findings = list(found)
    if findings:
        pytest.fail("\n".join([f"{len(findings)} found:", *findings]), pytrace=False)
