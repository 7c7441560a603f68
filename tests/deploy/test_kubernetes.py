"""deploy/kubernetes: every object fits Kubernetes' own schemas, and the objects fit each other.

Files are checked as they are; what kustomize makes of the overlays is checked where ``kustomize`` or ``kubectl`` is
installed. No cluster is needed.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import Settings
from service.supervisor import _MARGIN_SECONDS
from tests.conftest import ROOT
from tests.deploy.dockerfile import ancestry, read_stages

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATIONS = sorted(path.parent for path in FOLDER.rglob("kustomization.yaml"))
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
# Preparing for a pod's end by sleeping is in all of these.
VERSIONS = ("1.30", "1.37")
# Definitions that come with an operator, not with Kubernetes.
FOREIGN = {"PodMonitor", "InferenceService"}

Manifest = dict[str, Any]


def manifests(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def build_command() -> list[str]:
    """Whichever kustomize is installed; skips without one."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    pytest.skip("needs kustomize or kubectl (no cluster)")


@cache
def built(folder: Path) -> list[Manifest]:
    done = subprocess.run([*build_command(), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return manifests(done.stdout)


def validate(manifest: Manifest) -> None:
    if manifest["kind"] not in FOREIGN:
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)


def one(objects: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def pods(objects: list[Manifest]) -> dict[str, Manifest]:
    """Pod specs by the name of what makes the pods."""
    found = {o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Deployment"}
    return found | {o["metadata"]["name"]: o["spec"]["predictor"] for o in objects if o["kind"] == "InferenceService"}


def settings_of(objects: list[Manifest]) -> dict[str, str]:
    (found,) = [o for o in objects if o["kind"] == "ConfigMap"]
    return dict(found["data"])


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.relative_to(FOLDER).as_posix())
def test_every_file_is_valid_and_used(folder: Path) -> None:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization["kind"] in ("Kustomization", "Component")
    listed = set(kustomization["resources"])
    assert {name for name in listed if not name.startswith("..")} == {
        path.name for path in folder.glob("*.yaml") if path.name != "kustomization.yaml"
    }
    for name in listed:
        place = folder / name
        if place.is_dir():
            assert (place / "kustomization.yaml").is_file()
            continue
        for manifest in manifests(place.read_text()):
            validate(manifest)


def test_schemas_refuse_what_is_wrong() -> None:
    """A validation that lets everything pass would make the test above worthless."""
    (deployment,) = [m for m in manifests((FOLDER / "base/gateway.yaml").read_text()) if m["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(deployment)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kustomize_makes_is_valid_and_confined(overlay: str) -> None:
    objects = built(FOLDER / "overlays" / overlay)
    assert {o["metadata"].get("namespace") for o in objects if o["kind"] != "Namespace"} == {"tritonpose"}
    for manifest in objects:
        validate(manifest)
    user = ancestry(read_stages(), "gateway")[-2].values("USER")[0].partition(":")[0]
    for name, pod in pods(objects).items():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] == int(user), name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            locked = container["securityContext"]
            assert locked["readOnlyRootFilesystem"] is True and locked["allowPrivilegeEscalation"] is False
            assert locked["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            assert ":" in container["image"] and not container["image"].endswith(":latest")
            volumes = {volume["name"] for volume in pod["volumes"]}
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_pods_and_ports(overlay: str) -> None:
    objects = built(FOLDER / "overlays" / overlay)
    labels, ports = {}, {}
    for o in objects:
        if o["kind"] == "Deployment":
            labels[o["metadata"]["name"]] = o["spec"]["template"]["metadata"]["labels"]
        elif o["kind"] == "InferenceService":
            labels[o["metadata"]["name"]] = o["spec"]["predictor"]["labels"]
    for name, pod in pods(objects).items():
        ports[name] = {p.get("name"): p["containerPort"] for c in pod["containers"] for p in c["ports"]}
        if any(o["kind"] == "Deployment" and o["metadata"]["name"] == name for o in objects):
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert pod["containers"][0][probe]["httpGet"]["port"] in ports[name]

    def selected(selector: Manifest) -> list[str]:
        wanted = selector.get("matchLabels", selector)
        return [name for name, have in labels.items() if wanted.items() <= have.items()]

    for o in objects:
        if o["kind"] == "Service":
            (name,) = selected(o["spec"]["selector"])
            assert {port["targetPort"] for port in o["spec"]["ports"]} <= ports[name].keys()
        elif o["kind"] == "PodDisruptionBudget":
            assert len(selected(o["spec"]["selector"])) == 1
        elif o["kind"] == "HorizontalPodAutoscaler":
            target = one(objects, "Deployment", o["spec"]["scaleTargetRef"]["name"])
            assert "replicas" not in target["spec"], "each apply would undo what the autoscaler did"
        elif o["kind"] == "NetworkPolicy" and o["metadata"]["name"] != "deny-all":
            (name,) = selected(o["spec"]["podSelector"])
            for rule in o["spec"].get("ingress", []):
                assert {port["port"] for port in rule["ports"]} <= set(ports[name].values())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_gateway_gets_settings_that_it_knows(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = built(FOLDER / "overlays" / overlay)
    values = settings_of(objects)
    container = one(objects, "Deployment", "gateway")["spec"]["template"]["spec"]["containers"][0]
    computed = {variable["name"] for variable in container["env"]}
    known = {f"TRITONPOSE_{setting.upper()}" for setting in Settings.model_fields}
    assert values.keys() | computed <= known
    for variable, value in values.items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    pod = pods(objects)["gateway"]
    assert pod["terminationGracePeriodSeconds"] >= settings.drain_seconds + settings.shutdown_seconds + 5
    assert settings.drain_seconds + settings.shutdown_seconds + _MARGIN_SECONDS < 30
    readiness = container["readinessProbe"]
    assert settings.drain_seconds >= readiness["periodSeconds"] * readiness["failureThreshold"]
    if settings.engine == "embedded":
        assert "triton" not in pods(objects)
        return
    host, _, port = settings.triton_url.partition(":")
    service = one(objects, "Service", host)
    assert int(port) in {entry["port"] for entry in service["spec"]["ports"]}
    assert service["spec"]["clusterIP"] == "None", "every call of a gateway would go to the same Triton"
    assert settings.triton_shared_memory == "off"


@pytest.mark.parametrize("overlay", sorted({*OVERLAYS} - {"cpu"}))
def test_only_the_gateway_and_prometheus_reach_triton(overlay: str) -> None:
    objects = built(FOLDER / "overlays" / overlay)
    denied = one(objects, "NetworkPolicy", "deny-all")["spec"]
    assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    rules = one(objects, "NetworkPolicy", "triton")["spec"]["ingress"]
    assert [(rule["from"], [port["port"] for port in rule["ports"]]) for rule in rules] == [
        ([{"podSelector": {"matchLabels": {"app.kubernetes.io/component": "gateway"}}}], [8001]),
        ([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}], [8002]),
    ]
    exit_seconds = 30
    pod = pods(objects)["triton"]
    arguments = pod["containers"][0]["args"]
    assert f"--exit-timeout-secs={exit_seconds}" in arguments
    sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= sleep + exit_seconds + 5


def test_gpus_are_asked_for_where_there_are_some() -> None:
    def asks(overlay: str) -> bool:
        return any(
            "nvidia.com/gpu" in container["resources"]["limits"]
            for pod in pods(built(FOLDER / "overlays" / overlay)).values()
            for container in pod["containers"]
        )

    assert {overlay: asks(overlay) for overlay in OVERLAYS} == {
        "cpu": False,
        "gpu": True,
        "kserve": True,
        "triton-cpu": False,
    }


def test_networks_on_a_cpu_take_the_pods_cores_and_no_more() -> None:
    """ONNX Runtime starts as many threads as the node has cores, for each network; the limit then throttles them."""
    (container,) = pods(built(FOLDER / "overlays/triton-cpu"))["triton"]["containers"]
    settings = [a.removeprefix("--backend-config=onnxruntime,") for a in container["args"] if "backend-config" in a]
    assert settings == [
        "enable-global-threadpool=1",
        f"intra_op_thread_count={container['resources']['limits']['cpu']}",
        "inter_op_thread_count=1",
    ]
    (other,) = pods(built(FOLDER / "overlays/gpu"))["triton"]["containers"]
    assert container["args"][: len(other["args"])] == other["args"]


@pytest.mark.parametrize("component", ["models-volume", "object-store", "monitoring"])
def test_components_go_with_the_overlay(component: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    own = tmp_path / "kubernetes" / "overlays" / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "namespace": "tritonpose",
                "resources": ["../gpu"],
                "components": [f"../../components/{component}"],
            }
        )
    )
    objects = built(own)
    for manifest in objects:
        validate(manifest)
    pod = pods(objects)["triton"]
    container = pod["containers"][0]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
    if component == "models-volume":
        assert not pod.get("initContainers")
        assert volumes["models"] == {
            "name": "models",
            "persistentVolumeClaim": {"claimName": "models", "readOnly": True},
        }
        assert one(objects, "PersistentVolumeClaim", "models")
        assert "--model-control-mode=poll" in container["args"]
    elif component == "object-store":
        assert not pod.get("initContainers") and "models" not in volumes
        assert any(argument.startswith("--model-repository=s3://") for argument in container["args"])
    else:
        monitors = [o for o in objects if o["kind"] == "PodMonitor"]
        assert {o["metadata"]["name"] for o in monitors} == {"gateway", "triton"}
        for monitor in monitors:
            target = pods(objects)[monitor["metadata"]["name"]]["containers"][0]
            assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in {port["name"] for port in target["ports"]}
