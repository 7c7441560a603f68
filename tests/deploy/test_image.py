"""The image, without an engine: the Dockerfile's own commands run in empty folders, and what they made starts.

Were these to fail, `docker build` would, or the container would start and never be ready, or leave at the wrong moment.
What no test here can see is the base image: that the tag exists, and Debian's libraries in it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.scenes import render_scene
from tests.conftest import ROOT
from tests.deploy.dockerfile import Stage, ancestry, assignments, build_context, read_stages
from tests.service.marked_people import encode

pytestmark = pytest.mark.slow

STAGES = read_stages()
MB = 1_000_000
# The image's user has no home.
NOBODY = {"HOME": "/nonexistent"}
# Shared libraries that every Debian has, slim ones too: glibc, GCC's and zlib, which dpkg is linked to; the loader.
EVERYWHERE = r"(linux-vdso|ld-linux-x86-64|lib(c|m|dl|rt|pthread|util|resolv|stdc\+\+|gcc_s|z))\.so(\.\d+)*"


@dataclass
class Image:
    """A folder in place of an image's root.

    Attributes:
        root: paths of the Dockerfile begin here.
        base: ``bin`` of the Python that stands for the base image's.
    """

    root: Path
    base: Path

    def here(self, text: str) -> str:
        """Absolute paths of the image in a command or variable, as they are in the folder."""
        return re.sub(r"(?<![\w.}])/(opt|build|models|loadtest)\b", rf"{self.root}/\1", text)

    def environment(self, name: str) -> dict[str, str]:
        """What a stage's commands find, and of this machine only what installs need: caches, proxies, indexes."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if re.match(
                r"(HOME|TMPDIR|SSL_\w+|\w+_proxy|\w+_PROXY|UV_\w*(INDEX|URL|CACHE|CERT)\w*|PIP_\w+|XDG_\w+)$", key
            )
        }
        # As scripts/environment.py does it: a machine may trust certificates that uv does not bring along.
        kept.setdefault("UV_SYSTEM_CERTS", "1")
        kept["PATH"] = f"{self.base}:/usr/local/bin:/usr/bin:/bin"
        for stage in ancestry(STAGES, name):
            for line in stage.values("ENV"):
                for key, value in assignments(line).items():
                    kept[key] = self.here(value).replace("$PATH", kept["PATH"])
        return kept

    def build(self, stage: Stage) -> None:
        """Copy and run what the stage says, in its order. RUN lines that make users are left to engines."""
        folder = self.root
        for instruction, value in stage.lines:
            if instruction == "WORKDIR":
                folder = Path(self.here(value))
                folder.mkdir(parents=True, exist_ok=True)
            elif instruction == "COPY" and not value.startswith("--from="):
                *sources, target = value.split()
                for source in sources:
                    copy_of_context(source, folder / self.here(target), into=len(sources) > 1)
            elif instruction == "RUN" and "useradd" not in value:
                environment = self.environment(stage.name)
                command = ["/bin/sh", "-c", self.here(value)]
                done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
                if done.returncode and re.search(r"connection|resolution|timed out|dns", done.stderr, re.IGNORECASE):
                    pytest.skip(f"no network: {done.stderr[-300:]}")
                assert done.returncode == 0, f"{value}\n{done.stderr[-3000:]}"


def copy_of_context(source: str, target: Path, *, into: bool) -> None:
    """COPY: a file to a place or into a folder, a folder's contents into a folder."""
    paths = [path for path in build_context() if path == Path(source) or Path(source) in path.parents]
    assert paths, source
    for path in paths:
        place = target / path.name if into else target / path.relative_to(source) if path != Path(source) else target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, place)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The gateway's image: built, and what it does not copy from the build removed."""
    root = tmp_path_factory.mktemp("image")
    base = tmp_path_factory.mktemp("base") / "python"
    uv = [sys.executable, "-m", "uv"]
    # In the base image pip is there; here the one that the project brings along.
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(base)], check=True)
    pip = next((ROOT / "scripts").glob("pip-*.whl"))
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(base / "bin/python"), str(pip)], check=True)
    made = Image(root, base / "bin")
    made.build(STAGES["build"])
    copied = [
        line.removeprefix("--from=build ").split()[0] for line in STAGES["gateway"].values("COPY") if "--from" in line
    ]
    assert copied == ["/opt/tritonpose"]
    shutil.rmtree(root / "build")
    made.build(STAGES["gateway"])
    return made


@pytest.fixture(scope="module")
def container(image: Image) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """The entry point with its default command, and its environment; not waited for."""
    gateway = STAGES["gateway"]
    port = str(free_port())
    changed = {"TRITONPOSE_PORT": port, "TRITONPOSE_HOST": "127.0.0.1", "TRITONPOSE_DRAIN_SECONDS": "2"}
    environment = image.environment("gateway") | NOBODY | changed
    command = gateway.command("ENTRYPOINT") + gateway.command("CMD")
    program = shutil.which(command[0], path=environment["PATH"])
    assert program and Path(program).is_relative_to(image.root)
    assert check_health(image, environment) == 1, "healthy before it runs"
    process = subprocess.Popen([program, *command[1:]], env=environment, cwd="/")
    try:
        yield process, environment
    finally:
        process.kill()
        process.wait()


