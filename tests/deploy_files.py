"""What deploy/ says, read once: commands of ours, variables, documents. Shared by the tests of deploy/."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import BaseModel

from availability.cli.root import app
from availability.config import ENV_FILE_NAME, ENV_PREFIX, NESTED, Settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service")) + sorted((DEPLOY / "systemd").glob("*.timer"))
OURS = ("availability-server", "availability-worker")
"""Images whose entry point is the command `availability`."""


@cache
def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return [one for one in yaml.safe_load_all(path.read_text("utf-8")) if one]


@cache
def compose() -> dict[str, Any]:
    """Return compose.yaml, its anchors resolved."""
    return documents(DEPLOY / "compose.yaml")[0]


@cache
def kubernetes() -> list[dict[str, Any]]:
    """Return every document of Kubernetes."""
    return [one for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) for one in documents(path)]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (kind/name, pod template) of all that runs in Kubernetes."""
    for one in kubernetes():
        spec = one.get("spec", {})
        if one["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if "template" in spec:
            yield f"{one['kind']}/{one['metadata']['name']}", spec["template"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, container) of all that runs in Kubernetes."""
    for where, template in pods():
        for container in template["spec"]["containers"] + template["spec"].get("initContainers", []):
            yield where, container


def unit(path: Path) -> list[tuple[str, str, str]]:
    """Return (section, name, value) of a systemd unit, continued lines joined."""
    section, found = "", []
    for line in path.read_text("utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and line[0] not in "#;":
            name, _, value = line.partition("=")
            found.append((section, name, value))
    return found


def environment(path: Path) -> dict[str, str]:
    """Return the variables that a unit sets."""
    values = [value for _, name, value in unit(path) if name == "Environment"]
    return dict(pair.split("=", 1) for value in values for pair in shlex.split(value))


# --- Commands ---------------------------------------------------------------------------------------------


def our_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield (where, words after `availability`) of every command of ours that deploy/ starts or tells a person."""
    for name, service in compose()["services"].items():
        if service["image"].split(":")[0] in OURS:
            yield f"compose {name}", [str(word) for word in service.get("command", ["serve"])]
    for where, container in containers():
        if container["image"].split(":")[0] in OURS:
            yield where, [str(word) for word in container["args"]]
    for path in UNITS:
        for _, name, value in unit(path):
            if name.startswith("Exec") and "/availability" in value.split()[0]:
                yield path.name, shlex.split(value)[1:]
    for line in (DEPLOY / "Dockerfile").read_text("utf-8").splitlines():
        found = re.search(r'CMD (\["availability",.*\])$', line)
        if found:
            yield "Dockerfile", yaml.safe_load(found[1])[1:]
    for path in [DEPLOY / "README.md", *sorted((DEPLOY / "runbooks").glob("*.md"))]:
        for text in _told(path.read_text("utf-8")):
            yield path.name, text


def _told(text: str) -> Iterator[list[str]]:
    for found in re.finditer(r"`availability ([^`]+)`", text):
        yield shlex.split(found[1])
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for at, word in enumerate(words):
                # A word that a command begins with: it is a user's name, a group's and a database's too.
                begins = at == 0 or words[at - 1] in ("&&", "|", "sudo") or "=" in words[at - 1]
                if begins and word.rpartition("/")[2] == "availability" and at + 1 < len(words):
                    end = next(
                        (n for n, w in enumerate(words) if n > at and w in ("|", ">", "&&")), len(words)
                    )
                    yield words[at + 1 : end]
                    break


@cache
def root() -> Any:  # Any: of the click that typer brings with it
    """Return the command `availability`; making it takes a second."""
    return typer.main.get_command(app)


def problem_of(words: list[str]) -> str:
    """Say what of a command does not exist; "" where all of it does."""
    command = root()
    given = list(words)
    while hasattr(command, "commands"):
        if not given or given[0].startswith("-"):
            break
        name = given.pop(0)
        found = command.commands.get(name)
        if found is None:
            return f"no command {name!r} in {command.name}"
        command = found
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    known.add("--help")
    for word in given:
        if (
            word.startswith("-")
            and len(word) > 1
            and not word[1:2].isdigit()
            and word.split("=")[0] not in known
        ):
            return f"no option {word!r} of {command.name}"
    arguments = [one for one in command.params if one.param_type_name == "argument" and one.required]
    if hasattr(command, "commands") and "--help" not in given:
        return f"{command.name} wants a command"
    if len([word for word in given if not word.startswith("-")]) < len(arguments):
        return f"{command.name} wants {len(arguments)} arguments"
    return ""


# --- Settings ---------------------------------------------------------------------------------------------


@cache
def known_variables() -> frozenset[str]:
    """Return every variable that our programs read."""
    found = {ENV_FILE_NAME, "AVAIL_TOKEN", *_of_settings(Settings, ENV_PREFIX)}
    waiting = [root()]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        for parameter in command.params:
            names = parameter.envvar or ()
            found.update([names] if isinstance(names, str) else names)
    return frozenset(found)


def _of_settings(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _of_settings(kind, f"{prefix}{name.upper()}{NESTED}")
        else:
            yield prefix + name.upper()
