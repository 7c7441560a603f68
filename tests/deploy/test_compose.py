"""docker-compose.yml: valid, complete, and nothing in it that would keep a container from starting.

No engine is needed: the file is held to the schema of the Compose specification, to the settings of the service, and,
where `docker compose` or `docker-compose` is installed, to what it makes of the profiles.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.triton.server import TritonServer
from export.configs import Accelerator
from service.settings import Settings
from service.supervisor import _MARGIN_SECONDS
from tests.conftest import ROOT

FILE = ROOT / "docker-compose.yml"
TEXT = FILE.read_text()
# ${NAME:-default}; a dollar of the shell's is written twice.
_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::-([^}]*))?\}")


def interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """What Compose makes of the variables in a document."""
    if isinstance(value, dict):
        return {key: interpolated(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolated(inner, variables) for inner in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda m: variables.get(m[1]) or m[2] or "", value).replace("$$", "$")
    return value


COMPOSE = interpolated(yaml.safe_load(TEXT), {})
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def compose_command() -> list[str]:
    """Whichever Compose is installed; skips without one."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and re.search(r"\bv?2\.|\bv?[3-9]\.", done.stdout):
                return command
    pytest.skip("needs Compose 2 (its plugin or docker-compose; no engine)")


def composed(*profiles: str, **variables: str) -> dict[str, Any]:
    """The services that Compose would start."""
    options = [f"--profile={profile}" for profile in profiles]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COMPOSE")} | variables
    command = [*compose_command(), *options, "--file", str(FILE), "config", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["services"])


