"""The promises of the set-up: light serving, pinned versions, rooms that do not reach into each other.

Were these to fail, a newcomer's first command would download torch, install unpinned code, or not run at all.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT, checkout_files, copy_checkout

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MB = 1_000_000
GROUPS = (
    "tools",
    "serve",
    "gpu",
    "loadtest",
    "peer-bentoml",
    "peer-litserve",
    "tracing",
    "train",
    "vitpose",
    "dev",
    "triton",
    "triton-gpu",
)
# Module prefixes of other rooms that a room may import (the map of the folders is in CONTRIBUTING.md).
MAY_IMPORT = {
    "service": (),
    "training": ("service",),
    "export": ("service", "training"),
    "loadtest": ("service.client", "service.scenes", "service.skeletons", "service.oks"),
    "deploy": (),
}
# The bounds of the benches are the service's own networks, or its calls of Triton, without the service around them.
EXCEPTIONS = {
    Path("loadtest/bound.py"): ("service",),
    Path("loadtest/triton_alone.py"): ("service",),
    # Measured with a tritonserver of their own.
    Path("loadtest/triton.py"): ("deploy.triton", "service.client"),
    Path("loadtest/outage.py"): ("deploy.triton",),
    Path("loadtest/gpu.py"): ("deploy.triton", "service.client"),
    Path("loadtest/chaos.py"): ("deploy.triton", "service.client"),
    Path("loadtest/profile.py"): ("deploy.triton", "service.client"),
    # Its steps one by one; the service with a leak around it; what other servers need to do the same work.
    Path("loadtest/costs.py"): ("service",),
    Path("loadtest/leaky.py"): ("service",),
    Path("loadtest/peers/pipeline.py"): ("service",),
    Path("loadtest/transport.py"): ("deploy.triton", "service.engines.triton"),
}


def pins(group: str) -> dict[tuple[str, str], str]:
    """(canonical name, marker) to version of each line of a requirements file."""
    text = (ROOT / "requirements" / f"{group}.txt").read_text()
    found = re.findall(r"^([\w.\-]+)(?:\[[^\]]*\])?==([^\s;\\]+)(?: *; *([^\\\n]*?))? *\\?$", text, re.MULTILINE)
    return {(canonicalize_name(name), marker): version for name, version, marker in found}


def declared(group: str) -> list[Requirement]:
    """What pyproject.toml asks for in a group, directly."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    serving = [*project["project"]["dependencies"]]
    lines = {
        "tools": groups["tools"],
        "serve": serving,
        "gpu": [line for line in serving if not line.startswith("onnxruntime")]
        + project["project"]["optional-dependencies"]["gpu"],
        "tracing": serving + project["project"]["optional-dependencies"]["tracing"],
        "loadtest": serving + groups["loadtest"],
        "peer-bentoml": groups["peer-bentoml"],
        "peer-litserve": serving + groups["peer-litserve"],
        "train": serving + groups["train"],
        "vitpose": serving + groups["train"] + groups["vitpose"],
        "dev": serving
        + groups["train"]
        + groups["loadtest"]
        + groups["vitpose"]
        + [line for line in groups["dev"] if isinstance(line, str)],
        "triton": groups["triton"],
        "triton-gpu": groups["triton-gpu"],
    }[group]
    return [Requirement(line) for line in lines]


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules a file imports, wherever in the file."""
    package = path.relative_to(ROOT).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module or "").split("."))).strip(".")
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("group", GROUPS)
def test_every_requirement_is_pinned_with_a_hash_and_names_no_address(group: str) -> None:
    text = (ROOT / "requirements" / f"{group}.txt").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|-e|--(index|extra-index|find-links|trusted|editable))", text, re.MULTILINE)
    entries = re.split(r"^(?=[\w])", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    entries = [entry for entry in entries if entry.strip()]
    assert len(entries) == len(pins(group)) > 0
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry


@pytest.mark.parametrize("group", GROUPS)
def test_requirements_are_compiled_from_pyproject(group: str) -> None:
    pinned = pins(group)
    for requirement in declared(group):
        versions = [version for (name, _), version in pinned.items() if name == canonicalize_name(requirement.name)]
        assert versions, f"{requirement} is not in requirements/{group}.txt: run make requirements"
        assert all(requirement.specifier.contains(version) for version in versions), f"{requirement}: {versions}"


@pytest.mark.parametrize("group", ["train", "loadtest", "peer-litserve", "tracing", "dev", "gpu"])
def test_what_is_tested_is_what_is_served(group: str) -> None:
    theirs = {name: {v for (n, _), v in pins(group).items() if n == name} for name, _ in pins(group)}
    for (name, _), version in pins("serve").items():
        if not (group == "gpu" and name == "onnxruntime"):
            assert version in theirs.get(name, set()), f"{name} {version} is served, {group} has {theirs.get(name)}"


def test_peers_do_the_same_work_with_the_same_libraries() -> None:
    for library in ("numpy", "onnxruntime", "opencv-python-headless", "pillow"):
        versions = [{v for (n, _), v in pins(group).items() if n == library} for group in ("serve", "peer-bentoml")]
        assert versions[0] == versions[1] != set(), library


def test_serving_installs_no_training_library() -> None:
    names = {name for name, _ in pins("serve")}
    assert names.isdisjoint({"torch", "torchvision", "triton", "onnx", "matplotlib", "tensorboard", "pycocotools"})
    assert not [name for name in names if name.startswith("nvidia")]


@pytest.mark.slow
def test_serving_downloads_less_than_150_mb(tmp_path: Path) -> None:
    pip = next((ROOT / "scripts").glob("pip-*.whl")) / "pip"
    options = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(tmp_path)]
    requirements = ROOT / "requirements" / "serve.txt"
    command = [sys.executable, "-I", str(pip), *options, "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and re.search(r"connection|resolution|timed out", done.stderr, re.IGNORECASE):
        pytest.skip(f"no network: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.whl")}
    total = sum(sizes.values())
    print(f"wheels of requirements/serve.txt: {len(sizes)} files, {total / MB:.1f} MB")
    assert total < 150 * MB, sorted(sizes.items(), key=lambda item: -item[1])[:5]


def test_service_starts_without_the_training_libraries() -> None:
    script = """
        import importlib, pkgutil, sys
        absent = {"torch", "torchvision", "onnx", "onnxscript", "pycocotools", "matplotlib", "tensorboard", "yaml",
                  "lightning_fabric", "locust", "pytest", "hypothesis", "training", "export", "loadtest", "tests"}
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in absent:
                    raise ModuleNotFoundError(f"{name} is not there when serving", name=name)
        sys.meta_path.insert(0, Absent())
        import service
        modules = [m.name for m in pkgutil.walk_packages(service.__path__, "service.") if "__main__" not in m.name]
        for module in modules:
            importlib.import_module(module)
        print(len(modules))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_the_map_allows(room: str) -> None:
    others = {*MAY_IMPORT, "tests", "scripts"} - {room}
    for path in sorted((ROOT / room).rglob("*.py")):
        prefixes = EXCEPTIONS.get(path.relative_to(ROOT), MAY_IMPORT[room])
        for module in imported_modules(path):
            if module.split(".")[0] in others:
                # `from service import client` names the package too.
                allowed = any(f"{module}.".startswith(f"{p}.") or p.startswith(f"{module}.") for p in prefixes)
                assert allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_all_code_is_python_3_10() -> None:
    for path in checkout_files():
        if path.suffix == ".py":
            ast.parse((ROOT / path).read_text(), str(path), feature_version=(3, 10))


