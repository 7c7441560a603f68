"""One ONNX Runtime session, checked against what Triton read from the model's ``config.pbtxt``.

Knows nothing of Triton's requests (``model.py`` does), so that it can be tried without a server. It runs in the
server's environment: NumPy 1, ONNX Runtime and the standard library are all there is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from devices import CPU, cuda_options, open_session

Array = npt.NDArray[np.generic]
Tensors = Mapping[str, Array]

# Triton's data types and ONNX Runtime's names for them. Text is left out: no model here has any.
_TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_UINT16": "tensor(uint16)",
    "TYPE_UINT32": "tensor(uint32)",
    "TYPE_UINT64": "tensor(uint64)",
    "TYPE_INT8": "tensor(int8)",
    "TYPE_INT16": "tensor(int16)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
}
# What NVIDIA's own ONNX Runtime back end takes optimization.graph.level for; everything else is "all".
_GRAPH_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_FATAL_ONLY = 4  # errors come back as exceptions, and Triton logs them
# Most rows in one run on a CPU. Larger ones gain nothing there (16.6 ms of CPU time for a crop at 8 rows, 16.5 ms at
# 64), and ONNX Runtime keeps their memory for ever (40 MB at 8 rows, 330 MB at 64).
_CPU_ROWS = 8


class ModelError(ValueError):
    """The model cannot be served as its config says; the message names the file and the value."""


class Network:
    """A loaded graph.

    Attributes:
        inputs: names in the config's order.
        outputs: likewise.
        providers: ONNX Runtime's execution providers, the preferred one first.
        off_device: why it runs on the CPU although a device was given; None when it does not.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path, device: int | None = None) -> None:
        """Load and check.

        Args:
            config: the model's config as Triton gives it to back ends (JSON).
            folder: the version's folder.
            device: CUDA device of the instance; None for the CPU.

        Raises:
            ModelError: no such file, a graph that cannot be loaded or does not fit the config, a bad parameter.
        """
        self._where = f"model {config['name']!r}"
        self.file = folder / (config.get("default_model_filename") or "model.onnx")
        self.batched = config["max_batch_size"] > 0
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        if not self.file.is_file():
            raise ModelError(f"{self._where}: {self.file} is missing")
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        try:
            cuda = cuda_options(parameters)
        except ValueError as error:
            raise ModelError(f"{self._where}: {error}") from None
        options = self._options(config, parameters)
        try:
            self._session, self.off_device = open_session(self.file, options, device, cuda)
        except Exception as error:  # the runtime's exceptions share no base class but Exception
            raise ModelError(f"{self._where}: ONNX Runtime cannot load {self.file}: {error}") from error
        self.providers: Sequence[str] = self._session.get_providers()
        self._largest = _CPU_ROWS if list(self.providers) == [CPU] else config["max_batch_size"]
        self._check("input", config["input"], self._session.get_inputs())
        self._check("output", config["output"], self._session.get_outputs())

    def run(self, requests: Sequence[Tensors], outputs: Sequence[str]) -> list[Tensors | Exception]:
        """Run requests that came at the same time.

        Those of equal shape are joined along the batch axis. When a joined run fails, each of its requests is run
        alone, so that a bad one spoils no other's answer.

        Args:
            requests: every input by name, [N, ...] each with an N of its own; exactly the config's shape for a
                model without a batch axis.
            outputs: names of those wanted by any request.

        Returns:
            for each request, in their order, the outputs by name, or why there are none.
        """
        answers: list[Tensors | Exception] = [RuntimeError("not run")] * len(requests)
        for places in self._groups(requests):
            try:
                answered: Sequence[Tensors | Exception] = self._run_joined([requests[k] for k in places], outputs)
            except Exception as error:  # whatever the runtime raises concerns these requests only
                answered = [error] if len(places) == 1 else [self._run_alone(requests[k], outputs) for k in places]
            for place, answer in zip(places, answered, strict=True):
                answers[place] = answer
        return answers

    def _groups(self, requests: Sequence[Tensors]) -> list[list[int]]:
        """Places of requests that may run together: equal shapes behind the batch axis."""
        if not self.batched:
            return [[place] for place in range(len(requests))]
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(tuple(request[name].shape[1:] for name in self.inputs), []).append(place)
        return list(groups.values())

    def _run_alone(self, request: Tensors, outputs: Sequence[str]) -> Tensors | Exception:
        try:
            return self._run_joined([request], outputs)[0]
        except Exception as error:
            return error

    def _run_joined(self, requests: Sequence[Tensors], outputs: Sequence[str]) -> list[Tensors]:
        if not self.batched:
            return [dict(zip(outputs, self._session.run(outputs, dict(requests[0])), strict=True))]
        counts = [len(request[self.inputs[0]]) for request in requests]
        joined = {
            name: requests[0][name] if len(requests) == 1 else np.concatenate([r[name] for r in requests])
            for name in self.inputs
        }
        rows = sum(counts)
        # As even as can be: 5 + 4 rows, not 8 + 1.
        pieces = -(-rows // self._largest)
        bounds = [rows * piece // pieces for piece in range(pieces + 1)]
        ran = [
            self._session.run(outputs, {name: array[first:last] for name, array in joined.items()})
            for first, last in pairwise(bounds)
        ]
        whole = {
            name: arrays[0] if pieces == 1 else np.concatenate(arrays)
            for name, arrays in zip(outputs, zip(*ran, strict=True), strict=True)
        }
        for name, array in whole.items():
            if array.shape[:1] != (rows,):
                raise ModelError(f"{self._where}: output {name!r} of {rows} rows has shape {list(array.shape)}")
        split: list[Tensors] = []
        first = 0
        for count in counts:
            split.append({name: array[first : first + count] for name, array in whole.items()})
            first += count
        return split

    def _options(self, config: Mapping[str, Any], parameters: Mapping[str, str]) -> onnxruntime.SessionOptions:
        """Threads and the rest, by the parameters that NVIDIA's own ONNX Runtime back end knows.

        Without them one run uses all cores, and idle threads sleep: there is a session for each model and instance,
        and threads that spin for work would take the cores from those that have some.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._number(parameters, "intra_op_thread_count", 0) or available_cores()
        options.inter_op_num_threads = self._number(parameters, "inter_op_thread_count", 1)
        if self._number(parameters, "execution_mode", 0) == 1:
            options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        options.enable_cpu_mem_arena = bool(self._number(parameters, "enable_mem_arena", 1))
        options.enable_mem_pattern = bool(self._number(parameters, "enable_mem_pattern", 1))
        level = config.get("optimization", {}).get("graph", {}).get("level", 0)
        options.graph_optimization_level = _GRAPH_LEVELS.get(level, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
        options.log_severity_level = _FATAL_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in parameters.items():
            if key.startswith("session."):
                options.add_session_config_entry(key, value)
        return options

    def _number(self, parameters: Mapping[str, str], key: str, default: int) -> int:
        text = parameters.get(key)
        if text is None:
            return default
        if not text.isdecimal():
            raise ModelError(f"{self._where}: parameter {key} must be a number of 0 or more, got {text!r}")
        return int(text)

    def _check(self, kind: str, tensors: Sequence[Mapping[str, Any]], nodes: Sequence[Any]) -> None:
        """The config's inputs must be the graph's; its outputs may be some of the graph's."""
        there = {node.name: node for node in nodes}
        names = {tensor["name"] for tensor in tensors}
        if not names <= set(there) or (kind == "input" and names != set(there)):
            raise ModelError(f"{self._where}: {kind}s {sorted(names)} are not those of {self.file}: {sorted(there)}")
        for tensor in tensors:
            node, where = there[tensor["name"]], f"{self._where}: {kind} {tensor['name']!r}"
            if _TYPES.get(tensor["data_type"]) != node.type:
                raise ModelError(f"{where} is {tensor['data_type']}, but {self.file} has {node.type}")
            wanted = ([-1] if self.batched else []) + [int(dim) for dim in tensor["dims"]]
            shape = [dim if isinstance(dim, int) else -1 for dim in node.shape or ()]  # named axes are free ones
            if not shape and wanted:
                continue  # ONNX does not know the rank
            fits = len(shape) == len(wanted) and all(-1 in (a, b) or a == b for a, b in zip(wanted, shape, strict=True))
            if not fits or (self.batched and shape[0] != -1):
                raise ModelError(f"{where} has shape {wanted}, but {self.file} has {shape} (-1 is free)")


def available_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its container (ONNX Runtime ignores the latter)."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2: no quota to know of
        pass
    return cores
