"""Pictures for calibration and comparison: what a network will see, from training sets only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnxruntime.quantization import CalibrationDataReader

from export.checkpoints import ExportError
from export.samples import Samples, load_samples
from service.engines.base import ModelMetadata
from training.recipe import DataSource

Pixels = npt.NDArray[np.uint8]
# The training sets of TRITONPOSE_DATA that show what is served: whole scenes, and people in all positions.
_SETS = ("coco_train", "lsp_train")
# Rows of one run; calibration keeps every map of a run in memory.
_ROWS = 4


@dataclass(frozen=True)
class Pictures:
    """Pictures that no figure is reported on: ``calibration`` to set ranges, ``comparison`` to compare answers."""

    calibration: Samples
    comparison: Samples


def load_pictures(given: tuple[Path, Path] | None, count: int) -> Pictures:
    """``count`` pictures for each purpose; every second one of a set goes to the other.

    Args:
        given: annotation file and picture folder; else the training sets under ``TRITONPOSE_DATA``, else rendered.
        count: for each purpose.

    Raises:
        ExportError: the set is one to measure on (ranges fitted to it would flatter the figures), or cannot be read.
    """
    if given and "val" in given[0].stem.split("_"):
        raise ExportError(f"{given[0]} is a set to measure on: calibrate on a training set")
    root = Path(os.environ.get("TRITONPOSE_DATA", "")) if os.environ.get("TRITONPOSE_DATA") else None
    sets = [DataSource(annotations=root / f"{name}.json", images=root / name) for name in _SETS] if root else []
    samples = load_samples(given, sets, 2 * count)
    return Pictures(
        Samples(samples.name, samples.pictures[::2]),
        Samples(samples.name, samples.pictures[1::2]),
    )


def network_input(metadata: ModelMetadata, samples: Samples, most: int) -> Pixels:
    """Samples as a network takes them: uint8 [N, H, W, 3], letterboxed for a detector, cut to people for the rest.

    Raises:
        ExportError: the network takes something else.
    """
    shapes = [spec for spec in metadata.inputs if spec.dtype == "uint8" and len(spec.shape) == 3]
    if len(metadata.inputs) != 1 or not shapes or shapes[0].shape[2] != 3 or min(shapes[0].shape) < 1:
        raise ExportError(f"{metadata.name} does not take pictures: its inputs are {list(metadata.inputs)}")
    height, width, _ = shapes[0].shape
    if metadata.parameters.get("kind") == "detector":
        return samples.letterboxed(height)[:most]
    return samples.crops((width, height), most)


class CalibrationFeed(CalibrationDataReader):
    """Pictures in runs of a few, under the name of the network's input; may be read again after ``rewind``."""

    def __init__(self, name: str, pixels: Pixels) -> None:
        """``pixels`` uint8 [N, H, W, 3], N at least 1."""
        if not len(pixels):
            raise ExportError("no pictures to calibrate with")
        self._name, self._pixels = name, pixels
        self._runs = self._cut()

    def get_next(self) -> dict[str, Pixels] | None:
        """The next run, None at the end: what ONNX Runtime's calibrators ask for."""
        return next(self._runs, None)

    def rewind(self) -> None:
        """Start again."""
        self._runs = self._cut()

    def _cut(self) -> Iterator[dict[str, Pixels]]:
        for start in range(0, len(self._pixels), _ROWS):
            yield {self._name: self._pixels[start : start + _ROWS]}
