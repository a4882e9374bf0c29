"""Alerts, dashboards and runbooks: proved by promtool, about metrics that exist, one page for each alert."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from availability.client import Client
from availability.telemetry.catalogue import catalogue, table
from availability.v1 import stock_pb2
from tests.conftest import serving
from tests.deploy_files import DEPLOY, ROOT, documents
from tests.lint_tools import passes, tool

PROMETHEUS = DEPLOY / "prometheus"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
RUNBOOKS = DEPLOY / "runbooks"
NOT_OF_ALERTS = {"going-live"}
OWNERS = {"platform", "stock", "orders", "feeds", "storefront"}
OTHERS = {"up", "ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes"}
_WORDS = frozenset(
    {"sum", "max", "min", "avg", "count", "by", "without", "rate", "increase", "histogram_quantile"}
    | {"or", "and", "unless", "on", "ignoring", "vector", "bool", "le", "time"}
)


_CLASSES = re.compile(r"(?ms)^class (\w*Metrics|Telemetry)\b.*?:\n(.*?)(?=^class |^def |^@|\Z)")


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def rules() -> list[dict[str, Any]]:
    (found,) = documents(PROMETHEUS / "alerts.yaml")
    return [rule for group in found["groups"] for rule in group["rules"]]


def panels() -> Iterator[tuple[str, str]]:
    """Yield (dashboard: panel, expression) of all queries."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.stem}: {panel['title']}", target["expr"]


def series_of(expression: str) -> set[str]:
    """Return the names of series of a query."""
    found = set(re.findall(r'__name__\s*=~?\s*"([^"]+)"', expression))
    bare = re.sub(r'\{[^}]*\}|"[^"]*"|\[[^\]]*\]|\b(by|without)\s*\([^)]*\)', " ", expression)
    words = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare))
    return found | (words - _WORDS)


def known_series() -> set[str]:
    return OTHERS | {name for one in catalogue() for name in one.series}


def labels_of() -> dict[str, set[str]]:
    return {name: set(one.labels) for one in catalogue() for name in one.series}


def unknown(expression: str) -> set[str]:
    """Return what a query names that no process tells: series, or labels of a series."""
    known = known_series()
    missing = set()
    for name in series_of(expression):
        if any(sign in name for sign in "*|("):
            if not any(re.fullmatch(name, one) for one in known):
                missing.add(name)
        elif name not in known:
            missing.add(name)
    have = labels_of()
    for name, selector in re.findall(r"(availability_\w+)\{([^}]*)\}", expression):
        for label in re.findall(r"(\w+)\s*[=!]~?", selector):
            if label not in have.get(name, set()) | {"job", "instance", "le"}:
                missing.add(f"{name}{{{label}}}")
    return missing


# --- Alerts -----------------------------------------------------------------------------------------------


def test_promtool_takes_rules_and_settings() -> None:
    """Rules and settings are what Prometheus takes, templates included."""
    promtool = tool("promtool")
    passes(promtool, "check", "rules", PROMETHEUS / "alerts.yaml")
    passes(promtool, "check", "config", PROMETHEUS / "prometheus.yml")


def test_every_alert_fires_and_keeps_quiet() -> None:
    """promtool plays series to each alert: it fires on what it is for, with its labels, and not otherwise."""
    passes(tool("promtool"), "test", "rules", "alerts.test.yaml", cwd=PROMETHEUS)
    (played,) = documents(PROMETHEUS / "alerts.test.yaml")
    names = [one["name"] for one in played["tests"]]
    assert sorted(names) == sorted(
        f"{rule['alert']} {what}" for rule in rules() for what in ("fires", "keeps quiet")
    )


def test_every_alert_says_who_acts_and_where_to_read() -> None:
    """Severity, owner, a summary, and the address of its own page."""
    assert len(rules()) >= 30
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["labels"]["owner"] in OWNERS
        assert rule["annotations"]["summary"].endswith(".")
        filled = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        have = {label for name in series_of(rule["expr"]) for label in labels_of().get(name, ())}
        assert filled <= have | {"instance"}, rule["alert"]
        assert rule["annotations"]["runbook_url"] == f"{{{{ $externalLabels.runbooks }}}}/{rule['alert']}.md"


