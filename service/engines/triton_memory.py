"""Crops on their way to a Triton server of the same machine: shared memory instead of the gRPC message.

Each region is a file of Linux' ``/dev/shm`` that one request at a time writes. The server maps it once
(``RegisterSystemSharedMemory``) and from then on gets names and offsets instead of bytes.

    borrowed ──answered──> free            the server has read it for the last time
        └─────cancelled──> resting ──> free   it may still be read: not written again until the server answered
                                              ``_RESTS`` polls, a minute

A region is locked (``flock``) by the process that owns it for as long as that lives, however it ends: files that can
be locked belong to nobody and are removed by the next start. That holds across containers that share ``/dev/shm`` but
not their process numbers. Servers before 24.12 may crash when a region is unregistered while they read it, so that is
done only to regions nobody reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from service.engines.base import Array

logger = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
PREFIX = "tritonpose-"
# Smaller tensors (fusion weights) cost less in the message than a place in a region.
LEAST_BYTES = 16 * 1024
# Two regions of every size that 32 requests of 20 people ask for; a container's /dev/shm may be smaller still.
_MOST_BYTES = 256 * 2**20
_SMALLEST = 2**19
_RESTS = 60
_ALIGN = 64
_numbers = count()


@dataclass(eq=False)
class Region:
    """One mapped file; ``generation`` is that of the server it is registered with, -1 for none."""

    name: str
    size: int
    file: int
    mapping: mmap.mmap
    generation: int = -1
    rests: int = 0

    def write(self, arrays: Mapping[str, Array]) -> dict[str, int]:
        """Copy the arrays in, one after the other; gives their offsets."""
        offsets, first = {}, 0
        for name, array in arrays.items():
            np.frombuffer(self.mapping, array.dtype, array.size, first).reshape(array.shape)[...] = array
            offsets[name] = first
            first += _aligned(array.nbytes)
        return offsets

    @staticmethod
    def needed(arrays: Mapping[str, Array]) -> int:
        """Bytes that :meth:`write` takes."""
        return sum(_aligned(array.nbytes) for array in arrays.values())

    def remove(self) -> None:
        """Unlink and unmap; the server keeps its own mapping until it is told otherwise."""
        (FOLDER / self.name).unlink(missing_ok=True)
        self.mapping.close()
        os.close(self.file)


class SharedRegions:
    """The regions of one process. All methods run on the event loop."""

    def __init__(self, timeout: float) -> None:
        """``timeout``: seconds for each call of the server."""
        self.enabled = False
        self.refusal = ""
        self._opened = False
        self._polls = 0
        self._timeout = timeout
        self._generation = 0
        self._free: list[Region] = []
        self._resting: list[Region] = []
        self._bytes = 0

    async def open(self, client: Any) -> bool:
        """Remove what dead processes left, and try whether the server takes regions; ``refusal`` says why not."""
        try:
            remove_abandoned()
        except OSError as error:
            self.refusal = f"{FOLDER}: {error}"
            return False
        self.enabled = self._opened = True
        region = await self.borrow(client, _SMALLEST)
        if region is not None:
            self.give_back(region, answered=True)
        return self.enabled

    async def borrow(self, client: Any, size: int) -> Region | None:
        """A registered region of at least ``size`` bytes, to be given back; None when the tensors must travel."""
        if not self.enabled:
            return None
        try:
            region = self._take(max(_SMALLEST, 1 << (size - 1).bit_length()))
        except OSError as error:  # full: there is room again when others let go
            self.refusal = f"{FOLDER}: {error}"
            return None
        if region is None:
            return None
        if region.generation != self._generation:
            generation = self._generation
            try:
                await client.register_system_shared_memory(
                    region.name, f"/{region.name}", region.size, client_timeout=self._timeout
                )
            except InferenceServerException as error:
                if "already in manager" not in error.message():
                    self._discard(region)
                    self.enabled = False  # until another server is there
                    self.refusal = error.message()
                    return None
            except BaseException:
                self._discard(region)
                raise
            region.generation = generation
        return region

    def give_back(self, region: Region, *, answered: bool) -> None:
        """After a request. ``answered``: the server said how it ended, and so reads the region no more."""
        region.rests = 0
        (self._free if answered else self._resting).append(region)

    async def polled(self, client: Any) -> None:
        """The server answered a poll: regions that have rested long enough are used again."""
        self._polls += 1
        if self.enabled and self._polls == _RESTS:
            await self._unregister_abandoned(client)
        for region in self._resting:
            region.rests += 1
        self._free += [region for region in self._resting if region.rests >= _RESTS]
        self._resting = [region for region in self._resting if region.rests < _RESTS]

    def server_restarted(self) -> None:
        """The server may know none of the regions any more: each is registered again before its next use."""
        self._generation += 1
        self.enabled = self._opened

    async def close(self, client: Any) -> None:
        """Unregister what nobody reads, remove all files."""
        self.enabled = self._opened = False
        for region in self._free:
            if region.generation == self._generation and not await self._unregister(client, region.name):
                break  # the server is gone
        for region in (*self._free, *self._resting):
            self._discard(region)
        self._free, self._resting = [], []

    async def _unregister_abandoned(self, client: Any) -> None:
        """What processes registered that ended without saying so; long ago, so that nobody reads it any more."""
        try:
            status = await client.get_system_shared_memory_status(client_timeout=self._timeout)
        except InferenceServerException as error:
            logger.debug("regions of the server: %s", error)
            return
        for name in status.regions:
            if name.startswith(PREFIX) and not (FOLDER / name).exists():
                await self._unregister(client, name)

    async def _unregister(self, client: Any, name: str) -> bool:
        try:
            await client.unregister_system_shared_memory(name, client_timeout=self._timeout)
        except InferenceServerException as error:
            logger.debug("region %s: %s", name, error)
            return False
        return True

    def _take(self, size: int) -> Region | None:
        fitting = [region for region in self._free if region.size >= size]
        if fitting:
            region = min(fitting, key=lambda one: (one.size, one.generation != self._generation))
            self._free.remove(region)
            return region
        if self._bytes + size > _MOST_BYTES:
            self.refusal = f"{self._bytes} bytes of shared memory are in use"
            return None
        region = _create(size)
        self._bytes += size
        return region

    def _discard(self, region: Region) -> None:
        self._bytes -= region.size
        region.remove()


def remove_abandoned() -> None:
    """Remove the files of processes that ended without doing so. Raises OSError where there is no /dev/shm."""
    for name in os.listdir(FOLDER):
        if name.startswith(PREFIX):
            with contextlib.suppress(OSError):  # another user's, in use, or gone by now
                file = os.open(FOLDER / name, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    (FOLDER / name).unlink()
                finally:
                    os.close(file)


def _create(size: int) -> Region:
    # The process number is for people; the random part tells containers with equal numbers apart.
    name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{next(_numbers)}"
    file = os.open(FOLDER / name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Reserves the pages: where /dev/shm is full this is an error now, not a SIGBUS while writing.
        os.posix_fallocate(file, 0, size)
        return Region(name, size, file, mmap.mmap(file, size))
    except BaseException:
        (FOLDER / name).unlink(missing_ok=True)
        os.close(file)
        raise


def _aligned(number: int) -> int:
    return -(-number // _ALIGN) * _ALIGN
