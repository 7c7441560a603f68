"""One way to any data set: the reader is named by the source's ``format``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from service.oks import AREA_OF_BOX
from training.datasets.aic import read_aic
from training.datasets.coco import CocoSet, DatasetError, PersonRecord, read_coco
from training.datasets.lsp import read_lsp
from training.datasets.mpii import read_mpii
from training.recipe import DataSource, Format


def read_crowdpose(source: DataSource) -> CocoSet:
    """CrowdPose: COCO's form, areas always 0.53 of the box, as its evaluation has it (``use_area=False``)."""
    data = read_coco(source)
    for image in data.images:
        if image.crowd_index is None or not 0 <= image.crowd_index <= 1:
            raise DatasetError(f"{source.annotations}: picture {image.id} has crowdIndex {image.crowd_index}")
    images = (replace(i, people=tuple(_with_area_of_box(p) for p in i.people)) for i in data.images)
    return replace(data, images=tuple(images))


def _with_area_of_box(person: PersonRecord) -> PersonRecord:
    return replace(person, area=AREA_OF_BOX * float(np.prod(person.box[2:] - person.box[:2])))


READERS: dict[Format, Callable[[DataSource], CocoSet]] = {
    "coco": read_coco,
    "aic": read_aic,
    "mpii": read_mpii,
    "lsp": read_lsp,
    "crowdpose": read_crowdpose,
    # OCHuman: COCO's form and joints; its outlines are run lengths.
    "ochuman": read_coco,
}


def read_set(source: DataSource) -> CocoSet:
    """Read a data set of any supported format. Raises DatasetError naming file, record and value."""
    return READERS[source.format](source)
