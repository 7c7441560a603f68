"""What all tests share: where the photographs are, and a fresh copy of the checkout."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from deploy.triton.installation import Installation, find_installation
from deploy.triton.server import TritonServer

if TYPE_CHECKING:
    from tests.overfitting import Sixteen

ROOT = Path(__file__).resolve().parent.parent

# A busy machine takes 0.3 s for an example of a millisecond: time is no property that is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def checkout_files() -> list[Path]:
    """Files that a commit of all work so far would hold, relative to ROOT; skips where git cannot tell."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    paths = [Path(name) for name in sorted(set(listed.stdout.split("\0"))) if name]
    return [path for path in paths if (ROOT / path).is_file()]


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Folder of the photographs and their annotations (TRITONPOSE_DATA); skips without them."""
    folder = os.environ.get("TRITONPOSE_DATA")
    if not folder:
        pytest.skip("needs photographs: set TRITONPOSE_DATA to their folder")
    if not Path(folder).is_dir():
        pytest.fail(f"TRITONPOSE_DATA names no folder: {folder}")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def people16(tmp_path_factory: pytest.TempPathFactory) -> Sixteen:
    """Sixteen people of the photographs, or of rendered scenes where there are none."""
    from tests.overfitting import sixteen

    folder = os.environ.get("TRITONPOSE_DATA")
    return sixteen(tmp_path_factory.mktemp("sixteen"), Path(folder).resolve() if folder else None)


@pytest.fixture(scope="session")
def overfitted(people16: Sixteen, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``overfitted(name)``: checkpoint of that network's tiny form, trained on those people once."""
    from tests.overfitting import overfit

    folder = tmp_path_factory.mktemp("overfitted")
    return functools.cache(lambda name: overfit(name, people16, folder / name))


@pytest.fixture(scope="session")
def triton_installation() -> Installation:
    """The tritonserver of the nvidia-pytriton wheel, installed on first use; skips where it cannot be."""
    command = [sys.executable, str(ROOT / "scripts" / "environment.py"), "triton"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tritonserver here: {done.stderr.strip()[-500:]}")
    return find_installation()


@pytest.fixture(scope="session")
def triton_server(triton_installation: Installation) -> Iterator[TritonServer]:
    """A real tritonserver over the shipped repository; tests may kill it, and start it again afterwards."""
    with TritonServer(ROOT / "model_repository", installation=triton_installation) as server:
        yield server


def copy_checkout(target: Path) -> Path:
    """Copy the checkout as a newcomer has it, without environments and tools; returns ``target``."""
    for path in checkout_files():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
    return target


@pytest.fixture(scope="session")
def fresh_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newcomer's copy of the checkout, with a blank in its path."""
    return copy_checkout(tmp_path_factory.mktemp("fresh") / "triton pose")
