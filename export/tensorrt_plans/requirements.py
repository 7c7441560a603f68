"""What must be there before a plan can be built, and words for what is not."""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from typing import Any

from export.checkpoints import ExportError

# Networks are typed strongly, which TensorRT does since 9.0 and does nothing else from 11.0 on; 10 is the oldest that
# current Triton images carry.
LEAST_MAJOR = 10
# What current Triton images run on (release notes of 26.07 and later).
LEAST_CAPABILITY = (7, 5)
_INSTALL = (
    "install the version of the Triton image that will serve the plans, `pip install tensorrt-cu13=={version}` "
    "(for CUDA 13, which images from 25.08 on carry; its libraries come from NVIDIA's own package index), or run this "
    "inside an image that has it"
)


@dataclass(frozen=True)
class Gpu:
    """The GPU that plans are built on; they run on no other type."""

    name: str
    capability: tuple[int, int]
    driver_cuda: tuple[int, int]


def find_tensorrt(version: str | None) -> Any:
    """The ``tensorrt`` module.

    Args:
        version: what the server has, such as ``10.14.1`` or ``10.14.1.48``; a plan of another version does not load
            there. None takes whatever is installed.

    Raises:
        ExportError: it is not installed, its libraries are missing, it is too old or of another version.
    """
    install = _INSTALL.format(version=version or "VERSION")
    try:
        module = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        raise ExportError(f"no TensorRT: the Python package {error.name!r} is not installed; {install}") from error
    except (ImportError, OSError) as error:
        raise ExportError(f"TensorRT's Python package is there, but not its libraries ({error}); {install}") from error
    found = str(module.__version__)
    if int(found.split(".")[0]) < LEAST_MAJOR:
        raise ExportError(f"TensorRT {found} is too old: {LEAST_MAJOR}.0 is the least; {install}")
    if version is not None and found.split(".")[: version.count(".") + 1] != version.split("."):
        raise ExportError(f"TensorRT {found} is installed, but the server's is {version}: it loads no other; {install}")
    return module


def find_gpu(library: str = "libcuda.so.1") -> Gpu:
    """The first GPU, asked of the driver itself.

    Raises:
        ExportError: no driver, no GPU, or one that current images do not run on.
    """
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise ExportError(
            f"no NVIDIA driver: {library} cannot be loaded ({error}); install the driver, and in a container "
            "pass the GPU on (`--gpus all`)"
        ) from error
    _call(driver, "cuInit", 0)
    number, count, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _call(driver, "cuDriverGetVersion", ctypes.byref(number))
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        raise ExportError("the NVIDIA driver sees no GPU: in a container pass it on (`--gpus all`)")
    _call(driver, "cuDeviceGet", ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(100)
    _call(driver, "cuDeviceGetName", name, len(name), device)
    capability = []
    for attribute in (75, 76):  # compute capability, major and minor
        value = ctypes.c_int()
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        capability.append(value.value)
    gpu = Gpu(name.value.decode(), (capability[0], capability[1]), (number.value // 1000, number.value % 1000 // 10))
    if gpu.capability < LEAST_CAPABILITY:
        raise ExportError(
            f"{gpu.name} has compute capability {gpu.capability[0]}.{gpu.capability[1]}; "
            f"{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} is the least"
        )
    return gpu


def require_torch_on_gpu() -> None:
    """Plans are compared before they are published, and torch holds their tensors: known before any is built.

    Raises:
        ExportError: torch was built without CUDA, or does not get the GPU.
    """
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        reason = f"it is built for CUDA {torch.version.cuda}" if torch.version.cuda else "it is built without CUDA"
        raise ExportError(
            f"torch {torch.__version__} cannot use the GPU ({reason}), and plans are compared with its help before "
            "they are published; install a build for this driver's CUDA"
        )


def _call(driver: ctypes.CDLL, name: str, *arguments: Any) -> None:
    code = getattr(driver, name)(*arguments)
    if code == 0:
        return
    text = ctypes.c_char_p()
    driver.cuGetErrorString(code, ctypes.byref(text))
    told = text.value.decode() if text.value else "no text"
    raise ExportError(f"the NVIDIA driver refuses {name}: error {code}, {told}")
