"""The files for Prometheus, Grafana and Compose: what they name is there in what a running app says."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from swr.metrics.base import METRICS
from swr.metrics.prometheus import name_of
from tests.servers import Server, free_port

ROOT = Path(__file__).parent.parent
MONITORING, COMPOSE = ROOT / "examples/monitoring", ROOT / "examples/compose"
PATIENCE = 60
# What Prometheus itself adds to every series.
OWN_LABELS = {"instance", "job"}
DOCKERFILE = (COMPOSE / "Dockerfile").read_text()


def expressions() -> Iterator[tuple[str, str, str]]:
    """Return every expression of the files, with where it stands and the text that its labels are shown in."""
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"], " ".join(rule["annotations"].values())
    board = json.loads((MONITORING / "grafana.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]
    for variable in board["templating"]["list"][1:]:
        yield variable["name"], variable["definition"], ""
    for annotation in board["annotations"]["list"]:
        yield annotation["name"], annotation["expr"], annotation["titleFormat"]


@pytest.fixture(scope="module")
def scraped(shared_server: Server, tmp_path_factory) -> dict[str, set[str]]:
    """The labels of each metric that an app says which is run as the image runs it, once everything has happened."""
    database, port = tmp_path_factory.mktemp("compose") / "flights.db", free_port()
    subprocess.run([sys.executable, "-m", "examples.flights", str(database)], cwd=ROOT, check=True, capture_output=True)
    command = json.loads(re.search(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[1])
    command = [
        {"python": sys.executable, "8000": str(port), "0.0.0.0": "127.0.0.1"}.get(part, part) for part in command
    ]
    environment = {
        "FLIGHTS_DB": str(database),
        "REDIS_URL": shared_server.url,
        "FRESH_FOR": "200ms",
        "STRATEGY": "read",
    }
    app = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http:
            return live(http, database)
    finally:
        app.send_signal(signal.SIGTERM)
        app.wait(PATIENCE)


def live(http: httpx.Client, database: Path) -> dict[str, set[str]]:
    """Have something happen of each kind until everything that the files name is there; return the labels."""
    wanted = {name for _, expression, _ in expressions() for name in re.findall(r"\bswr_\w+", expression)}
    until, labels = time.monotonic() + PATIENCE, {}
    while time.monotonic() < until:
        try:
            for path in ("/rankings", "/rankings/ATL", "/uncached/rankings"):
                http.get(path)
            http.get("/rankings", headers={"cookie": "a=b"})
        except httpx.ConnectError:
            time.sleep(0.05)
            continue
        labels = {
            sample.name: set(sample.labels)
            for family in text_string_to_metric_families(http.get("/metrics").text)
            for sample in family.samples
        }
        if wanted <= labels.keys():
            break
    assert wanted <= labels.keys(), wanted - labels.keys()
    return labels


@pytest.mark.parametrize(("where", "expression", "shown"), [*expressions()])
def test_every_metric_and_label_in_the_files_is_exposed_by_a_running_app(scraped, where, expression, shown):
    known = set(OWN_LABELS)
    for name, matchers in re.findall(r"\b(swr_\w+)(?:\{([^}]*)\})?", expression):
        known |= scraped[name]
        assert re.fullmatch(r'(\w+(=~|!~|!=|=)"[^"]*"(, |$))*', matchers), matchers
        for label, value in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', matchers):
            assert label in scraped[name] | OWN_LABELS, (name, label)
            values = values_of(name, label)
            assert not values or value.startswith("$") or value in values, (name, label, value)
    assert known > OWN_LABELS
    grouped = [label for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression) for label in group.split(",")]
    named = re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", shown)
    assert {label.strip() for label in (*grouped, *named)} <= known


def test_monitoring_page_lists_each_alert_with_its_metric():
    page = (ROOT / "docs/monitoring.md").read_text()
    rows = dict(re.findall(r"^\| `(Swr\w+)`: (.*)$", page, re.MULTILINE))
    rules = {
        rule["alert"]: rule["expr"]
        for rule in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    }
    assert rows.keys() == rules.keys()
    for alert, row in rows.items():
        (name,) = re.findall(r"\bswr_\w+", row)
        assert name in rules[alert], alert
    bases = {name_of(metric) for metric in METRICS}
    assert {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in re.findall(r"\bswr_\w+", page)} <= bases


def test_alert_tests_make_every_alert_fire():
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    cases = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"][0]["alert_rule_test"]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == {rule["alert"] for rule in rules}


def values_of(name: str, label: str) -> tuple[str, ...]:
    """Return the values that a label can have; none: they come with what is counted."""
    base = re.sub(r"_(total|bucket|count|sum)$", "", name)
    (metric,) = (metric for metric in METRICS if name_of(metric) == base)
    return metric.labels.get(label, ())


def test_compose_services_mount_existing_files_and_reference_each_other():
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    for service in compose.values():
        for volume in service.get("volumes", ()):
            assert (COMPOSE / volume.split(":")[0]).is_file(), volume
        assert set(service.get("depends_on", ())) <= set(compose)
    build = compose["app"]["build"]
    assert (COMPOSE / build["context"] / build["dockerfile"]).resolve() == COMPOSE / "Dockerfile"
    first, last = compose["app"]["ports"][0].split(":")[1].split("-")
    assert int(last) - int(first) + 1 == compose["app"]["deploy"]["replicas"] == 3
    scraping = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    assert scraping["scrape_configs"][0]["dns_sd_configs"][0]["names"] == ["app"]
    mounted = [volume.split(":")[1] for volume in compose["prometheus"]["volumes"]]
    assert set(scraping["rule_files"]) < set(mounted)
    boards = yaml.safe_load((COMPOSE / "grafana/dashboards.yml").read_text())["providers"][0]["options"]["path"]
    assert any(volume.split(":")[1].startswith(boards) for volume in compose["grafana"]["volumes"])
    source = yaml.safe_load((COMPOSE / "grafana/datasources.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    # The server takes these arguments.
    assert compose["valkey"]["command"][0] == "valkey-server"


def test_dockerfile_copies_existing_files_and_installs_the_prometheus_extra():
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE):
        assert all((ROOT / source).exists() for source in shlex.split(line)[:-1]), line
    assert "'.[prometheus]'" in DOCKERFILE
    assert "python -m examples.flights" in DOCKERFILE


def test_grafana_panels_do_not_overlap_and_have_descriptions():
    board = json.loads((MONITORING / "grafana.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
        assert panel["type"] == "row" or panel["description"].endswith("."), panel["title"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, which comes with Prometheus, is not installed")
def test_promtool_passes_the_alert_tests():  # pragma: no cover  # needs promtool
    subprocess.run(["promtool", "test", "rules", "alerts_test.yml"], cwd=MONITORING, check=True)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, which comes with Prometheus, is not installed")
def test_promtool_accepts_every_expression_of_the_grafana_board(tmp_path):  # pragma: no cover  # needs promtool
    """As a rule that records it, with what Grafana puts in the place of its variables."""
    board = json.loads((MONITORING / "grafana.json").read_text())
    texts = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    filled = [re.sub(r"\$(cache|instance)", ".*", text.replace("$__rate_interval", "1m")) for text in texts]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(filled)]
    (tmp_path / "board.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", str(tmp_path / "board.yml")], check=True)
    assert len(rules) > 20