def test_it_fits_the_specification(tmp_path: Path) -> None:
    document = tmp_path / "docker-compose.yml"
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    for variables in ({}, {"TRITON_GPUS": "2", "GATEWAY_CPUS": "1.5"}):
        document.write_text(yaml.safe_dump(interpolated(yaml.safe_load(TEXT), variables)))
        done = subprocess.run([*command, str(FILE), str(document)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    document.write_text(yaml.safe_dump({"services": {"gateway": {"imgae": "x"}}}))
    assert subprocess.run([*command, str(document)], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]+", image), f"{name}: {image}"
    if "build" in SERVICES[name]:
        target = SERVICES[name]["build"]["target"]
        assert re.search(rf"^FROM \S+ AS {target}$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert version and image.endswith(f":{version[1]}"), "the image's tag is not the package's version"


def test_triton_is_new_enough() -> None:
    """Before 26.08 queue timeouts starve the dynamic batcher."""
    tag = SERVICES["triton"]["image"].partition(":")[2]
    assert tuple(map(int, tag.partition("-")[0].split("."))) >= (26, 8)
    assert tag.endswith("-py3"), "the other images have no ONNX Runtime"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "pid", "ipc", "devices"} & set(service)
    assert service["restart"] == ("no" if name in ("loadtest", "engine-cache") else "unless-stopped")
    if name == "engine-cache":
        assert service["network_mode"] == "none" and service["cap_add"] == ["CHOWN"]
    else:
        assert not {"cap_add", "network_mode"} & set(service)
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"] and limits["pids"] and "cpus" in limits
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    for volume in service.get("volumes", []):
        source, _, rest = volume.partition(":")
        assert source in COMPOSE["volumes"] or rest.endswith(":ro"), f"{name} may write to {source}"


@pytest.mark.parametrize("name", SERVICES)
def test_mounted_files_exist(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source = volume.partition(":")[0]
        if source not in COMPOSE["volumes"]:
            assert (ROOT / source).exists(), f"{name} mounts {source}; an engine would make an empty folder of it"


@pytest.mark.parametrize("name", ["gateway", "gateway-cpu"])
def test_the_gateway_gets_settings_that_it_knows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = SERVICES[name]["environment"]
    known = {f"TRITONPOSE_{setting.upper()}" for setting in Settings.model_fields}
    own = {variable for variable in environment if not variable.startswith("OTEL_")}
    assert own <= known, "the service would ignore them"
    for variable, value in environment.items():
        monkeypatch.setenv(variable, str(value))
    settings = Settings()
    assert settings.engine == ("triton" if name == "gateway" else "embedded")
    # An engine that kills the process before it has drained loses pictures.
    grace = float(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert grace >= settings.drain_seconds + settings.shutdown_seconds + 5
    assert settings.drain_seconds + settings.shutdown_seconds + _MARGIN_SECONDS < 30


def test_the_gateway_finds_triton() -> None:
    gateway, triton = SERVICES["gateway"], SERVICES["triton"]
    assert gateway["environment"]["TRITONPOSE_TRITON_URL"] == "triton:8001"
    assert gateway["depends_on"] == {"triton": {"condition": "service_healthy"}}, "and Triton would be stopped first"
    assert set(gateway["networks"]) & set(triton["networks"])
    # The same /dev/shm, and the same user: regions are made for their owner alone.
    shared = "shared-memory:/dev/shm"
    assert gateway["environment"]["TRITONPOSE_TRITON_SHARED_MEMORY"] == "on"
    assert shared in gateway["volumes"] and shared in triton["volumes"]
    assert "--allow-client-shm=true" in triton["command"]
    uid = triton["user"].partition(":")[0]
    assert f"os.chown('/cache', {uid}, {uid})" in SERVICES["engine-cache"]["entrypoint"][-1]
    assert f"USER {uid}:" in (ROOT / "Dockerfile").read_text()


def test_tensorrt_finds_its_cache() -> None:
    assert f"engine-cache:{Accelerator().cache}" in SERVICES["triton"]["volumes"]


@pytest.mark.slow
def test_the_health_check_tells_a_triton_that_answers(triton_server: TritonServer) -> None:
    """With a real server; bash is all it needs."""
    _, *command = SERVICES["triton"]["healthcheck"]["test"]

    def status(port: int, model: str = "pose") -> int:
        words = [word.replace("/8000", f"/{port}").replace("models/pose/", f"models/{model}/") for word in command]
        return subprocess.run(words, capture_output=True, check=False, timeout=5).returncode

    assert status(triton_server.ports.http) == 0
    assert status(triton_server.ports.http, "absent") != 0
    assert status(9) != 0, "nobody listens there"


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_tells_a_grafana_that_answers(status: int, healthy: bool) -> None:
    """With a server that answers as Grafana does, which is not at hand."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/api/health" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    _, *command = SERVICES["grafana"]["healthcheck"]["test"]

    def check(port: int) -> bool:
        words = [word.replace("/3000", f"/{port}") for word in command]
        return subprocess.run(words, capture_output=True, check=False, timeout=5).returncode == 0

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert check(server.server_port) == healthy
        finally:
            server.shutdown()
            thread.join()
    assert not check(9), "nobody listens there"


def test_whatever_goes_on_running_says_how_it_is() -> None:
    """The gateway by its image's own health check."""
    for name, service in SERVICES.items():
        assert service.get("restart") == "no" or "healthcheck" in service or "build" in service, name


def test_nobody_outside_reaches_triton() -> None:
    assert "ports" not in SERVICES["triton"]
    assert SERVICES["triton"]["networks"] == ["inference"]
    assert COMPOSE["networks"]["inference"]["internal"] is True


def test_what_is_published_is_published_to_this_machine_only() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"


def test_every_variable_is_explained() -> None:
    documented = (ROOT / "docs" / "deployment.md").read_text()
    missing = sorted({name for name, _ in _VARIABLE.findall(TEXT) if f"`{name}`" not in documented})
    assert not missing, f"docs/deployment.md does not explain {missing}"


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        ((), {"engine-cache", "triton", "gateway"}),
        (("cpu",), {"gateway-cpu"}),
        (("gpu", "observability"), {"engine-cache", "triton", "gateway", "prometheus", "grafana"}),
        (("cpu", "observability"), {"gateway-cpu", "prometheus", "grafana"}),
        (("cpu", "loadtest"), {"gateway-cpu", "loadtest"}),
        (("gpu", "loadtest"), {"engine-cache", "triton", "gateway", "loadtest"}),
    ],
)
def test_profiles(profiles: tuple[str, ...], expected: set[str]) -> None:
    services = composed(*profiles)
    assert set(services) == expected
    needs_gpu = {name for name, service in services.items() if "nvidia" in json.dumps(service.get("deploy", {}))}
    assert needs_gpu == expected & {"triton"}
    callers = services.get("gateway") or services["gateway-cpu"]
    aliases = (callers["networks"]["edge"] or {}).get("aliases", [])
    assert "gateway" in services or "gateway" in aliases, "the load test and Prometheus would not find the gateway"


def test_variables_reach_the_containers() -> None:
    services = composed("gpu", TRITON_TAG="26.08-py3", TRITON_GPUS="2", GATEWAY_PORT="9000", MODEL_REPOSITORY="/m")
    assert services["triton"]["image"] == "nvcr.io/nvidia/tritonserver:26.08-py3"
    (device,) = services["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == 2 and device["driver"] == "nvidia"
    assert services["gateway"]["ports"][0]["published"] == "9000"
    assert [volume["source"] for volume in services["triton"]["volumes"]] == ["/m", "shared-memory", "engine-cache"]
