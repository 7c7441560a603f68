"""The real service over the stand-in repository, once for all load tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.server import ServiceProcess
from tests.loadtest.stand_in import write_repository


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def service(repository: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess({"TRITONPOSE_REPOSITORY": str(repository)}) as running:
        yield running
