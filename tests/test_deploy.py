"""deploy/ is sound: linted by the tools of each format, and everything that it names exists in the code."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from availability.cli.options import DEFAULT_TARGET
from availability.config import Settings, load_settings
from availability.ledger.embedded import find_server
from availability.ledger.preflight import inspect
from availability.service.auth import list_tokens
from availability.service.health import LIVENESS, OVERALL, service_checks
from ingest.reconcile.settings import read_snapshots
from ingest.settings import read_source
from publisher.settings import read_shops
from tests.deploy_files import (
    DEPLOY,
    OURS,
    ROOT,
    UNITS,
    compose,
    containers,
    documents,
    environment,
    known_variables,
    kubernetes,
    our_commands,
    pods,
    problem_of,
    unit,
)
from tests.lint_tools import module, passes, tool

GRPC_PORT = int(DEFAULT_TARGET.rpartition(":")[2])
METRICS_PORT = 9464
ELSEWHERE = {22, 53, 443, 5432}
"""Ports of what is not ours: SSH, DNS, HTTPS, PostgreSQL."""
EXPOSURE_MAX = 20
"""Of systemd-analyze security, in tenths: 2.0 of 10."""


# --- Tools of the formats ---------------------------------------------------------------------------------


def test_yaml_is_clean() -> None:
    """yamllint finds nothing, in any file of YAML."""
    module("yamllint")
    passes(tool("yamllint"), "--strict", "-c", DEPLOY / ".yamllint.yaml", DEPLOY)


def test_the_dockerfile_is_clean() -> None:
    """hadolint finds nothing."""
    passes(tool("hadolint"), "--failure-threshold", "style", DEPLOY / "Dockerfile")


def test_kubernetes_knows_every_field() -> None:
    """Each document is of its schema, strictly: a misspelt field is an error."""
    checker = module("kubernetes_validate")
    found = kubernetes()
    assert len(found) >= 10
    for document in found:
        for version in ("1.31", "1.37"):  # the oldest that is still supported somewhere, and the newest known
            checker.validate(document, version, strict=True)


def test_kustomize_makes_of_it_what_kubernetes_takes(tmp_path: Path) -> None:
    """kubectl renders it, every document is valid, and who is named by a reference is there."""
    checker = module("kubernetes_validate")
    rendered = passes(tool("kubectl"), "kustomize", DEPLOY)
    found = list(yaml.safe_load_all(rendered))
    assert len(found) > len(kubernetes())  # the config maps are made
    for document in found:
        checker.validate(document, "1.37", strict=True)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "availability"
    maps = {one["metadata"]["name"] for one in found if one["kind"] == "ConfigMap"}
    named = set(re.findall(r"configMap:\n\s+name: (\S+)", rendered))
    assert named <= maps


def test_kustomize_names_exactly_the_files() -> None:
    """Every file of kubernetes/ is a resource, every resource and generated file is there."""
    (found,) = documents(DEPLOY / "kustomization.yaml")
    assert sorted(found["resources"]) == sorted(
        str(path.relative_to(DEPLOY)) for path in (DEPLOY / "kubernetes").iterdir()
    )
    generated = {
        one["name"]: [entry.rpartition("=")[2] for entry in one["files"]]
        for one in found["configMapGenerator"]
    }
    for files in generated.values():
        for name in files:
            assert (DEPLOY / name).is_file()
    named = {
        volume["configMap"]["name"]
        for _, pod in pods()
        for volume in pod["spec"]["volumes"]
        if "configMap" in volume
    }
    assert named == set(generated)
    images = {container["image"] for _, container in containers()}
    assert (
        {one["name"] for one in found["images"]} == {name for name in images if ":" not in name} == set(OURS)
    )


def test_units_are_sound_and_hardened(tmp_path: Path) -> None:
    """systemd finds nothing wrong, and rates each service's exposure at 2.0 of 10 or less."""
    analyze = tool("systemd-analyze")
    for path in UNITS:
        text = path.read_text("utf-8")
        there = re.sub(r"(?m)^(Exec\w+)=/opt/availability/bin/availability", r"\1=/bin/true", text)
        (tmp_path / path.name).write_text(there)
    said = passes(analyze, "verify", "--man=no", *(tmp_path / path.name for path in UNITS))
    assert not said.strip(), said  # what is ignored is only a warning there
    for path in UNITS:
        if path.suffix == ".service":
            exposure = ("security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE_MAX}")
            passes(analyze, *exposure, tmp_path / path.name)


