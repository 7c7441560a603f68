"""Prometheus' rules and Grafana's dashboard ask for figures that exist.

A metric that was renamed leaves a panel empty and an alert silent, and nobody notices. The gateway's names come from a
real scrape of it, Triton's from a real server; only those of GPUs, which this machine may lack, are NVIDIA's list.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import promql_parser
import pytest
import yaml
from tritonclient.grpc import InferenceServerClient, InferInput

from deploy.triton.server import TritonServer
from loadtest.server import ServiceProcess
from service.scenes import render_scene
from tests.conftest import ROOT
from tests.loadtest.stand_in import write_repository
from tests.service.marked_people import encode

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((GRAFANA / "dashboards" / "tritonpose.json").read_text())
# https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html, "GPU Metrics"
GPU = {
    "nv_gpu_power_usage",
    "nv_gpu_power_limit",
    "nv_energy_consumption",
    "nv_gpu_utilization",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
}
# What Prometheus adds to each sample.
ADDED = {"job", "instance", "le"}


def dashboard_queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """Each metric of a PromQL expression, with the labels that it is selected by. Raises ValueError."""

    def walk(node: Any) -> Iterator[tuple[str, set[str]]]:
        if isinstance(node, promql_parser.VectorSelector):
            yield node.name, {matcher.name for matcher in node.matchers.matchers}
        below = [getattr(node, name, None) for name in ("lhs", "rhs", "expr", "vector_selector")]
        for inner in [*below, *getattr(node, "args", [])]:
            if isinstance(inner, promql_parser.Expr):
                yield from walk(inner)

    return list(walk(promql_parser.parse(expression)))


def scraped(text: str) -> dict[str, set[str]]:
    """Names of samples and of their labels. (prometheus_client's parser renames counters.)"""
    samples = re.findall(r"^([a-zA-Z_]\w*)(?:\{(.*)\})? \S+$", text, re.MULTILINE)
    return {name: set(re.findall(r'(\w+)="', labels)) for name, labels in samples}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, triton_server: TritonServer) -> str:
    """What the real service shows after a request, with the one engine and with the other."""
    repository = write_repository(tmp_path_factory.mktemp("models"))
    picture = encode(render_scene(5, people=2).image, ".jpg")
    shown = ""
    for settings in (
        {"TRITONPOSE_REPOSITORY": str(repository)},
        {"TRITONPOSE_ENGINE": "triton", "TRITONPOSE_TRITON_URL": triton_server.grpc_url},
    ):
        with ServiceProcess(settings) as service:
            assert httpx.post(f"{service.url}/v1/pose", files={"image": picture}, timeout=60).status_code == 200
            shown += httpx.get(f"{service.url}/metrics").text
    return shown


@pytest.mark.parametrize("expression", [*(rule["expr"] for rule in RULES), *dashboard_queries()])
def test_expressions_are_promql(expression: str) -> None:
    assert selectors(expression)


@pytest.mark.slow
def test_the_gateway_shows_what_is_asked_for(gateway: str) -> None:
    shown = scraped(gateway)
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    asked = [one for text in [*(rule["expr"] for rule in RULES), *dashboard_queries()] for one in selectors(text)]
    own = [(name, labels) for name, labels in asked if not name.startswith("nv_") and name not in {*recorded, "up"}]
    assert len({name for name, _ in own}) > 10
    assert not {name for name, _ in own if name not in shown}
    assert not [(name, labels) for name, labels in own if not labels <= shown[name] | ADDED]
    assert not {name for name, _ in asked if ":" in name} - recorded
    assert 'route="/v1/pose"' in gateway and 'stage="total"' in gateway


@pytest.mark.slow
def test_triton_shows_what_is_asked_for(triton_server: TritonServer) -> None:
    # A model's figures begin with its first call.
    images = InferInput("images", [1, 384, 384, 3], "UINT8")
    images.set_data_from_numpy(np.zeros((1, 384, 384, 3), np.uint8))
    with InferenceServerClient(triton_server.grpc_url) as client:
        client.infer("person_detector", [images])
    shown = scraped(httpx.get(f"http://127.0.0.1:{triton_server.ports.metrics}/metrics").text)
    asked = {
        name
        for text in [*(rule["expr"] for rule in RULES), *dashboard_queries()]
        for name, _ in selectors(text)
        if name.startswith("nv_")
    }
    assert len(asked) > 8
    assert not {name for name in asked - GPU if name not in shown}
    assert "model" in shown["nv_inference_count"]


def test_jobs_of_the_rules_are_scraped() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    text = json.dumps([*(rule["expr"] for rule in RULES), *dashboard_queries()])
    assert set(re.findall(r'job=\\+"(\w+)', text)) <= jobs
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for job in config["scrape_configs"]:
        for lookup in job.get("dns_sd_configs", []):
            assert set(lookup["names"]) <= compose.keys()


def test_grafana_finds_its_data_source_and_its_dashboard() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/tritonpose.yml").read_text())["providers"]
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in service["volumes"]}
    assert (ROOT / mounted[provider["options"]["path"]]) == GRAFANA / "dashboards"
    home = Path(service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / mounted[str(home.parent)] / home.name).is_file()
    queried = [target["datasource"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    assert queried and all(one == {"type": "prometheus", "uid": source["uid"]} for one in queried)


def test_panels_lie_beside_each_other() -> None:
    taken: dict[tuple[int, int], int] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on panel {taken[x, y]}"
                taken[x, y] = panel["id"]
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)


def test_every_alert_is_tried() -> None:
    tried = (ROOT / "tests/deploy/rules_test.yml").read_text()
    alerts = [rule["alert"] for rule in RULES if "alert" in rule]
    assert not [alert for alert in alerts if not re.search(rf"alertname: {alert}\n", tried)]


def test_prometheus_takes_config_and_rules_and_the_alerts_come_when_they_should(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    for name in ("prometheus.yml", "rules.yml"):
        shutil.copy(PROMETHEUS / name, tmp_path)
    shutil.copy(ROOT / "tests/deploy/rules_test.yml", tmp_path)
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run(["promtool", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
