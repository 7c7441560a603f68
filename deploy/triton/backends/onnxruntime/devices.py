"""Where a session runs: on the instance's GPU, or on the CPU with the reason why not on the GPU.

ONNX Runtime falls back to the CPU by itself, and says why on its own log at best: whoever has a GPU wants to read it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import onnxruntime

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# Numbers that NVIDIA's own back end takes, to ONNX Runtime's words for them.
_CHOICES = {
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "do_copy_in_default_stream": ("0", "1"),
}
# In the order in which ONNX Runtime loads them: the second asks the first for its host.
_LIBRARIES = ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")


def cuda_options(parameters: Mapping[str, str]) -> dict[str, str]:
    """Options of the CUDA provider from a config's ``parameters``, as NVIDIA's back end names them.

    Those are ``cudnn_conv_algo_search``, ``arena_extend_strategy``, ``do_copy_in_default_stream`` (numbers) and
    ``gpu_mem_limit`` (bytes; 0 is no limit). Raises ValueError with the name and the value of one that is none.
    """
    # ONNX Runtime's default search tries every cuDNN algorithm anew for each batch size; the heuristic does not.
    options = {"cudnn_conv_algo_search": "HEURISTIC"}
    for key, words in _CHOICES.items():
        if key in parameters:
            number = _number(parameters, key)
            if number >= len(words):
                raise ValueError(f"parameter {key} must be under {len(words)}, got {number}")
            options[key] = words[number]
    if "gpu_mem_limit" in parameters and (limit := _number(parameters, "gpu_mem_limit")):
        options["gpu_mem_limit"] = str(limit)
    return options


def open_session(
    file: Path, options: onnxruntime.SessionOptions, device: int | None, cuda: Mapping[str, str]
) -> tuple[onnxruntime.InferenceSession, str | None]:
    """A session on a CUDA device, or on the CPU.

    Args:
        file: the graph.
        options: threads and the rest.
        device: number of the CUDA device; None for the CPU.
        cuda: as :func:`cuda_options` makes them.

    Returns:
        the session, and why it is not on the device; None when it is, and when none was asked for.

    Raises:
        Exception: whatever ONNX Runtime raises when the graph cannot be loaded on the CPU either.
    """
    if device is None:
        return _on_cpu(file, options), None
    if CUDA not in onnxruntime.get_available_providers():
        return _on_cpu(file, options), f"ONNX Runtime {onnxruntime.__version__} is one without CUDA"
    # CUDA and cuDNN of the environment's own packages, which the loader does not look for by itself.
    onnxruntime.preload_dlls(directory="")
    chosen = [(CUDA, {"device_id": str(device), **cuda}), CPU]
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=chosen, enable_fallback=False)
    except Exception as error:  # no driver, no such device, no memory; or the graph, which the CPU then says as well
        return _on_cpu(file, options), str(error)
    if CUDA in session.get_providers():
        return session, None
    return session, missing_library() or "ONNX Runtime does not say why"


def missing_library() -> str | None:
    """What keeps the CUDA provider's library from being loaded, by the loader's own words; None when nothing does.

    Only after ONNX Runtime has tried it: the library looks for its host as it is loaded.
    """
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        for name in _LIBRARIES:
            ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
    except OSError as error:
        return str(error)
    return None


def _on_cpu(file: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file), options, providers=[CPU])


def _number(parameters: Mapping[str, str], key: str) -> int:
    if not parameters[key].isdecimal():
        raise ValueError(f"parameter {key} must be a number of 0 or more, got {parameters[key]!r}")
    return int(parameters[key])