# --- Redis ------------------------------------------------------------------------------------------------


def test_the_distributions_unit_may_write_what_redis_is_told_to(tmp_path: Path) -> None:
    """The drop-in makes the folder of the data and that of the socket; systemd knows what it says."""
    found = {name: value for _, name, value in unit(DEPLOY / "systemd" / "ledger.conf")}
    settings = (DEPLOY / "redis" / "valkey-single-strict.conf").read_text("utf-8")
    assert re.search(rf"(?m)^dir /var/lib/{found['StateDirectory']}$", settings)
    assert re.search(rf"(?m)^unixsocket /run/{found['RuntimeDirectory']}/", settings)
    (tmp_path / "redis-server.service").write_text("[Service]\nExecStart=/bin/true\nUser=daemon\n")
    (tmp_path / "redis-server.service.d").mkdir()
    (tmp_path / "redis-server.service.d" / "availability.conf").write_text(
        (DEPLOY / "systemd" / "ledger.conf").read_text("utf-8").replace("Group=availability", "Group=daemon")
    )
    said = passes(tool("systemd-analyze"), "verify", "--man=no", tmp_path / "redis-server.service")
    assert not said.strip(), said


@pytest.fixture
def redis_conf(tmp_path: Path) -> Path:
    """The settings of Redis as they would lie in /etc/valkey."""
    for path in (DEPLOY / "redis").glob("*.conf"):
        text = path.read_text("utf-8").replace("/etc/valkey/", f"{tmp_path}/")
        (tmp_path / path.name).write_text(text.replace("/var/lib/availability/valkey", str(tmp_path)))
    return tmp_path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Redis:
    """A Redis of a settings file, on a port of its own, with what a test must change of it."""

    def __init__(self, folder: Path, name: str, *more: str) -> None:
        self.port = free_port()
        data = folder / f"data-{self.port}"
        data.mkdir()
        # A unix socket's path has 108 bytes at most, and pytest's folders are long.
        arguments = ["--port", str(self.port), "--dir", str(data), "--unixsocket", ""]
        with (data / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [find_server().path, str(folder / name), *arguments, "--bind", "127.0.0.1", *more],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.log = data / "log"

    def wait(self, text: str) -> None:
        """Wait until it has said something. It ends itself where a setting is wrong."""
        for _ in range(400):
            if text in self.log.read_text("utf-8", "replace"):
                return
            try:
                self.process.wait(0.025)
            except subprocess.TimeoutExpired:
                continue
            break
        raise AssertionError(self.log.read_text("utf-8", "replace"))


@pytest.fixture
def start(redis_conf: Path) -> Iterator[Any]:
    started: list[Redis] = []

    def run(name: str, *more: str) -> Redis:
        started.append(Redis(redis_conf, name, *more))
        return started[-1]

    yield run
    for one in started:
        one.process.kill()
        one.process.wait()


def test_redis_takes_single_strict_and_the_doctor_is_content(start: Any, redis_conf: Path) -> None:
    """Redis starts with it, with the password in a file that it includes, and the profile's checks pass."""
    (redis_conf / "auth.conf").write_text("requirepass of-the-test\n")
    redis = start("valkey-single-strict.conf", "--include", str(redis_conf / "auth.conf"))
    redis.wait("Ready to accept connections")
    found = inspect(f"redis://:of-the-test@127.0.0.1:{redis.port}/0", "single-strict")
    assert [one for one in found if one.severity != "ok"] == []
    (refused,) = inspect(f"redis://127.0.0.1:{redis.port}/0", "single-strict")
    assert refused.severity == "error"


def test_redis_takes_ha_with_a_replica_and_a_sentinel(start: Any, redis_conf: Path) -> None:
    """Primary and replica of one file; the checks of `ha` pass once the replica is attached; a Sentinel watches."""
    primary = start("valkey-ha.conf")
    primary.wait("Ready to accept connections")
    assert "error" in {one.severity for one in inspect(f"redis://127.0.0.1:{primary.port}/0", "ha")}
    replica = start("valkey-ha.conf", "--replicaof", f"127.0.0.1 {primary.port}")
    replica.wait("Finished with success")
    for _ in range(100):
        found = inspect(f"redis://127.0.0.1:{primary.port}/0", "ha")
        if "error" not in {one.severity for one in found}:
            break
        with pytest.raises(subprocess.TimeoutExpired):
            primary.process.wait(0.05)
    assert [one for one in found if one.severity == "error"] == []
    # One replica: whoever is promoted would have none, and take no writes.
    assert [one.severity for one in found if one.what == "replicas"] == ["warning"]
    second = start("valkey-ha.conf", "--replicaof", f"127.0.0.1 {primary.port}")
    second.wait("Finished with success")
    for _ in range(100):
        found = inspect(f"redis://127.0.0.1:{primary.port}/0", "ha")
        if "warning" not in {one.severity for one in found if one.what == "replicas"}:
            break
        with pytest.raises(subprocess.TimeoutExpired):
            primary.process.wait(0.05)
    assert [one.severity for one in found if one.what == "replicas"] == ["ok"]
    sentinel = (redis_conf / "sentinel.conf").read_text()
    sentinel = sentinel.replace("valkey-1 6379", f"127.0.0.1 {primary.port}")
    sentinel = re.sub(r"(?m)^(port|dir|logfile) .*$", "", sentinel)
    (redis_conf / "sentinel.conf").write_text(sentinel)
    watcher = start("sentinel.conf", "--sentinel")
    watcher.wait("+monitor master availability-ledger")


def test_redis_takes_the_cluster_file(start: Any) -> None:
    """Redis starts as a node of a cluster."""
    start("valkey-cluster.conf", "--cluster-port", str(free_port())).wait("Ready to accept connections")


def test_every_redis_setting_has_a_reason() -> None:
    """Above each block of settings stands a comment: nothing is copied without knowing why."""
    for path in (DEPLOY / "redis").glob("*.conf"):
        reasoned = False
        for line in path.read_text("utf-8").splitlines():
            if line.startswith("#"):
                reasoned = not line.startswith("# ---")
            elif not line:
                reasoned = False
            else:
                assert reasoned, f"{path.name}: {line}"


# --- What is named exists ---------------------------------------------------------------------------------


def test_every_command_exists() -> None:
    """Commands, options and arguments of images, units, manifests, runbooks and README are the code's."""
    found = list(our_commands())
    started = {" ".join(word for word in words[:2] if not word.startswith("-")) for _, words in found}
    assert {"serve", "ingest run", "publish run", "historian run", "reconcile nightly"} <= started
    problems = {f"{where}: {' '.join(words)}": problem_of(words) for where, words in found}
    assert {where: problem for where, problem in problems.items() if problem} == {}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["serve", "--workers", "2"], False),
        (["serve", "--worker", "2"], True),
        (["ingest", "runs"], False),
        (["ingest", "ruin"], True),
        (["ingest", "gap"], True),
        (["nothing"], True),
    ],
)
def test_the_check_of_commands_sees(words: list[str], problem: bool) -> None:
    """A misspelt command or option is found, a right one is not."""
    assert bool(problem_of(words)) is problem


