"""The page works where there is no internet, and knows the contract it reads."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from service.options import PoseOptions

PAGE = Path(__file__).resolve().parents[2] / "service" / "page" / "index.html"
HTML = PAGE.read_text(encoding="utf-8")
SCRIPT = HTML.partition("<script>")[2].partition("</script>")[0]


def test_nothing_is_loaded_from_elsewhere() -> None:
    without_namespaces = HTML.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//cdn|@import|src=", without_namespaces)


def test_every_element_that_the_script_asks_for_is_there() -> None:
    found: set[str] = set()

    class Ids(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.update(value for name, value in attrs if name == "id" and value)

    Ids().feed(HTML)
    asked = set(re.findall(r'\$\("([\w-]+)"\)', SCRIPT)) | {"box", "most", "flip"}
    assert asked <= found


def test_the_options_it_sends_exist() -> None:
    sent = set(re.findall(r'query\.set\("(\w+)"', SCRIPT)) | set(re.findall(r"(\w+): \$\(\"(?:most|flip)\"\)", SCRIPT))
    assert {"max_people", "flip", "model", "box_threshold"} == sent
    assert sent <= set(PoseOptions.model_fields)


def test_the_script_parses(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node to parse the page's script")
    script = tmp_path / "page.js"
    script.write_text(SCRIPT, encoding="utf-8")
    checked = subprocess.run([node, "--check", str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
