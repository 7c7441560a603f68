"""The API's documentation names everything there is, and its limits are those in force."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.app import create_app
from service.deadlines import read_timeout
from service.options import PoseOptions
from service.problems import problem_types
from service.settings import Settings
from tests.service.marked_people import card_engine

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "http-api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", PoseOptions.model_fields)
def test_every_option_is_there_with_its_default(option: str) -> None:
    default = PoseOptions.model_fields[option].default
    (row,) = [line for line in TEXT.splitlines() if line.startswith(f"| `{option}` |")]
    shown = row.split("|")[2].strip(" `")
    assert shown in (str(default), str(default).lower(), "the model's", "the detector's", "1,1,1")


@pytest.mark.parametrize("kind", sorted(set(problem_types()) - {"client-gone"}))
def test_every_problem_is_there_with_its_status(kind: str) -> None:
    (row,) = [line for line in TEXT.splitlines() if line.startswith("| ") and f"`/problems/{kind}`" in line]
    assert str(problem_types()[kind][1]) in row


def test_every_route_is_there() -> None:
    paths = create_app(Settings(cpu_threads=1), card_engine()).openapi()["paths"]
    assert all(path in TEXT for path in paths)


def test_the_limits_are_those_in_force() -> None:
    settings = Settings()
    assert f"{settings.max_body_bytes // 2**20} MiB of body" in TEXT
    assert f"{settings.max_image_bytes // 2**20} MiB or {settings.max_pixels // 10**6} megapixels" in TEXT
    assert f"{settings.max_images} pictures" in TEXT
    assert f"more than {settings.max_waiting} requests wait" in TEXT
    assert f"within {settings.deadline_seconds:g} s" in TEXT
    assert f"longer than {settings.body_seconds:g} s" in TEXT
    assert f"at most {settings.max_deadline_seconds:g}; {settings.deadline_seconds:g} without it" in TEXT


def test_the_document_tells_of_deadlines_refusals_and_keys() -> None:
    document = create_app(
        Settings(cpu_threads=1, api_keys="alpha-of-at-least-32-characters-1"), card_engine()
    ).openapi()
    pose = document["paths"]["/v1/pose"]["post"]
    (timeout,) = [one for one in pose["parameters"] if one["in"] == "header"]
    assert timeout["name"] == "X-Request-Timeout"
    pattern = re.compile(timeout["schema"]["pattern"])
    for value in ("1", "2.5", "99.999", "119.5", "120"):
        assert pattern.fullmatch(value)
        assert read_timeout(value, Settings()) == float(value)
    for value in ("120.5", "0", "121", "1e3", "-1"):
        assert not pattern.fullmatch(value)
    assert "Retry-After" in pose["responses"]["429"]["headers"]
    assert "Retry-After" in pose["responses"]["503"]["headers"]
    guarded = {
        path for path, operations in document["paths"].items() for one in operations.values() if "security" in one
    }
    assert guarded == {"/v1/pose", "/v1/models", "/v1/models/{name}"}
    assert set(document["components"]["securitySchemes"]) == {"bearer", "key"}
    open_document = create_app(Settings(cpu_threads=1), card_engine()).openapi()
    assert "security" not in open_document["paths"]["/v1/pose"]["post"]