def test_every_variable_exists() -> None:
    """AVAIL_… of deploy/ are settings or options; a misspelt one would be no setting at all."""
    named: dict[str, str] = {}
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix != ".json" and "secrets" not in path.parts:
            for name in re.findall(r"\bAVAIL_[A-Z0-9_]+\b", path.read_text("utf-8")):
                named[name] = path.name
    assert len(named) > 8
    assert {name: where for name, where in named.items() if name not in known_variables()} == {}


def _server_environments() -> Iterator[tuple[str, dict[str, str]]]:
    dockerfile = (DEPLOY / "Dockerfile").read_text("utf-8")
    image = dict(re.findall(r"\b(AVAIL_\w+)=(\S+)", dockerfile))
    yield "compose", image | compose()["services"]["server-1"]["environment"]
    for where, container in containers():
        if container.get("args") == ["serve"]:
            yield (
                where,
                {one["name"]: one.get("value", "redis://:x@valkey:6379/0") for one in container["env"]},
            )
    yield "systemd", environment(DEPLOY / "systemd" / "availability-server.service")


@pytest.mark.parametrize("where", ["compose", "Deployment/availability-server", "systemd"])
def test_the_server_takes_its_settings(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that a server gets are settings with valid values; calls need tokens in each."""
    for name in [name for name in os.environ if name.startswith("AVAIL_")]:
        monkeypatch.delenv(name)
    for name, value in dict(_server_environments())[where].items():
        if name.startswith("AVAIL_") and name != "AVAIL_CONFIG":
            monkeypatch.setenv(name, value)
    settings: Settings = load_settings()
    assert settings.redis.profile == "single-strict"
    assert settings.auth.tokens_file is not None
    assert not settings.auth.no_auth
    assert settings.metrics.listen.endswith(f":{METRICS_PORT}")


def test_ports_are_the_codes_and_agree() -> None:
    """Services, probes, policies and scrapes name ports that a container has; 7443 is where clients look."""
    ports: dict[str, dict[str, int]] = {}
    for where, container in containers():
        ports[where] = {one["name"]: one["containerPort"] for one in container.get("ports", ())}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            for kind in ("grpc", "tcpSocket", "httpGet"):
                if kind in container.get(probe, {}):
                    port = container[probe][kind]["port"]
                    assert port in ports[where] or port in ports[where].values(), f"{where}: {probe}"
    assert ports["Deployment/availability-server"]["grpc"] == GRPC_PORT
    every = {number for named in ports.values() for number in named.values()}
    labels = {str(pod["metadata"]["labels"]): where for where, pod in pods()}
    for one in kubernetes():
        if one["kind"] == "Service":
            where = labels[str(one["spec"]["selector"])]
            for port in one["spec"]["ports"]:
                assert port["targetPort"] in ports[where]
                assert port["port"] == ports[where][port["targetPort"]]
        if one["kind"] == "NetworkPolicy":
            rules = [*one["spec"].get("ingress", ()), *one["spec"].get("egress", ())]
            numbers = {port["port"] for rule in rules for port in rule.get("ports", ())}
            assert numbers <= every | ELSEWHERE, one["metadata"]["name"]
    for where, pod in pods():
        if "prometheus.io/port" in pod["metadata"].get("annotations", {}):
            assert (
                int(pod["metadata"]["annotations"]["prometheus.io/port"])
                == ports[where]["metrics"]
                == METRICS_PORT
            )
    for name, service in compose()["services"].items():
        if service["image"].startswith(OURS):
            listen = service["environment"].get("AVAIL_METRICS__LISTEN", f"0.0.0.0:{METRICS_PORT}")
            assert listen == f"0.0.0.0:{METRICS_PORT}", name
    dockerfile = (DEPLOY / "Dockerfile").read_text("utf-8")
    assert f"AVAIL_LISTEN=0.0.0.0:{GRPC_PORT}" in dockerfile
    assert f"AVAIL_METRICS__LISTEN=0.0.0.0:{METRICS_PORT}" in dockerfile


def test_units_of_one_machine_have_metrics_ports_of_their_own() -> None:
    """No two units listen at one port."""
    listens = [listen for path in UNITS if (listen := environment(path).get("AVAIL_METRICS__LISTEN"))]
    assert len(listens) == len(set(listens)) >= 2


def test_probes_ask_services_that_the_server_knows() -> None:
    """A health service that nobody knows would fail for ever."""
    known = {OVERALL, LIVENESS, *service_checks(lambda: True, lambda: True)}
    asked = {
        container[probe]["grpc"].get("service", OVERALL)
        for _, container in containers()
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        if "grpc" in container.get(probe, {})
    }
    assert asked == {"availability.v1.AvailabilityService", LIVENESS}
    assert asked <= known
    dockerfile = (DEPLOY / "Dockerfile").read_text("utf-8")
    assert set(re.findall(r'"--service", "([^"]+)"', dockerfile)) <= known


def test_the_example_sources_are_some() -> None:
    """What compose and Kubernetes mount is read by ingest: all of it, each by its own name."""
    names = {path.stem: read_source(path).source for path in (DEPLOY / "sources").glob("*.toml")}
    assert names == {name: name for name in names} != {}
    (found,) = documents(DEPLOY / "kustomization.yaml")
    (mounted,) = [one["files"] for one in found["configMapGenerator"] if one["name"] == "sources"]
    assert mounted == sorted(f"sources/{name}.toml" for name in names)


def test_who_opens_a_door_has_a_source_for_it() -> None:
    """`ingest run --http` ends at once where no source has a webhook; its secret is where it is mounted."""
    opened = [
        where for where, words in our_commands() if words[:2] == ["ingest", "run"] and "--http" in words
    ]
    assert len(opened) == 3  # compose, Kubernetes, systemd
    hooks = [read_source(path).webhook for path in (DEPLOY / "sources").glob("*.toml")]
    places = {str(hook.secret_file) for hook in hooks if hook is not None}
    assert places
    mounted = [one for one in compose()["services"]["ingest"]["secrets"] if isinstance(one, dict)]
    assert places == {one["target"] for one in mounted}
    (container,) = [one for _, one in containers() if one["name"] == "ingest"]
    (keys,) = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "webhook-keys"]
    assert {place.rpartition("/")[0] for place in places} == {keys}


def test_the_example_snapshot_is_one() -> None:
    """What Kubernetes mounts is read by reconciliation; its folder lies in the volume that is mounted."""
    snapshot = read_snapshots(DEPLOY / "snapshots")["wms"]
    (job,) = [container for _, container in containers() if container["name"] == "reconcile"]
    places = [mount["mountPath"] for mount in job["volumeMounts"]]
    assert any(str(snapshot.files.folder).startswith(f"{place}/") for place in places)


def test_the_example_shop_is_one() -> None:
    """What compose and Kubernetes mount is read by the publisher; its keys are where they are mounted."""
    shop = read_shops(DEPLOY / "shops" / "shops.toml")["web"]
    places = {str(place.file) for place in (shop.key, shop.secret) if place is not None}
    mounted = [one for one in compose()["services"]["publisher"]["secrets"] if isinstance(one, dict)]
    assert places == {one["target"] for one in mounted}
    (container,) = [one for _, one in containers() if one["name"] == "publisher"]
    (keys,) = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "keys"]
    assert {place.rpartition("/")[0] for place in places} == {keys}


# --- Promises ---------------------------------------------------------------------------------------------


def test_nothing_runs_as_root_or_writes_its_image() -> None:
    """Every pod: no root, no privilege, no capability, nothing writable but its volumes, limited memory."""
    for where, pod in pods():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True, where
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert pod["spec"]["automountServiceAccountToken"] is False, where
    for where, container in containers():
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False, where
        assert own["readOnlyRootFilesystem"] is True, where
        assert own["capabilities"] == {"drop": ["ALL"]}, where
        assert "memory" in container["resources"]["limits"], where
    dockerfile = (DEPLOY / "Dockerfile").read_text("utf-8")
    assert re.search(r"(?m)^USER 10001:10001$", dockerfile)


def test_volumes_of_compose_belong_to_who_writes_them() -> None:
    """The place of each volume of our images is made in the image, for its user; else it would be root's."""
    dockerfile = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    made = re.search(r"install -d -o availability -g availability -m 0750([^&\n]+)", dockerfile)
    assert made is not None
    for name, service in compose()["services"].items():
        for volume in service.get("volumes", ()):
            source, place, *read_only = volume.split(":")
            if service["image"].startswith(OURS) and not source.startswith(".") and not read_only:
                assert place in made[1].split(), f"{name}: {volume}"


def test_images_are_pinned() -> None:
    """Every image of others has a version, none is `latest`; the Python base too."""
    images = [service["image"] for service in compose()["services"].values()]
    images += [container["image"] for _, container in containers()]
    for image in images:
        name, _, tag = image.partition(":")
        assert name in OURS or re.match(r"v?\d+\.\d+", tag), image
    assert re.search(r"(?m)^ARG PYTHON=python:\d+\.\d+\.\d+-slim", (DEPLOY / "Dockerfile").read_text("utf-8"))


def test_secrets_are_references() -> None:
    """No secret's value stands in deploy/: Kubernetes names secrets, compose and units name files."""
    assert "Secret" not in {one["kind"] for one in kubernetes()}
    for where, container in containers():
        for one in container.get("env", ()):
            if re.search(r"URL|PASSWORD|SECRET|DATABASE", one["name"]):
                assert set(one) == {"name", "valueFrom"}, f"{where}: {one['name']}"
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert not re.search(r"\w+://[^\s/:@]*:(?!PASSWORD@)[^\s/@*$\"']+@", path.read_text("utf-8")), (
                path.name
            )
    used = {
        one["source"] if isinstance(one, dict) else one
        for service in compose()["services"].values()
        for one in service.get("secrets", ())
    }
    assert used == set(compose()["secrets"])
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert "deploy/secrets/" in ignored


def test_edited_tokens_reach_the_servers_of_compose() -> None:
    """Their folder is mounted, not the file: an edited file is a new one, and a revoked token would go on counting."""
    for name, service in compose()["services"].items():
        tokens = service.get("environment", {}).get("AVAIL_AUTH__TOKENS_FILE")
        if tokens is not None:
            mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in service["volumes"]}
            assert mounted[tokens.rpartition("/")[0]] == "./secrets/tokens", name


