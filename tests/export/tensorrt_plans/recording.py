"""The part of TensorRT's Python API that the builder uses, without TensorRT: writes down what it is asked for.

Its names are those that the bindings of 10.14.1.48 and 11.4.0.106 have; anything else is an AttributeError.
"""

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace
from typing import Any


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        pass


class NetworkFlag(IntEnum):
    STRONGLY_TYPED = 1


class Pool(IntEnum):
    WORKSPACE = 0


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+timings"


class Config:
    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked, self._cache = asked, None
        self.builder_optimization_level = 3

    def set_memory_pool_limit(self, pool: Pool, size: int) -> None:
        self._asked["pool"] = (pool, size)

    def add_optimization_profile(self, profile: Profile) -> int:
        self._asked["profile"] = profile.shapes
        return self._asked.get("profile_index", 0)

    def create_timing_cache(self, content: bytes) -> Cache:
        return Cache(content)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        if cache.content.startswith(b"other gpu"):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Cache:
        assert self._cache is not None
        return self._cache


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self.shapes[name] = (least, usual, most)


def recording(asked: dict[str, Any], fault: str = "") -> Any:
    """A ``tensorrt`` module that notes calls in ``asked``; ``fault`` is ``parse`` or ``build`` to fail there."""

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> str:
            asked["flags"] = flags
            return "network"

        def create_builder_config(self) -> Config:
            asked["config"] = Config(asked)
            return asked["config"]

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: str, config: Config) -> bytes | None:
            asked["level"] = config.builder_optimization_level
            if fault == "build":
                self.logger.log(Severity.WARNING, "a warning")
                self.logger.log(Severity.ERROR, "no kernel for node 7")
                return None
            return b"plan"

    class OnnxParser:
        num_errors = 1

        def __init__(self, network: str, logger: Any) -> None:
            assert network == "network"

        def parse(self, graph: bytes) -> bool:
            asked["graph"] = graph
            return fault != "parse"

        def get_error(self, index: int) -> Any:
            return SimpleNamespace(desc=lambda: f"node {index}: unsupported")

    return SimpleNamespace(
        __version__="10.14.1.48",
        ILogger=ILogger,
        Builder=Builder,
        OnnxParser=OnnxParser,
        NetworkDefinitionCreationFlag=NetworkFlag,
        MemoryPoolType=Pool,
        init_libnvinfer_plugins=lambda logger, namespace: asked.setdefault("plugins", namespace == ""),
    )
