"""Reading the Dockerfile as an engine does, as far as ours goes: stages, environment, copies, what is ignored."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from dockerfile_parse import DockerfileParser

from tests.conftest import ROOT, checkout_files

DOCKERFILE = ROOT / "Dockerfile"


@dataclass
class Stage:
    """One FROM with the instructions below it.

    Attributes:
        name, base: of ``FROM base AS name``.
        lines: (instruction, value) in order; continuation lines joined, ``--mount`` flags of RUN left out.
    """

    name: str
    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        """All values of an instruction."""
        return [value for name, value in self.lines if name == instruction]

    def command(self, instruction: str) -> list[str]:
        """The words of the exec form. Raises ValueError for the shell form, which no signal gets through."""
        (value,) = self.values(instruction)
        words = json.loads(value[value.index("[") :])
        return [str(word) for word in words]


def read_stages(path: Path = DOCKERFILE) -> dict[str, Stage]:
    """The stages by name, in order."""
    stages: dict[str, Stage] = {}
    for line in DockerfileParser(path=str(path)).structure:
        instruction, value = line["instruction"], " ".join(line["value"].split())
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            stages[name] = Stage(name, base)
        elif instruction != "COMMENT":
            text = re.sub(r"--mount=\S+ ", "", value) if instruction == "RUN" else value
            list(stages.values())[-1].lines.append((instruction, text))
    return stages


def ancestry(stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage and those that it is built from, the outermost first."""
    chain = [stages[name]]
    while chain[0].base in stages:
        chain.insert(0, stages[chain[0].base])
    return chain


def assignments(value: str) -> dict[str, str]:
    """Names and values of an ENV or LABEL."""
    return dict(word.split("=", 1) for word in shlex.split(value))


def build_context() -> list[Path]:
    """What an engine is sent of a fresh clone: .dockerignore applied, relative to the checkout."""
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.strip() and not line.startswith("#")
    ]

    def sent(path: Path) -> bool:
        wanted = True
        names = [path.as_posix(), *(parent.as_posix() for parent in path.parents if parent.name)]
        for pattern in patterns:
            plain = pattern.lstrip("!")
            # ** stands for any number of folders, none included.
            forms = (plain, plain.replace("**/", "")) if plain.startswith("**/") else (plain,)
            whole = any(
                fnmatchcase(name, form) and name.count("/") == form.count("/") for name in names for form in forms
            )
            part = plain.startswith("**/") and any(fnmatchcase(name.rpartition("/")[2], forms[-1]) for name in names)
            if whole or part:
                wanted = pattern.startswith("!")
        return wanted

    return [path for path in checkout_files() if sent(path)]
