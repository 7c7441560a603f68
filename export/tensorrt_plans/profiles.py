"""Batch sizes that a plan is built for: outside of them it does not run."""

from __future__ import annotations

from dataclasses import dataclass

from export.checkpoints import ExportError
from service.engines.base import ModelMetadata

# TensorRT picks its kernels for this batch: most pictures show a few people.
USUAL = 8


@dataclass(frozen=True)
class BatchProfile:
    """Rows of a run: least, the one to be fastest at, most."""

    least: int
    usual: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.usual <= self.most:
            raise ExportError(f"batch sizes {self.least}, {self.usual}, {self.most}: want 1 <= min <= opt <= max")


def batch_profile(metadata: ModelMetadata, given: tuple[int, int, int] | None) -> BatchProfile:
    """The profile of one network.

    Args:
        metadata: of its config; the dynamic batcher makes runs of up to ``max_batch_size`` rows, so all of them must
            fit.
        given: what the caller asks for.

    Raises:
        ExportError: the sizes are in no order, or leave out batches that the server will send.
    """
    most = metadata.max_batch_size
    if most < 1:
        raise ExportError(f"{metadata.name} has max_batch_size {most}: a plan needs a batch axis")
    if given is None:
        return BatchProfile(1, min(USUAL, most), most)
    profile = BatchProfile(*given)
    if profile.least > 1 or profile.most < most:
        raise ExportError(
            f"{metadata.name} is sent batches of 1 to {most} (max_batch_size), the profile is for "
            f"{profile.least} to {profile.most}"
        )
    return profile


def input_shapes(
    metadata: ModelMetadata, profile: BatchProfile
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Least, usual and largest shape of every input. Raises ExportError for an axis of free length."""
    shapes = {}
    for spec in metadata.inputs:
        if any(dim < 1 for dim in spec.shape):
            raise ExportError(f"{metadata.name}: input {spec.name!r} has free axes {list(spec.shape)}")
        least, usual, most = ((rows, *spec.shape) for rows in (profile.least, profile.usual, profile.most))
        shapes[spec.name] = (least, usual, most)
    return shapes
