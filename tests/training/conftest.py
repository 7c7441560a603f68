"""A small rendered data set that training tests share: no photograph needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.scenes import render_scene, write_coco


@pytest.fixture(scope="session")
def rendered_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``annotations.json`` and ``images/``: 8 scenes of 2 people, 320x240."""
    folder = tmp_path_factory.mktemp("rendered")
    write_coco((render_scene(seed, people=2, size=(320, 240)) for seed in range(8)), folder)
    return folder
