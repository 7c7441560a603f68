#!/usr/bin/env python3
"""Make the virtual environment ``.venv/<group>`` out of ``requirements/<group>.txt``, unless it is there already.

    python3 scripts/environment.py serve

Needs Python 3.10 and nothing else. uv is taken from the PATH; where it is missing, the pip beside this file puts
the pinned one into ``.tools/``: a Python without pip and venv (Debian's and Ubuntu's own) or one that refuses
installs (PEP 668) will do. Everything is checked against the hashes in ``requirements/``. Nothing is written
outside of the checkout but the caches of uv and pip.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
PIP = next((ROOT / "scripts").glob("pip-*.whl")) / "pip"
# Older ones lack hash-checked build constraints.
OLDEST_UV = (0, 5)
# Environments of other programs, which do not hold this project, and the newest Python they run on: tritonserver's
# wheel needs numpy < 2, which ends at 3.12.
FOREIGN = {"triton": (3, 12), "triton-gpu": (3, 12)}


def fingerprint(group: str) -> str:
    """What the environment depends on: pinned packages, the project's metadata, its place and the Python."""
    digest = hashlib.sha256()
    for name in (f"requirements/{group}.txt", "requirements/tools.txt", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    digest.update(f"{ROOT} {sys.version_info[:2]}".encode())
    return digest.hexdigest()


def answer(*command: str | Path) -> str:
    """Output of a command, "" when it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def recent_enough(uv: str | Path) -> bool:
    """Whether ``uv`` runs and knows the options used here."""
    version = re.match(r"uv (\d+)\.(\d+)", answer(uv, "--version"))
    return version is not None and (int(version[1]), int(version[2])) >= OLDEST_UV


def find_uv() -> str:
    """Path of a uv: the PATH's, the one fetched before, or the pinned one fetched now."""
    on_path = shutil.which("uv")
    if on_path and recent_enough(on_path):
        return on_path
    own = TOOLS / "bin" / "uv"
    if not recent_enough(own):
        print("fetching uv into .tools/", flush=True)
        shutil.rmtree(TOOLS, ignore_errors=True)
        pip = [sys.executable, "-I", str(PIP), "--quiet", "--disable-pip-version-check", "install"]
        pip += ["--root-user-action=ignore", "--target", str(TOOLS), "--only-binary=:all:", "--no-deps"]
        pip += ["--require-hashes", "--requirement", str(ROOT / "requirements" / "tools.txt")]
        # Settings of the user's own pip that contradict --target.
        subprocess.run(pip, check=True, env=os.environ | {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"})
    return str(own)


def older_python(uv: str, newest: tuple[int, int]) -> str:
    """A Python of 3.10 to ``newest`` that the system has. Raises LookupError."""
    wanted = f">=3.10,<{newest[0]}.{newest[1] + 1}"
    found = answer(uv, "python", "find", "--no-python-downloads", "--no-project", "--system", wanted).strip()
    if not found:
        here = ".".join(map(str, sys.version_info[:2]))
        raise LookupError(f"it runs on Python {wanted} only; this one is {here}, and no other was found")
    return found


def make_environment(group: str, venv: Path) -> None:
    """Create or update ``venv`` to hold exactly the pinned packages and this project, editable."""
    python = venv / "bin" / "python"
    # No uv.lock, no Python from elsewhere, whatever environment is active.
    uv_environment = os.environ | {"UV_PYTHON_DOWNLOADS": "never"}
    # Trust what the system trusts, as pip does: uv's own list lacks the authority of a company's proxy.
    if ssl.get_default_verify_paths().cafile:
        uv_environment.setdefault("UV_SYSTEM_CERTS", "1")
    uv_environment.pop("VIRTUAL_ENV", None)
    uv = find_uv()

    def run(*arguments: str) -> None:
        subprocess.run([uv, *arguments], check=True, env=uv_environment, cwd=ROOT)

    # The interpreter below any environment that is active now, which may be the one about to be cleared.
    base = getattr(sys, "_base_executable", None) or sys.executable
    newest = FOREIGN.get(group)
    if newest and sys.version_info[:2] > newest:
        base = older_python(uv, newest)
    version = ("-c", "import sys; print(sys.version_info[:2])")
    if answer(python, *version) != answer(base, *version):
        run("venv", "--quiet", "--clear", "--python", base, str(venv))
    # Bytecode now, so that the first start is as quick as the second, also where PYTHONDONTWRITEBYTECODE is set.
    run("pip", "sync", "--python", str(python), "--require-hashes", "--compile-bytecode", f"requirements/{group}.txt")
    if group not in FOREIGN:
        run(
            *("pip", "install", "--quiet", "--python", str(python), "--no-deps"),
            *("--build-constraints", "requirements/tools.txt", "--editable", "."),
        )


def main() -> int:
    """Make the environment named on the command line; 0 when it is ready."""
    groups = sorted(path.stem for path in (ROOT / "requirements").glob("*.txt") if path.stem != "tools")
    if len(sys.argv) != 2 or sys.argv[1] not in groups:
        print(f"usage: {sys.argv[0]} {'|'.join(groups)}", file=sys.stderr)
        return 2
    group = sys.argv[1]
    venv = ROOT / ".venv" / group
    stamp = venv / "fingerprint"
    wanted = fingerprint(group)
    if stamp.is_file() and stamp.read_text() == wanted and (venv / "bin" / "python").exists():
        return 0
    print(f"installing requirements/{group}.txt into .venv/{group}", flush=True)
    start = time.monotonic()
    try:
        make_environment(group, venv)
    except LookupError as error:
        print(f"could not make .venv/{group}: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"could not make .venv/{group}: exit {error.returncode} of {error.cmd[0]} (see above)", file=sys.stderr)
        return 1
    stamp.write_text(wanted)
    print(f".venv/{group} is ready after {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
