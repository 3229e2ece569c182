"""Alerts and dashboard: understood by Prometheus, and of nothing but what a daemon tells."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from exposition_text import parse
from lab import Lab
from lab.http import get
from lab.node import Node
from lab.patience import until
from lab.processes import ROOT

ALERTS = ROOT / "deploy" / "prometheus-alerts.yaml"
DASHBOARD = ROOT / "deploy" / "grafana-dashboard.json"
PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(ROOT / "build/clients/prometheus/usr/bin"))
OF_PROMETHEUS = {"up"}
NAME = re.compile(r"\b(?:overlayd|wireguard|process)_\w+|\bup\b(?=\{)")

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is unpacked by make test")


def promtool(*arguments: str | Path) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def queries() -> list[str]:
    """Those of the dashboard, with its variables replaced as Grafana does."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    written = [target["expr"] for panel in panels for target in panel["targets"]]
    return [each.replace("$__rate_interval", "1m").replace("$instance", ".*") for each in written]


@needs_promtool
def test_prometheus_understands_them(tmp_path: Path) -> None:
    promtool("check", "rules", "--lint-fatal", ALERTS)
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries())]
    recorded = tmp_path / "queries.yaml"
    recorded.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", recorded)


# Two scrapes of a node on which everything is amiss, and of one on which nothing is: alert, and its labels.
AMISS = {
    'up{job="overlayd", instance="a"}': "0x60",
    'overlayd_ready{instance="a"}': "0x60",
    'overlayd_findings{instance="a"}': "2x60",
    'overlayd_start_time_seconds{instance="a"}': "0+60x60",
    'overlayd_peers{instance="a", state="silent"}': "3x60",
    'overlayd_peers{instance="a", state="answers"}': "0x60",
    'overlayd_peer_paths{instance="a", path="unreachable"}': "1x60",
    'overlayd_pool_held{instance="a", pool="web"}': "60x60",
    'overlayd_pool_addresses{instance="a", pool="web"}': "61x60",
    'overlayd_journal_owed_rows{instance="a"}': "4x60",
    'overlayd_repairs_total{instance="a", kind="bridge"}': "0+5x60",
    'overlayd_loop_lag_seconds_bucket{instance="a", le="0.25"}': "0x60",
    'overlayd_loop_lag_seconds_bucket{instance="a", le="0.5"}': "0+10x60",
    'overlayd_loop_lag_seconds_bucket{instance="a", le="+Inf"}': "0+10x60",
    'overlayd_journal_sync_duration_seconds_bucket{instance="a", le="0.5"}': "0x60",
    'overlayd_journal_sync_duration_seconds_bucket{instance="a", le="1"}': "0+10x60",
    'overlayd_journal_sync_duration_seconds_bucket{instance="a", le="+Inf"}': "0+10x60",
    'process_open_fds{job="overlayd", instance="a"}': "900x60",
    'process_max_fds{job="overlayd", instance="a"}': "1000x60",
    'overlayd_cluster_connected{instance="a"}': "0x60",
}
WELL = {
    'up{job="overlayd", instance="b"}': "1x60",
    'overlayd_ready{instance="b"}': "1x60",
    'overlayd_findings{instance="b"}': "0x60",
    'overlayd_start_time_seconds{instance="b"}': "5x60",
    'overlayd_peers{instance="b", state="silent"}': "0x60",
    'overlayd_peers{instance="b", state="answers"}': "3x60",
    'overlayd_peer_paths{instance="b", path="unreachable"}': "0x60",
    'overlayd_pool_held{instance="b", pool="web"}': "6x60",
    'overlayd_pool_addresses{instance="b", pool="web"}': "61x60",
    'overlayd_journal_owed_rows{instance="b"}': "0x60",
    'overlayd_repairs_total{instance="b", kind="bridge"}': "3x60",
    'overlayd_loop_lag_seconds_bucket{instance="b", le="0.25"}': "0+10x60",
    'overlayd_loop_lag_seconds_bucket{instance="b", le="+Inf"}': "0+10x60",
    'overlayd_journal_sync_duration_seconds_bucket{instance="b", le="0.5"}': "0+10x60",
    'overlayd_journal_sync_duration_seconds_bucket{instance="b", le="+Inf"}': "0+10x60",
    'process_open_fds{job="overlayd", instance="b"}': "90x60",
    'process_max_fds{job="overlayd", instance="b"}': "1000x60",
    'overlayd_cluster_connected{instance="b"}': "1x60",
}


@needs_promtool
def test_every_alert_fires_where_it_should_and_nowhere_else(tmp_path: Path) -> None:
    names = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    series = [{"series": name, "values": values} for name, values in {**AMISS, **WELL}.items()]
    # By one query each: how many fire for the node that is ill, and for the other one.
    asked = [
        {
            "expr": f'count by (instance) (ALERTS{{alertname="{name}", alertstate="firing"}})',
            "eval_time": "60m",
            "exp_samples": [{"labels": '{instance="a"}', "value": 1}],
        }
        for name in names
    ]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": asked}
    case = tmp_path / "case.yaml"
    case.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", case)


@pytest.fixture(scope="module")
def told() -> Iterator[set[str]]:
    """Every name in a scrape of a daemon that is told of a store, which is away."""
    with Lab() as lab:
        node: Node = lab.node("alpha")
        place = str(node.data_dir.parent / "metrics.sock")
        node.start("--metrics", place, "--metrics-peers", "--etcd", "unix:/nowhere", "--cluster", "prod")
        samples = until(lambda: parse(get(node, place, "/metrics")[1]))
        families = set(re.findall(r"^# TYPE (\w+)", get(node, place, "/metrics")[1], re.MULTILINE))
        yield {name for name, _, _ in samples} | families


def test_they_ask_for_nothing_that_no_daemon_tells(told: set[str]) -> None:
    rules = "\n".join(line for line in ALERTS.read_text().splitlines() if "expr:" in line)
    asked = {*NAME.findall(rules), *NAME.findall("\n".join(queries()))} - OF_PROMETHEUS
    assert {re.sub("_(bucket|sum|count)$", "", each) for each in asked} - told == set()
    assert len(asked) > 15
