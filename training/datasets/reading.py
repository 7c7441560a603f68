"""One way to any data set: the reader is named by the source's ``format``."""

from __future__ import annotations

from training.datasets.coco import CocoSet, read_coco
from training.recipe import DataSource


def read_set(source: DataSource) -> CocoSet:
    """Read a data set of any supported format. Raises DatasetError naming file, record and value."""
    return read_coco(source)
