"""The table of shared memory in docs/triton.md can be printed again, by the command that the docs name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deploy.triton.installation import Installation
from tests.conftest import ROOT


@pytest.mark.slow
def test_the_table_is_printed(triton_installation: Installation) -> None:
    command = [sys.executable, "-m", "loadtest.transport", "--blocks", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    assert [(row[0], row[2]) for row in rows] == [
        (str(people), way) for people in (1, 5, 20) for way in ("gRPC", "shared memory")
    ]
    assert all(float(cell) >= 0 for row in rows for cell in row[3:])
