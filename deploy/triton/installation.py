"""Where the tritonserver of the ``nvidia-pytriton`` wheel is, and what it has to be told so that it runs.

The wheel's own launcher is not used: it would bring its Python API with it, and models of its own making.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = ROOT / ".venv" / "triton"
#: The same server with an ONNX Runtime that has CUDA.
GPU_ENVIRONMENT = ROOT / ".venv" / "triton-gpu"
BACKENDS = Path(__file__).resolve().parent / "backends"

_ASK = """
import json, sys, sysconfig
print(json.dumps([sysconfig.get_path("platlib"), sysconfig.get_config_var("LIBDIR"), "%d.%d" % sys.version_info[:2]]))
"""


class TritonMissing(RuntimeError):
    """The server is not installed, or not for this machine; the message says how to get it."""


@dataclass(frozen=True)
class Installation:
    """An environment that holds the wheel.

    Attributes:
        environment: the virtual environment's folder.
        packages: its site-packages.
        python_libraries: folder of libpython, which the back end's processes load.
        python_version: such as ``3.11``; there is a program for the back end's processes for each.
    """

    environment: Path
    packages: Path
    python_libraries: str
    python_version: str

    @property
    def program(self) -> Path:
        """The tritonserver binary."""
        return self.packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    def variables(self) -> dict[str, str]:
        """This process's environment variables with what the server needs."""
        libraries = [str(self.packages / "nvidia_pytriton.libs"), self.python_libraries]
        inherited = os.environ.get("LD_LIBRARY_PATH")
        return os.environ | {
            "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *([inherited] if inherited else [])]),
            # The back end's processes take the Python that comes first.
            "PATH": os.pathsep.join([str(self.environment / "bin"), os.environ.get("PATH", os.defpath)]),
            "VIRTUAL_ENV": str(self.environment),
            # What this process imports from must not reach into theirs.
            "PYTHONPATH": "",
            "PYTHONHOME": "",
        }

    def copy_backends(self, folder: Path) -> None:
        """Make ``folder`` a backend directory: the wheel's ``python`` back end and ours that run on it.

        Copies, of 3 MB: Triton refuses a back end whose link leads out of the directory.
        """
        wheel = self.packages / "pytriton" / "tritonserver"
        shutil.copytree(wheel / "backends" / "python", folder / "python")
        stub = "triton_python_backend_stub"
        shutil.copy2(wheel / "python_backend_stubs" / self.python_version / stub, folder / "python" / stub)
        for path in BACKENDS.iterdir():
            if (path / "model.py").is_file():
                shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))


def find_installation(environment: Path = ENVIRONMENT) -> Installation:
    """The wheel's server in a virtual environment. Raises TritonMissing."""
    python = environment / "bin" / "python"
    group = GPU_ENVIRONMENT.name if environment == GPU_ENVIRONMENT else ENVIRONMENT.name
    hint = f"make it with: python3 {ROOT / 'scripts' / 'environment.py'} {group}"
    try:
        done = subprocess.run([python, "-I", "-c", _ASK], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise TritonMissing(f"there is no environment {environment}; {hint}") from error
    packages, libraries, version = json.loads(done.stdout)
    found = Installation(environment, Path(packages), libraries or "", version)
    if not found.program.is_file():
        raise TritonMissing(f"{environment} holds no tritonserver; {hint}")
    stub = found.packages / "pytriton" / "tritonserver" / "python_backend_stubs" / version
    if not stub.is_dir():
        raise TritonMissing(f"the server's wheel has no back end for Python {version}; {hint} (Python 3.10 to 3.12)")
    return found