def test_clone_is_small_and_holds_no_lock_file() -> None:
    sizes = {path: (ROOT / path).stat().st_size for path in checkout_files()}
    assert sum(sizes.values()) < 35 * MB, sorted(sizes.items(), key=lambda item: -item[1])[:10]
    models = {path: size for path, size in sizes.items() if path.parts[0] == "model_repository"}
    assert sum(models.values()) <= 30 * MB, sorted(models.items(), key=lambda item: -item[1])[:10]
    assert not [path for path in sizes if re.fullmatch(r".*\.lock|pylock.*\.toml|package-lock\.json", path.name)]


@pytest.mark.slow
def test_set_up_needs_no_uv_and_happens_once(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "triton pose")  # of its own: others set the shared one up before
    path = [folder for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / "uv").exists()]
    command = [sys.executable, str(checkout / "scripts" / "environment.py"), "serve"]

    def set_up() -> str:
        environment = os.environ | {"PATH": os.pathsep.join(path)}
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout

    assert "fetching uv" in set_up()
    program = checkout / ".venv" / "serve" / "bin" / "tritonpose"
    assert "serve" in subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    assert set_up() == ""  # a second time it has nothing to do, and says nothing


def test_set_up_names_the_groups_it_knows() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "environment.py"), "everything"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "dev|gpu|loadtest|peer-bentoml|peer-litserve|serve|tracing|train|triton" in done.stderr