def test_alerts_name_metrics_that_exist() -> None:
    """Series and labels of every rule are told by a process of ours; jobs are scraped."""
    assert {rule["alert"]: missing for rule in rules() if (missing := unknown(rule["expr"]))} == {}
    (settings,) = documents(PROMETHEUS / "prometheus.yml")
    jobs = {one["job_name"] for one in settings["scrape_configs"]}
    named = {job for rule in rules() for job in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert named <= jobs


def test_every_gauge_that_asks_has_an_alert_or_a_panel() -> None:
    """No metric is told for nobody: each is in an alert or on a dashboard."""
    shown = " ".join([*(rule["expr"] for rule in rules()), *(expression for _, expression in panels())])
    unseen = {
        one.name
        for one in catalogue()
        if not any(re.search(rf"\b{name}\b", shown) for name in one.series)
        and not one.name.endswith("_figures_up")
    }
    assert unseen == {f"availability_digest_{what}" for what in ("skus_total", "walk_seconds", "walks_total")}


@pytest.mark.parametrize(
    ("expression", "missing"),
    [
        ("sum(rate(availability_deltas_total[5m]))", set()),
        ("sum(rate(availability_delta_total[5m]))", {"availability_delta_total"}),
        ('availability_deltas_total{outcome="x"}', {"availability_deltas_total{outcome}"}),
        ('{__name__=~"availability_.*_figures_up"}', set()),
        ('{__name__=~"availability_.*_gone"}', {"availability_.*_gone"}),
        ("histogram_quantile(0.9, sum by (le) (rate(availability_ledger_group_size_bucket[5m])))", set()),
    ],
)
def test_the_check_of_names_sees(expression: str, missing: set[str]) -> None:
    """A misspelt metric or label is found, a right one is not."""
    assert unknown(expression) == missing


# --- Runbooks ---------------------------------------------------------------------------------------------


def test_each_alert_has_a_page_and_none_is_left_over() -> None:
    """One page per alert, with what customers notice, where to look and what to do; and one for going live."""
    pages = {path.stem for path in RUNBOOKS.glob("*.md")}
    assert pages == {rule["alert"] for rule in rules()} | NOT_OF_ALERTS
    for rule in rules():
        text = (RUNBOOKS / f"{rule['alert']}.md").read_text("utf-8")
        severity, owner = rule["labels"]["severity"], rule["labels"]["owner"]
        assert text.startswith(f"# {rule['alert']}\n\nSeverity **{severity}**, owner **{owner}**.")
        for heading in ("## What customers notice", "## Where to look", "## What to do"):
            _, _, below = text.partition(heading)
            assert len(below.strip()) > 20, f"{rule['alert']}: {heading}"
        (shown,) = re.findall(r"```promql\n(.*?)\n```", text, re.DOTALL)
        assert "".join(shown.split()) == "".join(rule["expr"].split()), rule["alert"]
        assert set(re.findall(r"\bAvailability[A-Z]\w+\b", text)) <= pages | {"AvailabilityService"}, rule[
            "alert"
        ]


# --- Dashboards -------------------------------------------------------------------------------------------


def test_there_is_a_dashboard_for_operations_and_one_for_business() -> None:
    """Each has an id, a title, a data source to choose, and panels that say what they show and in which unit."""
    assert [path.stem for path in DASHBOARDS] == ["business", "operations"]
    for path in DASHBOARDS:
        board = json.loads(path.read_text("utf-8"))
        assert board["uid"] == f"availability-{path.stem}"
        assert "datasource" in {one["name"] for one in board["templating"]["list"]}
        shown = [panel for panel in board["panels"] if panel["type"] != "row"]
        assert len(shown) > 15
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        assert len({(panel["title"], panel["type"]) for panel in shown}) == len(shown)
        for panel in shown:
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["targets"], panel["title"]
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
            }
            assert at["x"] + at["w"] <= 24
            assert not cells & taken, panel["title"]
            taken |= cells


