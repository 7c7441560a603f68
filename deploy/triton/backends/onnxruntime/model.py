"""Triton back end ``onnxruntime`` in Python, for servers that carry no native one (the ``nvidia-pytriton`` wheel's).

Triton looks for this file in ``<backend directory>/onnxruntime/`` when a model says ``platform: "onnxruntime_onnx"``
and there is no ``libtriton_onnxruntime.so``: the repository is the same for both. One process of this is started for
each instance of each version of each model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from network import ModelError, Network


class TritonPythonModel:
    """One instance of one version of a model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the graph of the version's folder. Raises TritonModelException, which fails the model's load."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        try:
            self._network = Network(config, folder, device)
        except ModelError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        if self._network.off_device is not None:
            where = f"{args['model_instance_name']}: on the CPU instead of GPU {device}"
            pb_utils.Logger.log_warn(f"{where}: {self._network.off_device}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer what the dynamic batcher hands over: one response for each request, in their order."""
        responses: list[Any] = [None] * len(requests)
        waited_for = []
        for place, request in enumerate(requests):
            if request.is_cancelled():
                gone = pb_utils.TritonError("the caller has cancelled the request", pb_utils.TritonError.CANCELLED)
                responses[place] = pb_utils.InferenceResponse(error=gone)
            else:
                waited_for.append(place)
        wanted = {name for place in waited_for for name in requests[place].requested_output_names()}
        outputs = [name for name in self._network.outputs if name in wanted]
        answers = self._network.run([self._tensors(requests[place]) for place in waited_for], outputs)
        for place, answer in zip(waited_for, answers, strict=True):
            responses[place] = _response(answer, requests[place].requested_output_names())
        return responses

    def _tensors(self, request: Any) -> dict[str, Any]:
        """The inputs by name: views of Triton's memory."""
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._network.inputs}


def _response(answer: Any, names: Sequence[str]) -> Any:
    if isinstance(answer, Exception):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer)))
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, answer[name]) for name in names if name in answer])
