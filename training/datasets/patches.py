"""The picture around each person, decoded and shrunk once, held in memory for the whole run.

A patch is cut at about the resolution of the crops, by area filtering, so that every later crop is one bilinear
look-up, however large the picture was. Patches differ in size and lie one behind another in one array: in host memory,
in a file that several runs share, or on the GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from training.datasets.coco import DatasetError, read_rgb
from training.datasets.union import PoseSample

Bytes = npt.NDArray[np.uint8]
# Part of the machine's free memory that patches may take: the rest is for the network and other programs.
_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class PatchSize:
    """What decides how much of a picture is kept.

    Attributes:
        crop: width, height of the crops in pixels.
        reach: a patch covers this many boxes (of the crop's aspect ratio) along each axis.
        detail: at most so many patch pixels for each crop pixel, along one axis, for the box's plain crop.
        padding: crop pixels cover this factor more than the box.
    """

    crop: tuple[int, int]
    reach: float
    detail: float
    padding: float


@dataclass(frozen=True)
class Patches:
    """N patches.

    Attributes:
        pixels: uint8, all patches' RGB rows one behind another.
        starts: int64 [N], the first byte of each.
        sizes: int64 [N, 2], width, height of each.
        to_patch: float64 [N, 2, 2], scale and offset (per axis) that take picture points to patch points.
    """

    pixels: Bytes
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    to_patch: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Bytes:
        """RGB [h, w, 3], a view."""
        width, height = self.sizes[index].tolist()
        start = int(self.starts[index])
        return self.pixels[start : start + 3 * width * height].reshape(height, width, 3)

    def from_patch(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """float64 [P, 2, 3]: affines that take patch points to picture points."""
        scale, offset = self.to_patch[indices, 0], self.to_patch[indices, 1]
        affine = np.zeros((len(indices), 2, 3))
        affine[:, 0, 0], affine[:, 1, 1] = 1 / scale.T
        affine[:, :, 2] = -offset / scale
        return affine


def cut_patches(
    samples: Sequence[PoseSample],
    size: PatchSize,
    *,
    threads: int | None = None,
    cache: Path | None = None,
    done: Callable[[int], None] = lambda _: None,
) -> Patches:
    """Decode every picture once and cut its people out.

    Args:
        samples: the people.
        size: how much is kept.
        threads: that decode; all processors when not given.
        cache: folder of a file that other runs with the same people and sizes map instead of decoding again; their
            memory is shared.
        done: called with the number of patches that came to be, for a progress bar.

    Raises:
        DatasetError: a picture that is missing or broken, or too little memory; names it.
    """
    file = cache / f"patches_{_digest(samples, size)}" if cache else None
    if file and file.with_suffix(".npz").exists():
        done(len(samples))
        return _mapped(file)
    starts, sizes = np.zeros(len(samples), np.int64), np.zeros((len(samples), 2), np.int64)
    to_patch = np.zeros((len(samples), 2, 2))
    store: _FileStore | _MemoryStore = _FileStore(file) if file else _MemoryStore()
    try:
        for index, patch, transform in _cut_in_order(samples, size, threads or os.cpu_count() or 1):
            starts[index] = store.add(patch)
            sizes[index] = patch.shape[1], patch.shape[0]
            to_patch[index] = transform
            done(1)
        if isinstance(store, _FileStore):
            store.finish(starts=starts, sizes=sizes, to_patch=to_patch)
    finally:
        store.close()
    return _mapped(file) if file else Patches(store.pixels, starts, sizes, to_patch)


class _MemoryStore:
    """One growing array; grown in place by the allocator where it can."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._limit = int(_free_memory() * _MEMORY_SHARE)

    def add(self, patch: Bytes) -> int:
        start = len(self._buffer)
        if start + patch.size > self._limit:
            raise DatasetError(
                f"the people's patches need more than the {self._limit / 2**30:.1f} GiB of free memory: set cache to a "
                "folder (patches are then mapped from a file), or lower patch_detail"
            )
        self._buffer += patch.data.cast("B")
        return start

    def close(self) -> None:
        """Nothing to give back."""

    @property
    def pixels(self) -> Bytes:
        return np.frombuffer(self._buffer, np.uint8)


class _FileStore:
    """A file that becomes visible when it is whole."""

    pixels: Bytes = np.zeros(0, np.uint8)

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
        except OSError as error:
            raise DatasetError(f"cache {path.parent}: {error}") from error
        self._length = 0

    def add(self, patch: Bytes) -> int:
        start = self._length
        try:
            self._file.write(patch.data)
        except OSError as error:
            raise DatasetError(f"{self._partial}: cannot write patches: {error.strerror or error}") from error
        self._length += patch.size
        return start

    def finish(self, **table: npt.NDArray[np.generic]) -> None:
        try:
            self._file.close()
            os.replace(self._partial, self._path.with_suffix(".bin"))
            with self._partial.open("wb") as file:
                np.savez(file, **table)  # type: ignore[arg-type]
            os.replace(self._partial, self._path.with_suffix(".npz"))
        except OSError as error:
            raise DatasetError(f"{self._partial}: cannot write patches: {error.strerror or error}") from error

    def close(self) -> None:
        """Leave nothing half written behind."""
        with contextlib.suppress(OSError):  # what could not be flushed was told already
            self._file.close()
        self._partial.unlink(missing_ok=True)


def _mapped(file: Path) -> Patches:
    with np.load(file.with_suffix(".npz")) as table:
        starts, sizes, to_patch = table["starts"], table["sizes"], table["to_patch"]
    pixels = np.memmap(file.with_suffix(".bin"), np.uint8, "r")
    expected = int((sizes.prod(1) * 3).sum())
    if len(pixels) != expected:
        raise DatasetError(f"{file.with_suffix('.bin')}: {len(pixels)} bytes, {expected} expected: remove it")
    return Patches(pixels, starts, sizes, to_patch)


def _digest(samples: Sequence[PoseSample], size: PatchSize) -> str:
    """Of everything that patches depend on; a picture that was replaced has another time or length."""
    digest = hashlib.sha256(repr((size, cv2.__version__)).encode())
    for path in sorted({sample.path for sample in samples}):
        try:
            state = path.stat()
        except OSError as error:
            raise DatasetError(f"{path}: missing or not a picture") from error
        digest.update(repr((str(path.resolve()), state.st_size, state.st_mtime_ns)).encode())
    for sample in samples:
        digest.update(str(sample.path).encode() + sample.box.tobytes())
    return digest.hexdigest()[:20]


def _cut_in_order(
    samples: Sequence[PoseSample], size: PatchSize, threads: int
) -> Iterator[tuple[int, Bytes, npt.NDArray[np.float64]]]:
    by_path: dict[Path, list[int]] = {}
    for index, sample in enumerate(samples):
        by_path.setdefault(sample.path, []).append(index)

    def cut(path: Path, indices: list[int]) -> list[tuple[int, Bytes, npt.NDArray[np.float64]]]:
        image = read_rgb(path)
        return [(index, *cut_patch(image, samples[index].box, size)) for index in indices]

    with ThreadPoolExecutor(threads) as pool:
        # A few pictures ahead, no more: a decoded picture is much larger than its patches.
        waiting: list[Future[list[tuple[int, Bytes, npt.NDArray[np.float64]]]]] = []
        try:
            for path, indices in by_path.items():
                waiting.append(pool.submit(cut, path, indices))
                if len(waiting) >= 2 * threads:
                    yield from waiting.pop(0).result()
            while waiting:
                yield from waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def cut_patch(image: Bytes, box: npt.NDArray[np.float64], size: PatchSize) -> tuple[Bytes, npt.NDArray[np.float64]]:
    """One patch (RGB [h, w, 3], a copy) and its scale and offset [2, 2], picture points to patch points."""
    width, height = size.crop
    extent = np.maximum(box[2:] - box[:2], 1.0)
    side = max(extent[0] / width, extent[1] / height)  # picture pixels for each crop pixel, before padding
    half = np.array([width, height]) * side * size.reach / 2
    center = (box[:2] + box[2:]) / 2
    limit = np.array([image.shape[1], image.shape[0]])
    # A box may lie wholly outside the picture: a patch of one pixel then, which no crop will show.
    low = np.clip(np.floor(center - half), 0, limit - 1).astype(int)
    high = np.clip(np.ceil(center + half), low + 1, limit).astype(int)
    patch = image[low[1] : high[1], low[0] : high[0]]
    shrink = min(1.0, size.detail / (side * size.padding))
    new = np.maximum(1, np.round((high - low) * shrink)).astype(int)
    scale = new / (high - low)
    if shrink < 1.0:
        patch = np.asarray(cv2.resize(patch, new.tolist(), interpolation=cv2.INTER_AREA), np.uint8)
    # The patch's edge is the picture's edge e, at the point e - 0.5; pixel centres scale about edges.
    offset = (0.5 - low) * scale - 0.5
    return np.ascontiguousarray(patch), np.stack([scale, offset])


def _free_memory() -> int:
    """Bytes that programs can still get; a container's own limit counts where there is one."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 2**62
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return free