def test_panels_name_metrics_that_exist() -> None:
    """Series and labels of every query are told by a process of ours."""
    assert {where: missing for where, expression in panels() if (missing := unknown(expression))} == {}


def test_promtool_takes_every_query_of_a_panel(tmp_path: Path) -> None:
    """Each is a query of Prometheus: as recording rules, with Grafana's variables filled in."""
    found = [
        {
            "record": f"panel:{number}",
            "expr": expression.replace("$__rate_interval", "1m").replace("$channel", ".*"),
        }
        for number, (_, expression) in enumerate(panels())
    ]
    path = tmp_path / "panels.json"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": found}]}))
    said = passes(tool("promtool"), "check", "rules", path)
    assert f"{len(found)} rules found" in said


def test_the_table_of_metrics_is_current() -> None:
    """deploy/README.md has what `python -m availability.telemetry.catalogue` prints."""
    readme = (DEPLOY / "README.md").read_text("utf-8")
    assert f"\n{table()}\n\n<!-- end of metrics -->" in readme


def test_a_server_tells_what_happened(unused_port: int) -> None:
    """A real server's scrape: every metric of the catalogue, with what was just done counted once."""
    settings = {"AVAIL_METRICS__LISTEN": f"127.0.0.1:{unused_port}", "AVAIL_DRAIN__NOTICE_MS": "0"}
    with (
        serving(settings=settings) as server,
        Client(server.grpc) as client,
    ):
        event = stock_pb2.Delta(
            source="wms", event_id="1", type=stock_pb2.DELTA_TYPE_RECEIPT, sku="tea", node="east", quantity=5
        )
        client.apply_deltas("wms", [event])
        client.apply_deltas("wms", [event])
        held = client.reserve("web", {"tea": 2}, hold_s=60)
        client.commit(held.reservation.reservation_id, order_ref="1001")
        client.commit(held.reservation.reservation_id, order_ref="1001")
        assert not client.reserve("web", {"tea": 9}, hold_s=60).reservation.reservation_id
        with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    samples = {
        f"{sample.name}{sorted(sample.labels.items()) if sample.labels else ''}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    told = {name.partition("[")[0] for name in samples}
    expected = {one.series[-1] for one in catalogue() if one.process == "server" and "feed" not in one.name}
    assert expected - told == set()
    assert samples["availability_reservations_total[('outcome', 'reserved')]"] == 1
    assert samples["availability_reservations_total[('outcome', 'committed')]"] == 1
    assert samples["availability_reservations_total[('outcome', 'insufficient_stock')]"] == 1
    assert samples["availability_replays_total"] == 1
    assert samples["availability_deltas_total[('result', 'applied')]"] == 1
    assert samples["availability_deltas_total[('result', 'duplicate')]"] == 1
    assert samples["availability_ledger_calls_total[('function', 'reserve'), ('result', 'ok')]"] == 2
    assert samples["availability_oversold_units"] == 0
    assert samples["availability_replica_age_seconds"] < 5
    assert samples["process_resident_memory_bytes"] > 10_000_000


def test_every_metric_is_told_by_the_code() -> None:
    """What `telemetry` offers is used outside of it: a method that nobody calls is a metric that stays 0."""
    offered: dict[str, str] = {}
    for name in ("server", "ingest", "publish", "history"):
        source = (ROOT / "availability" / "telemetry" / f"{name}.py").read_text("utf-8")
        for owner, body in _CLASSES.findall(source):
            for method in re.findall(r"(?m)^    def ([a-z]\w*)\(self", body):
                if method not in {"collect", "describe"}:
                    offered[f"{owner}.{method}"] = method
    assert len(offered) > 20
    used = "\n".join(
        path.read_text("utf-8")
        for package in ("availability", "ingest", "publisher")
        for path in (ROOT / package).rglob("*.py")
        if "telemetry" not in path.parts
    )
    untold = {name for name, method in offered.items() if not re.search(rf"\.{method}\b", used)}
    assert untold == set()