def check_health(image: Image, environment: dict[str, str]) -> int:
    """Exit status of the image's health check."""
    command = STAGES["gateway"].command("HEALTHCHECK")
    program = shutil.which(command[0], path=environment["PATH"])
    assert program and Path(program).is_relative_to(image.root)
    return subprocess.run([program, *command[1:]], env=environment, cwd="/", check=False, timeout=5).returncode


def files(root: Path) -> dict[Path, int]:
    """Every file below a folder and its size."""
    return {path.relative_to(root): path.lstat().st_size for path in root.rglob("*") if not path.is_dir()}


def test_it_holds_what_serving_needs_and_nothing_else(image: Image) -> None:
    found = files(image.root)
    sizes = {top: sum(size for path, size in found.items() if path.parts[0] == top) for top in ("opt", "models")}
    print(f"packages {sizes['opt'] / MB:.0f} MB, models {sizes['models'] / MB:.0f} MB, beside the base image")
    assert {path.parts[0] for path in found} == set(sizes)
    assert sizes["opt"] < 500 * MB
    packages = next((image.root / "opt/tritonpose/lib").glob("python3*")) / "site-packages"
    names = {path.name.partition("-")[0].lower() for path in packages.glob("*.dist-info")}
    assert "tritonpose" in names and "onnxruntime" in names
    assert not names & {"torch", "torchvision", "onnx", "pytest", "locust", "uv", "pip", "hatchling", "mypy", "ruff"}
    rooms = {"service", "tests", "training", "export", "loadtest", "deploy"}
    assert {path.name for path in packages.iterdir()} & rooms == {"service"}
    assert (packages / "service/page/index.html").is_file()


def test_everything_is_compiled(image: Image) -> None:
    """The container may write nothing: what is not compiled now would be at every start."""
    packages = next((image.root / "opt/tritonpose/lib").glob("python3*")) / "site-packages"
    tag = sys.implementation.cache_tag
    sources = [path for path in packages.rglob("*.py") if "service" in path.parts or "fastapi" in path.parts]
    assert len(sources) > 50
    missing = [path for path in sources if not (path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc").exists()]
    assert not missing


def test_libraries_need_nothing_that_a_slim_image_lacks(image: Image) -> None:
    libraries = [path for path in (image.root / "opt").rglob("*.so*") if path.is_file() and not path.is_symlink()]
    assert len(libraries) > 30
    outside = set()
    for library in libraries:
        done = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            name, _, place = line.strip().partition(" => ")
            if "statically" not in line and not place.startswith(str(image.root)):
                outside.add(Path(name.split(" (")[0]).name)
    assert {"libc.so.6", "libstdc++.so.6"} <= outside
    assert not [name for name in outside if not re.fullmatch(EVERYWHERE, name)], outside


def test_it_becomes_healthy_answers_drains_and_exits_with_0(
    image: Image, container: tuple[subprocess.Popen[bytes], dict[str, str]]
) -> None:
    process, environment = container
    before = files(image.root)
    end = time.monotonic() + 60
    while check_health(image, environment) != 0:
        assert process.poll() is None, "it ended"
        assert time.monotonic() < end, "not healthy after 60 s, the health check's start period"
        time.sleep(0.2)
    picture = encode(render_scene(5, people=3).image, ".jpg")
    address = f"http://127.0.0.1:{environment['TRITONPOSE_PORT']}"
    answer = httpx.post(f"{address}/v1/pose", files={"image": picture}, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["annotations"]
    assert files(image.root) == before, "it writes into its own image, which is mounted read-only"
    process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 1.9
    while check_health(image, environment) == 0:
        assert time.monotonic() < end, "it calls itself ready while it drains"
    assert httpx.get(f"{address}/v1/health/live").status_code == 200, "the port closed before the drain was over"
    assert process.wait(30) == 0


def test_the_load_test_has_its_locust(image: Image, tmp_path: Path) -> None:
    """Last, because it changes the environment that the gateway ran in."""
    from loadtest.server import ServiceProcess

    requirements = image.root / "build/requirements"
    requirements.mkdir(parents=True)
    build = Stage("loadtest-build", "build", [("WORKDIR", "/build"), *STAGES["loadtest-build"].lines])
    image.build(build)
    stage = STAGES["loadtest"]
    image.build(stage)
    environment = image.environment("loadtest") | NOBODY | {"LOADTEST_PICTURES": "1"}
    words = stage.command("ENTRYPOINT")
    program = shutil.which(words[0], path=environment["PATH"])
    assert program and Path(program).is_relative_to(image.root)
    with ServiceProcess({}) as service:
        options = ["--headless", f"--host={service.url}", "--users=1", "--run-time=2s", "--only-summary"]
        command = [program, *words[1:], *options]
        folder = Path(image.here(stage.values("WORKDIR")[0]))
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "0 wrong or failed" in done.stderr
