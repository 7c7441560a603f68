"""Numeric arrays of MATLAB files (level 5, what ``save -v6`` and ``-v7`` write), read without scipy.

LSP's ``joints.mat`` and MPII's ``gt_valid.mat`` are such files. Variables that are no plain numeric array (cells,
structures, text, sparse or complex numbers) are passed over. Format: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.datasets.coco import DatasetError

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# Classes of full numeric arrays: double, single and the integers.
_NUMERIC = range(6, 16)
_COMPLEX = 0x0800


def read_mat(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """The numeric variables of a file, float64, in MATLAB's shapes. Raises DatasetError with the path."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: {error}") from error
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise DatasetError(f"{path}: not a MATLAB level 5 file (files of save -v7.3 are HDF5: save them with -v7)")
    arrays = {}
    try:
        for kind, content in _elements(data[_HEADER:], order):
            inner = _elements(zlib.decompress(content), order) if kind == _COMPRESSED else iter([(kind, content)])
            for inner_kind, matrix in inner:
                named = _array(matrix, order) if inner_kind == _MATRIX else None
                if named is not None:
                    arrays[named[0]] = named[1]
    except (struct.error, zlib.error, ValueError, IndexError, KeyError, StopIteration) as error:
        raise DatasetError(f"{path}: broken MATLAB file: {error!r}") from error
    return arrays


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each data element."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:  # up to four bytes fit into the tag itself
            kind, size = kind & 0xFFFF, kind >> 16
            yield kind, data[at + 4 : at + 4 + size]
            at += 8
            continue
        content = data[at + 8 : at + 8 + size]
        if len(content) < size:
            raise ValueError(f"ends within an element of {size} bytes")
        yield kind, content
        at += 8 + size
        if kind != _COMPRESSED:
            at += -size % 8


def _array(matrix: bytes, order: str) -> tuple[str, npt.NDArray[np.float64]] | None:
    parts = _elements(matrix, order)
    (flags,) = struct.unpack_from(f"{order}I", next(parts)[1])
    if flags & 0xFF not in _NUMERIC or flags & _COMPLEX:
        return None
    shape = np.frombuffer(next(parts)[1], f"{order}i4")
    name = next(parts)[1].decode("ascii")
    kind, content = next(parts)
    values = np.frombuffer(content, order + _TYPES[kind]).astype(np.float64)
    return name, values.reshape(shape.tolist(), order="F")