def test_what_the_readme_says_makes_every_secret_of_compose(tmp_path: Path) -> None:
    """Its lines, run as they stand (but for whose the files are), leave each file that compose mounts, and private."""
    readme = (DEPLOY / "README.md").read_text("utf-8")
    (lines,) = re.findall(r"(?ms)^For compose, once:\n\n```sh\n(.*?)^```", readme)
    (tmp_path / "deploy").mkdir()
    helpers = f'sudo() {{ :; }}\navailability() {{ {sys.executable} -m availability "$@"; }}\n'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", helpers + lines], cwd=tmp_path, env=environment, check=True
    )
    files = [tmp_path / "deploy" / one["file"] for one in compose()["secrets"].values()]
    files.append(tmp_path / "deploy" / "secrets" / "tokens" / "tokens.json")
    for path in files:
        assert path.stat().st_size > 0, path
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "deploy" / "secrets").stat().st_mode & 0o077 == 0
    assert {one.id for one in list_tokens(files[-1])} == {"ingest", "publisher"}


def test_the_readme_names_every_secret() -> None:
    """How to make it stands in deploy/README.md: each file of compose and units, each secret of Kubernetes."""
    readme = (DEPLOY / "README.md").read_text("utf-8")
    for one in compose()["secrets"].values():
        assert one["file"].removeprefix("./") in readme, one
    for _, pod in pods():
        for volume in pod["spec"]["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["secretName"] in readme
    for where, container in containers():
        for one in container.get("env", ()):
            if "valueFrom" in one:
                assert one["valueFrom"]["secretKeyRef"]["name"] in readme, where
    for path in UNITS:
        for _, name, value in unit(path):
            if name == "LoadCredential":
                assert value.partition(":")[2] in readme, path.name


def test_the_version_is_the_projects() -> None:
    """Images are tagged with the version that pyproject.toml tells."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    (kustomization,) = documents(DEPLOY / "kustomization.yaml")
    assert {one["newTag"] for one in kustomization["images"]} == {version}
    for service in compose()["services"].values():
        if service["image"].startswith(OURS):
            assert service["image"].endswith(f":{version}")
