"""No version with a known hole: what is installed, what is pinned, and what may be installed.

``make audit`` asks the advisory database, where it can be reached; this list is what was found there when it was made
(November 2026), for the packages that read what strangers send, and those of training, tests and load tests.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


class Fixed(NamedTuple):
    """The first version without a hole, and where the hole is told."""

    package: str
    minimum: str
    advisory: str
    what: str
    marker: str = ""


FIXED = (
    # What reads requests.
    Fixed("starlette", "1.3.1", "CVE-2026-54283", "forms of any size in spite of limits"),
    Fixed("starlette", "1.3.0", "CVE-2026-54282", "the path becomes part of the host name"),
    Fixed("starlette", "0.49.1", "CVE-2025-62727", "Range header of quadratic cost"),
    Fixed("python-multipart", "0.0.31", "GHSA-v9pg-7xvm-68hf", "negative Content-Length buffers the whole body"),
    Fixed("python-multipart", "0.0.27", "CVE-2026-42561", "parts with any number of headers"),
    Fixed("h11", "0.16.0", "CVE-2025-43859", "malformed chunks accepted: request smuggling"),
    Fixed("httptools", "0.5.0", "CVE-2022-32213", "malformed Transfer-Encoding accepted: request smuggling"),
    Fixed("uvicorn", "0.11.7", "CVE-2020-7695", "line ends in headers split the answer"),
    Fixed("idna", "3.16", "CVE-2026-45409", "names of quadratic cost"),
    # What reads pictures.
    Fixed(
        "pillow", "13.0.0", "GHSA-8g5g-8vmr-9782", "JPEG decoder writes behind its buffer", "python_version >= '3.11'"
    ),
    Fixed("pillow", "12.3.0", "PYSEC-2026-2253", "several decoders", "python_version < '3.11'"),
    Fixed("pillow", "12.2.0", "CVE-2026-40192", "FITS files that unpack without bound"),
    Fixed("opencv-python-headless", "4.12.0", "CVE-2025-53644", "uninitialised pointer in the image decoder"),
    # What reads settings, models and answers of other servers.
    Fixed("pydantic-settings", "2.14.2", "GHSA-4xgf-cpjx-pc3j", "secrets folder left through a symbolic link"),
    Fixed("python-dotenv", "1.2.2", "CVE-2026-28684", "writes through symbolic links"),
    Fixed("protobuf", "6.33.5", "CVE-2026-0994", "JSON nested without bound"),
    Fixed("grpcio", "1.53.1", "CVE-2023-32731", "headers of one connection in another's"),
    Fixed("certifi", "2024.7.4", "CVE-2024-39689", "root certificates that are trusted no more"),
    Fixed("pygments", "2.20.0", "CVE-2026-4539", "regular expression of quadratic cost"),
    # Training and export.
    Fixed("torch", "2.10.0", "CVE-2026-24747", "checkpoints run code in spite of weights_only"),
    Fixed("onnx", "1.21.0", "CVE-2026-27489", "models read files outside of their folder"),
    # Load tests and tests.
    Fixed("urllib3", "2.7.0", "CVE-2026-44431", "keys sent on to another host"),
    Fixed("aiohttp", "3.14.1", "CVE-2026-54278", "bodies that unpack without bound"),
    Fixed("requests", "2.33.0", "CVE-2026-25645", "files in a shared temporary folder"),
    Fixed("jinja2", "3.1.6", "GHSA-cpwx-vrp4-4pq7", "templates leave their sandbox"),
    Fixed("werkzeug", "3.1.6", "CVE-2026-27199", "device names in paths"),
    Fixed("flask", "3.1.3", "CVE-2026-27205", "answers cached for others"),
    Fixed("uv", "0.8.6", "CVE-2025-54368", "archives that unpack differently elsewhere"),
)
PINNED = sorted((ROOT / "requirements").glob("*.txt"))
# tritonserver's own environment, on loopback, needs NumPy 1; the servers we compare with are not ours to pin.
SERVED = [path for path in PINNED if path.stem not in ("triton", "triton-gpu") and not path.stem.startswith("peer-")]


def applies(fixed: Fixed, marker: str, python: str) -> bool:
    """Whether a line of a requirements file, and a fix, are for that Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    return all(not text or Marker(text).evaluate(environment) for text in (fixed.marker, marker))


def pins(path: Path) -> list[tuple[str, str, str]]:
    """Name, version and marker of every line."""
    lines = re.findall(r"^([\w.-]+)==([^\s;]+)(?: ; (.*?))?(?: \\)?$", path.read_text(encoding="utf-8"), re.M)
    return [(name.lower(), pinned, marker) for name, pinned, marker in lines]


@pytest.mark.parametrize("fixed", FIXED, ids=lambda fixed: f"{fixed.package}-{fixed.advisory}")
def test_what_is_installed_is_not_older(fixed: Fixed) -> None:
    try:
        installed = version(fixed.package)
    except PackageNotFoundError:
        pytest.skip(f"{fixed.package} is not installed")
    if fixed.marker and not Marker(fixed.marker).evaluate():
        pytest.skip(f"for {fixed.marker}")
    assert Version(installed) >= Version(fixed.minimum), f"{fixed.advisory}: {fixed.what}"


@pytest.mark.parametrize("python", ["3.10", "3.13"])
@pytest.mark.parametrize("path", SERVED, ids=lambda path: path.stem)
def test_what_is_pinned_is_not_older(path: Path, python: str) -> None:
    found = pins(path)
    assert len(found) > 5
    for fixed in FIXED:
        for name, pinned, marker in found:
            if name == fixed.package and applies(fixed, marker, python):
                assert Version(pinned) >= Version(fixed.minimum), f"{path.name}: {fixed.advisory}: {fixed.what}"


def test_all_that_serves_is_in_the_list_or_takes_nothing_from_strangers() -> None:
    served = {name for name, _, _ in pins(ROOT / "requirements" / "serve.txt")}
    listed = {fixed.package for fixed in FIXED}
    assert {
        "starlette",
        "python-multipart",
        "httptools",
        "uvicorn",
        "pillow",
        "opencv-python-headless",
    } <= served & listed


def test_what_may_be_installed_is_not_older() -> None:
    """Somebody who installs without our pins gets nothing with a hole either, of what is asked for directly."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = re.findall(r'^\s*"([\w.-]+(?:\[\w+\])?>=[^"]+)",', text, re.M)
    lowest = {one.name: min(Version(bound.version) for bound in one.specifier) for one in map(Requirement, lines)}
    assert len(lowest) > 20
    for fixed in FIXED:
        # Where a fix is for newer Pythons alone, the bound is what the oldest can have.
        if fixed.package in lowest and fixed.marker != "python_version >= '3.11'":
            assert lowest[fixed.package] >= Version(fixed.minimum), f"pyproject.toml: {fixed.package}: {fixed.advisory}"
