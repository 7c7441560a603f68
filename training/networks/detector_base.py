"""What every person detector is to training and export: letterboxed pictures in, a fixed number of boxes out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from training.recipe import Strict


class DetectorConfig(Strict, ABC):
    """Hyper-parameters of one detector. Sub-classes set ``name`` to a literal with that value as its default.

    Attributes:
        input_size: side S of the letterboxed input.
        proposals: M, boxes answered for each picture.
    """

    name: str
    input_size: int
    proposals: int

    @property
    @abstractmethod
    def description(self) -> str:
        """What it is, in a phrase for the model card: network, papers, backbone."""

    @property
    def every_category(self) -> bool:
        """Whether it learns all categories of a COCO file, not people alone."""
        return False

    @abstractmethod
    def build(self) -> Detector:
        """The network; no file is read and nothing is downloaded, so that a checkpoint loads anywhere."""

    def initialise(self, network: Detector) -> None:
        """Load the weights that a new training run starts from, where the config names some.

        Raises:
            RecipeError: they cannot be had, or are not of this network.
        """


class Detector(nn.Module, ABC):
    """A person detector; ``network`` is its config."""

    network: DetectorConfig

    @abstractmethod
    def detect(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """People in letterboxed pictures, before the final NMS.

        Args:
            images: RGB uint8 [N, S, S, 3].

        Returns:
            boxes float32 [N, M, 4] x1 y1 x2 y2 in letterbox pixels, scores float32 [N, M] in 0..1, 0 for padding.
        """


class DetectorForExport(nn.Module):
    """What the exported graph computes: :meth:`Detector.detect`."""

    def __init__(self, network: Detector) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Detector.detect`."""
        return self.network.detect(images)
