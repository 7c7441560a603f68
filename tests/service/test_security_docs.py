"""docs/security.md: its limits are those in force, and its commands work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service import bodies, connections, image_header, options
from service.safe_headers import DEFAULTS
from service.settings import Settings

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
LIMITS = TEXT.partition("## Limits")[2].partition("### Who")[0]
BOUNDS = [
    name
    for name in Settings.model_fields
    if re.match(r"(max|caller)_|pixel_budget", name) or re.match(r"(head|body|deadline)_seconds", name)
]


@pytest.mark.parametrize("name", BOUNDS)
def test_every_bound_is_in_the_table_with_its_default(name: str) -> None:
    found = re.search(rf"`TRITONPOSE_{name.upper()}` (\d+)", LIMITS)
    assert found, f"{name} is not in the table"
    assert float(found.group(1)) == getattr(Settings(), name)


def test_every_setting_that_is_named_exists() -> None:
    named = set(re.findall(r"TRITONPOSE_([A-Z_]+)", TEXT))
    assert {name.lower() for name in named} <= set(Settings.model_fields)
    assert {"API_KEYS", "API_KEYS_FILE", "TRUSTED_PROXIES", "CORS_ORIGINS", "METRICS_NEED_KEY", "API_DOCS"} <= named


def test_fixed_bounds_are_those_in_the_code() -> None:
    assert f"{connections.MAX_HEAD_BYTES // 1024} KiB, {connections.MAX_HEADERS} headers" in LIMITS
    assert f"{connections.BoundedProtocol.write_seconds:g} s" in LIMITS
    assert f"{bodies._MAX_FIELDS} fields of {bodies._MAX_FIELD_BYTES} bytes" in LIMITS
    assert f"{bodies._MAX_PART_HEADERS} headers of {bodies._MAX_PART_HEADER_BYTES // 1024} KiB" in LIMITS
    assert f"{bodies._MAX_JSON_MARKS:,}" in LIMITS
    assert f"{options.MAX_OPTIONS}; {options.MAX_NAME} characters; {options.MAX_VALUE} characters or" in LIMITS
    assert f"| scans of a progressive JPEG | {image_header._MAX_SCANS} |" in LIMITS
    assert f"100; {bodies.MAX_BOXES} |" in LIMITS


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_header_is_there(name: str) -> None:
    (row,) = [line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |")]
    assert DEFAULTS[name] in row
