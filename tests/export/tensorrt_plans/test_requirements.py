"""If these fail, whoever builds plans on a machine that cannot is told something else than what is missing."""

import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from export.__main__ import app
from export.checkpoints import ExportError
from export.tensorrt_plans import conversion
from export.tensorrt_plans.requirements import LEAST_CAPABILITY, find_gpu, find_tensorrt


@pytest.fixture
def without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)


def test_no_package_names_the_package_and_the_version_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    sys.modules.pop("tensorrt", None)
    with pytest.raises(ExportError, match=r"'tensorrt' is not installed.*tensorrt-cu13==10\.14\.1"):
        find_tensorrt("10.14.1")


def test_bindings_without_libraries_name_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("import ctypes\nctypes.CDLL('libnvinfer_absent.so.10')\n")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("tensorrt", None)
    with pytest.raises(ExportError, match=r"not its libraries \(libnvinfer_absent\.so\.10"):
        find_tensorrt(None)


@pytest.mark.parametrize(
    ("installed", "wanted", "told"),
    [
        ("8.6.1", None, "8.6.1 is too old"),
        ("10.14.1.48", "10.13.3", "10.14.1.48 is installed, but the server's is 10.13.3"),
        ("10.1.0", "10.14", "the server's is 10.14"),
    ],
)
def test_another_version_is_refused(
    installed: str, wanted: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=installed))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=told):
        find_tensorrt(wanted)


@pytest.mark.parametrize("wanted", [None, "10", "10.14.1", "10.14.1.48"])
def test_the_servers_version_is_taken(wanted: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(__version__="10.14.1.48.post1")
    monkeypatch.setitem(sys.modules, "tensorrt", module)  # type: ignore[arg-type]
    assert find_tensorrt(wanted) is module


def test_no_driver_names_the_library_and_how_containers_get_it() -> None:
    with pytest.raises(ExportError, match=r"no NVIDIA driver: libcuda_absent\.so\.1.*--gpus all"):
        find_gpu("libcuda_absent.so.1")


DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "GPU of a test", length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? MAJOR : 0; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "unknown error"; return 0; }
"""


def driver(folder: Path, **values: int) -> str:
    """A library with the driver's functions that answers ``values``; needs a C compiler."""
    source, library = folder / "driver.c", folder / "libcuda_of_a_test.so"
    source.write_text(DRIVER)
    given = {"INIT": 0, "COUNT": 1, "MAJOR": 9, **values}
    command = ["cc", "-shared", "-fPIC", *(f"-D{key}={value}" for key, value in given.items())]
    try:
        subprocess.run([*command, "-o", str(library), str(source)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no C compiler: {error}")
    assert ctypes.CDLL(str(library))
    return str(library)


def test_the_gpu_is_what_the_driver_says(tmp_path: Path) -> None:
    gpu = find_gpu(driver(tmp_path))
    assert (gpu.name, gpu.capability, gpu.driver_cuda) == ("GPU of a test", (9, 0), (13, 1))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"INIT": 999}, "refuses cuInit: error 999, unknown error"),
        ({"COUNT": 0}, "the NVIDIA driver sees no GPU"),
        ({"MAJOR": 7}, r"GPU of a test has compute capability 7\.0; 7\.5 is the least"),
    ],
)
def test_a_driver_that_cannot_is_told(values: dict[str, int], told: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=told):
        find_gpu(driver(tmp_path, **values))


def test_a_torch_that_does_not_get_the_gpu_is_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans take an hour to build and are compared with torch's help at the end."""
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.14.1.48"))  # type: ignore[arg-type]
    monkeypatch.setattr(conversion, "find_gpu", lambda: find_gpu(driver(tmp_path)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    request = conversion.PlanRequest(Path("model_repository"), tmp_path / "plans")
    with pytest.raises(ExportError, match=r"torch 2\..* cannot use the GPU \(it is built "):
        conversion.run_tensorrt(request, Console())


def test_the_docs_ask_for_the_gpus_that_are_taken() -> None:
    """Who buys or rents a node reads it there."""
    docs = (Path(__file__).resolve().parents[3] / "docs" / "deployment.md").read_text()
    assert f"compute capability {'.'.join(map(str, LEAST_CAPABILITY))} or higher" in docs


def test_the_command_says_what_is_missing_and_writes_nothing(without_tensorrt: None, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tensorrt", "--into", str(tmp_path / "plans")])
    assert result.exit_code == 1
    assert "no plans: no TensorRT" in result.output.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_the_float_repository_is_not_written_into() -> None:
    result = CliRunner().invoke(app, ["tensorrt", "--into", "model_repository"])
    assert result.exit_code == 1 and "--into must be another folder" in result.output.replace("\n", " ")
