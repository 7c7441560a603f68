#!/usr/bin/env python3
"""Ask the advisory database about every pinned package: ``make audit``.

    python scripts/audit.py requirements/*.txt

pip-audit asks the package index for known vulnerabilities. A mirror of the index often has none, and pip-audit then
reports that nothing is wrong because nothing was looked at: packages that were skipped are counted here, and where all
were, it is said, and the list of minimum versions in ``tests/test_dependencies.py`` is all that is checked.
The smallest file is asked about first: where the database has no answer for that, it is not asked again.
Exits with 1 when a vulnerability is known in what is ours to pin.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _uv() -> str:
    """The one of this environment, which need not be on the PATH."""
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.is_file() else "uv"


_AUDIT = (_uv(), "tool", "run", "--quiet", "pip-audit", "--format", "json", "--progress-spinner", "off")
_SECONDS = 600
# tritonserver's own environment, on loopback, and the servers we compare with: told, but not ours to pin.
_OTHERS = ("triton", "peer-")


def audit(requirements: Path) -> tuple[int, list[str]] | None:
    """How many packages of a file the database knows, and their vulnerabilities; None without an answer."""
    try:
        run = subprocess.run(
            [*_AUDIT, "--disable-pip", "--require-hashes", "--requirement", str(requirements)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        found = json.loads(run.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    known = [package for package in found if "skip_reason" not in package]
    vulnerable = [
        f"{package['name']} {package['version']}: {one['id']}, fixed in {', '.join(one['fix_versions']) or 'none'}"
        for package in known
        for one in package["vulns"]
    ]
    return len(known), vulnerable


def main(files: list[str]) -> int:
    """Audit each file; the process's exit status."""
    failed = False
    for number, name in enumerate(sorted(files, key=lambda one: (ROOT / one).stat().st_size)):
        answer = audit(ROOT / name)
        if answer is None or not answer[0]:
            print(f"{name}: the advisory database is not at hand, nothing was audited", flush=True)
            if number == 0:
                break
            continue
        known, vulnerable = answer
        print(f"{name}: {known} packages audited, {len(vulnerable)} known vulnerabilities")
        for line in vulnerable:
            print(f"  {line}")
        failed |= bool(vulnerable) and not Path(name).name.startswith(_OTHERS)
    listed = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/test_dependencies.py"], cwd=ROOT, check=False)
    return int(failed or listed.returncode != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
