"""Every command of the README runs, in a fresh copy of the checkout, and answers what the README says.

Were these to fail, the first thing a newcomer types would not work.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.triton.installation import Installation
from loadtest.agreement import disagreement
from service.scenes import render_scene, write_coco
from tests.conftest import ROOT, copy_checkout

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()
# The README trains for hours; here the same commands take a few steps. With fewer, all boxes have the same score, and
# all cells of a map the same value, to five digits: PyTorch and ONNX Runtime need not rank them alike.
SHORTENED = {
    "python -m training detector": "--set steps=20 --set batch_size=2",
    "python -m training pose": "--set steps=30 --set batch=4 --set warmup=2",
    "python -m export": "--check-count 8",
    "python -m training evaluate": "--set resamples=20",
}


def readme_commands() -> list[str]:
    """All lines of the README's ``sh`` blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def commands_starting(*beginnings: str) -> list[str]:
    """The README's commands that begin with one of these words."""
    return [command for command in readme_commands() if command.startswith(beginnings)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running_service(folder: Path, verb: str = "make serve") -> Iterator[tuple[str, float]]:
    """``make serve`` in ``folder``; yields host:port and the seconds it took until it was ready."""
    address = f"127.0.0.1:{free_port()}"
    start = time.monotonic()
    command = [*verb.split(), f"PORT={address.split(':')[1]}"]
    process = subprocess.Popen(command, cwd=folder, start_new_session=True)
    try:
        while not is_ready(address):
            assert process.poll() is None, f"{verb} ended with {process.returncode}"
            assert time.monotonic() - start < 900, f"{verb} is not ready after 15 minutes"
            time.sleep(0.05)
        yield address, time.monotonic() - start
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/v1/health/ready", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def service(fresh_copy: Path) -> Iterator[str]:
    """host:port of the service that a newcomer has after ``make serve``."""
    with running_service(fresh_copy) as (address, _):
        yield address


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout to train and export in."""
    return copy_checkout(tmp_path_factory.mktemp("workshop") / "tritonpose")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered pictures under the names of the data sets that the recipes use."""
    folder = tmp_path_factory.mktemp("data")
    for index, name in enumerate(("coco_train", "coco_val", "lspet_train", "lsp_train", "lsp_val")):
        scenes = (render_scene((index, number), size=(320, 240), people=(1, 3)) for number in range(8))
        annotations = write_coco(scenes, folder / f"{name}_rendered")
        annotations.rename(folder / f"{name}.json")
        (folder / f"{name}_rendered" / "images").rename(folder / name)
    return folder


def shell(command: str, folder: Path, **variables: str) -> str:
    """Output of a command line run in ``folder`` with this test's Python first on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    environment |= variables
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def agrees(shown: object, answered: object) -> bool:
    """Whether the README's JSON is part of the answer; numbers to 2 % or 0.05 (other processors round otherwise)."""
    if isinstance(shown, dict) and isinstance(answered, dict):
        return all(key in answered and agrees(value, answered[key]) for key, value in shown.items())
    if isinstance(shown, list) and isinstance(answered, list):
        return len(shown) == len(answered) and all(map(agrees, shown, answered))
    if isinstance(shown, float | int) and isinstance(answered, float | int):
        return abs(shown - answered) <= max(0.05, 0.02 * abs(answered))
    return shown == answered


def test_every_command_is_covered() -> None:
    covered = {
        *commands_starting(
            "make serve", "make triton", "make test", "make bench", "make loadtest", "curl", ". .venv/dev/bin/activate"
        ),
        *commands_starting(".venv/serve/bin/tritonpose", "python -m training", "python -m export"),
        # Held to the files they name by tests/deploy/test_commands.py: there need be no engine and no cluster.
        *commands_starting("docker compose", "kubectl apply -k"),
    }
    assert set(readme_commands()) == covered


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_make_test_and_lint_are_what_ci_runs() -> None:
    assert commands_starting("make test") == ["make test"]
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make test", "make lint"} <= set(lines)


def test_development_environment_can_be_activated() -> None:
    (command,) = commands_starting(". ")
    assert command == ". .venv/dev/bin/activate"
    if Path(sys.prefix) != ROOT / ".venv" / "dev":
        pytest.skip(f"the tests run in {sys.prefix}, not in what make test installs")
    assert (Path(sys.prefix) / "bin" / "activate").is_file()


def test_second_start_is_quick(service: str, fresh_copy: Path) -> None:
    """The first one, which installs, is the ``service`` fixture. Less than 5 s of CPU time to ready.

    CPU time, and a wide limit on the clock: what else the machine does is not the service's fault. Start-up runs on
    one core for the most part, so on a free machine the two are nearly the same.
    """
    assert is_ready(service)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with running_service(fresh_copy) as (_, taken):
        pass
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 5, f"{spent:.1f} s of CPU time, {taken:.1f} s by the clock"
    assert taken < 60


@pytest.mark.parametrize("command", commands_starting("make triton"))
def test_triton(command: str, service: str, fresh_copy: Path, triton_installation: Installation) -> None:
    """The same people as ``make serve`` finds, to 0.5 px and 0.01 of score; skips where no tritonserver runs."""
    picture = {"image": (fresh_copy / "docs" / "images" / "people.jpg").read_bytes()}
    expected = httpx.post(f"http://{service}/v1/pose", files=picture, timeout=60).json()
    with running_service(fresh_copy, command) as (address, _):
        answer = httpx.post(f"http://{address}/v1/pose", files=picture, timeout=60).json()
    assert (expected["info"]["engine"], answer["info"]["engine"]) == ("embedded", "triton")
    assert len(expected["annotations"]) >= 2
    assert disagreement(expected, answer) is None


@pytest.mark.parametrize("command", commands_starting("curl"))
def test_curl(command: str, service: str, fresh_copy: Path) -> None:
    assert "localhost:8000" in command
    output = shell(command.replace("localhost:8000", service), fresh_copy)
    words = shlex.split(command)
    if "-o" in words:
        picture = (fresh_copy / words[words.index("-o") + 1]).read_bytes()
        assert picture.startswith(b"\x89PNG"), picture[:200]
        return
    shown = re.search(re.escape(command) + r"\n```.*?^```json\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert shown, f"the README shows no answer of {command}"
    answer = json.loads(output)
    document = json.loads(shown[1])
    part = {key: answer.get(key) for key in ("images", "annotations")}
    now = textwrap.fill(json.dumps(part), 118, break_long_words=False, break_on_hyphens=False)
    assert document, f"the README shows an empty answer; this is the real one:\n{now}"
    assert agrees(document, answer), f"the answer has changed:\n{now}"


@pytest.mark.parametrize("command", commands_starting(".venv/serve/bin/tritonpose"))
def test_tritonpose(command: str, service: str, fresh_copy: Path) -> None:
    output = shell(command, fresh_copy)
    words = shlex.split(command)
    if "predict" in words:
        assert json.loads((fresh_copy / words[words.index("--out") + 1]).read_text())["annotations"]
        assert list((fresh_copy / words[words.index("--draw") + 1]).iterdir())
    else:
        assert output.strip()


@pytest.mark.parametrize("command", commands_starting("make bench", "make loadtest"))
def test_measuring(command: str, service: str, workshop: Path) -> None:
    """With the environment of this test, and shorter."""
    host, port = service.split(":")
    options = "--seconds 0.5 --rounds 1 --pictures 2" if "bench" in command else "--headless --run-time 5s --users 2"
    variables = (
        f"HOST={host} PORT={port} BIN={shlex.quote(str(Path(sys.executable).parent))} ARGS={shlex.quote(options)}"
    )
    assert shell(f"{command} --old-file=dev {variables}", workshop).strip()


@pytest.mark.parametrize("command", commands_starting("python -m"))
def test_training_and_export(command: str, workshop: Path, data: Path) -> None:
    """In the README's order: export and evaluate take what the commands before them made."""
    for beginning, options in SHORTENED.items():
        if command.startswith(beginning):
            command = f"{command} {options}"
    shell(command, workshop, TRITONPOSE_DATA=str(data))
