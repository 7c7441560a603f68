"""If these fail, docs/data.md tells people fields, formats or commands that do not exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import typer
import yaml

from training.__main__ import app
from training.evaluate import EvaluationSource
from training.recipe import DataSource, Format

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()


def _table(first: str) -> dict[str, str]:
    """First column (in backquotes) to the row, of the table whose header begins with ``first``."""
    lines = TEXT.split(f"| {first} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return {re.findall(r"`([^`]+)`", line)[0]: line for line in lines}


def test_the_table_of_fields_is_the_models() -> None:
    rows = _table("field")
    assert list(rows) == list(DataSource.model_fields)


def test_the_tables_of_formats_and_metrics_are_the_codes() -> None:
    formats = get_args(Format)
    assert list(_table("format")) == list(formats)
    metrics = _table("metric")
    source = {"annotations": "a.json", "images": "a"}
    for name in formats:
        assert f"`{name}`" in metrics[EvaluationSource.model_validate({**source, "format": name}).own_metric]


def test_every_recipe_part_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONPOSE_DATA", "/data")
    parts = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    assert len(parts) >= 3
    for part in parts:
        for source in yaml.safe_load(part)["data"]:
            DataSource.model_validate(source)


def test_every_command_has_the_options_that_are_shown() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    shown = [
        line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S) for line in block.replace("\\\n", " ").splitlines()
    ]
    shown += re.findall(r"`(python -m training [^`]+)`", TEXT)
    found = [re.match(r"python -m training (\S+)(.*)", line) for line in shown]
    assert {match[1] for match in found if match} >= {"pose", "select-hard", "select-data", "pseudo-label", "evaluate"}
    for match in filter(None, found):
        options = {option for parameter in commands[match[1]].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", match[2])) <= options
