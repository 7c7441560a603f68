"""One picture from bytes to a COCO document, step by step in one thread: what a peer's handler calls.

The steps are the service's pure functions; the networks are plain ONNX Runtime sessions over the same files.
Environment: ``PEER_THREADS`` is the number of threads of a session (0: ONNX Runtime's own choice),
``TRITONPOSE_REPOSITORY`` the model repository, ``PEER_MAX_PEOPLE`` as the option ``max_people``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from service import coco
from service.engines.config import ModelConfig, read_repository
from service.engines.ensembles import DataFlow
from service.options import PoseOptions
from service.people import People, PosedPicture
from service.presets import detector_preset, pose_preset
from service.stages import Stages
from service.steps import Given, Picture, answer_people, find_crops, open_picture, read_headers

Array = npt.NDArray[Any]
_REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
_MOST_BYTES, _MOST_PIXELS = 20 * 2**20, 50_000_000


class PeerPipeline:
    """Detector and pose model of a repository. Sessions may be run by several threads at a time."""

    def __init__(self) -> None:
        """Opens the sessions."""
        configs = read_repository(Path(os.environ.get("TRITONPOSE_REPOSITORY", _REPOSITORY)))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("PEER_THREADS", "0"))
        self._configs = configs
        self._pose = pose_preset(configs["pose"].metadata)
        self._detector = detector_preset(configs[self._pose.detector].metadata)
        self._answering = self._pose.ensemble(self._pose.flip)
        needed = {self._detector.name, *(step.model for step in configs[self._answering].steps)}
        self._sessions = {
            name: onnxruntime.InferenceSession(str(configs[name].onnx), options, providers=["CPUExecutionProvider"])
            for name in needed
        }
        self._weights = np.ones(len(self._pose.radii), np.float32)
        self._options = PoseOptions(
            max_people=int(os.environ.get("PEER_MAX_PEOPLE", "20")),
            score_threshold=self._pose.score_threshold,
            box_threshold=self._detector.box_threshold,
            fusion=(1.0,) * len(self._pose.radii),
            flip=self._pose.flip,
        )

    def __call__(self, data: bytes) -> dict[str, Any]:
        """The COCO document of one encoded picture. Raises ServiceError for what is no picture."""
        stages, picture = Stages(), Picture(data, 1)
        header = read_headers([picture], _MOST_BYTES, _MOST_PIXELS)[0]
        opened = open_picture(Given(0, picture, header), self._detector, self._pose, False, stages)
        assert opened.square is not None
        found = self._run(self._configs[self._detector.name], {"images": opened.square[None]})
        crops = find_crops(opened, (found["boxes"][0], found["scores"][0]), self._options, self._pose, stages)
        people = People.nobody(len(self._pose.skeleton))
        if len(crops.boxes):
            inputs: dict[str, Array] = {
                "crops": crops.pixels,
                "fusion_weights": np.tile(self._weights, (len(crops.boxes), 1)),
            }
            joints = self._run(self._configs[self._answering], inputs)["keypoints"]
            people = answer_people(joints, crops, self._options, self._pose, stages, suppress=True)
        width, height = opened.pyramid.width, opened.pyramid.height
        info = coco.info(self._options, self._pose, "peer")
        posed = [PosedPicture(1, width, height, people)]
        return coco.document(posed, self._pose.skeleton, self._pose.score_threshold, info)

    def _run(self, config: ModelConfig, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """A network, or an ensemble's networks one after the other."""
        if not config.steps:
            names = [spec.name for spec in config.metadata.outputs]
            outputs = self._sessions[config.metadata.name].run(names, dict(inputs))
            return dict(zip(names, outputs, strict=True))
        flow = DataFlow(config, inputs)
        while not flow.finished:
            for step, feeds in flow.begin():
                flow.end(step, self._run(self._configs[step.model], feeds))
        return flow.outputs()
