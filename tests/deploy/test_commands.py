"""The commands for docker and kubectl in README and docs name what is there.

Whether they succeed takes an engine and a cluster; that profiles, services, targets and folders exist does not.
"""

from __future__ import annotations

import re
import shlex
from itertools import pairwise

import pytest
import yaml

from tests.conftest import ROOT
from tests.deploy.dockerfile import read_stages

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROFILES = {profile for service in COMPOSE["services"].values() for profile in service["profiles"]}


def commands() -> list[str]:
    """Lines of ``sh`` blocks, comments left out, and the comments on top of the files themselves."""
    found = []
    for name in ("README.md", "docs/deployment.md"):
        blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
        found += [line for block in blocks for line in block.splitlines()]
    for name in ("docker-compose.yml", "Dockerfile", ".env"):
        text = (ROOT / name).read_text()
        found += re.findall(r"^#\s+(?:.*: )?(docker (?:compose|build)\b.*?)(?:  .*|\.)?$", text, re.MULTILINE)
        found += re.findall(r"`(docker compose[^`]*)`", text)
    lines = [part.strip() for line in found for part in re.sub(r" +#.*", "", line).split("&&")]
    return sorted({line for line in lines if re.match(r"docker (compose|build)|kubectl apply", line)})


def test_there_are_commands() -> None:
    assert len(commands()) >= 8
    assert {"docker compose up --build", "kubectl apply -k deploy/kubernetes/overlays/cpu"} <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_it_names_what_is_there(command: str) -> None:
    words = shlex.split(command)
    options = dict(pairwise(words))
    if words[0] == "kubectl":
        assert (ROOT / options["-k"] / "kustomization.yaml").is_file()
    elif words[1] == "build":
        assert options.get("--target", "gateway") in read_stages()
    else:
        profiles = {words[place + 1] for place, word in enumerate(words) if word == "--profile"}
        assert profiles <= PROFILES
        services = [word for word in words[2:] if not word.startswith("-") and word not in profiles]
        verb, *named = services or ["up"]
        assert verb in ("up", "down", "run", "build")
        if verb == "run":
            assert named[0] in COMPOSE["services"]
