"""What a Triton server has loaded, read from its model repository and configuration API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.engines.base import ModelMetadata
from service.engines.config import RepositoryError, read_metadata
from service.errors import EngineUnavailable


@dataclass(frozen=True)
class Catalogue:
    """The models of a server at one time.

    Attributes:
        models: those with a version that answers. An entry stays the same object while nothing about it changes.
        troubles: by name, why a model has no such version; models that were unloaded on purpose are left out.
        refused: by name and version, why a version could not be loaded while an older one answers; also while the
            server tries it again.
        index: the server's own list, to see that nothing changed.
    """

    models: Mapping[str, ModelMetadata] = field(default_factory=dict)
    troubles: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    index: Any = None


async def read_catalogue(client: Any, timeout: float, server: str, known: Catalogue, *, configs: bool) -> Catalogue:
    """Ask the server.

    Args:
        client: tritonclient's ``InferenceServerClient`` (asyncio).
        timeout: seconds for each call.
        server: how messages call the server.
        known: what was read before.
        configs: read every model's config again, also where the list of models is as before.

    Returns:
        ``known`` itself where nothing changed.

    Raises:
        InferenceServerException: a call failed.
        EngineUnavailable: a model's config cannot be served.
    """
    index = await client.get_model_repository_index(client_timeout=timeout)
    if index == known.index and not configs:
        return known
    versions: dict[str, list[int]] = {}
    troubles: dict[str, str] = {}
    failed: dict[tuple[str, int], str] = {}
    for entry in index.models:
        if entry.state == "READY":
            versions.setdefault(entry.name, []).append(int(entry.version))
        elif entry.state and entry.reason != "unloaded":
            troubles[entry.name] = entry.reason or entry.state.lower()
            version = entry.name, int(entry.version or 0)
            if entry.state == "UNAVAILABLE" and entry.reason:
                failed[version] = entry.reason
            elif before := known.refused.get(_title(*version)):
                failed[version] = before  # with --model-control-mode=poll it is tried again each second
    answers = await asyncio.gather(
        *(client.get_model_config(name, client_timeout=timeout) for name in versions), return_exceptions=True
    )
    models: dict[str, ModelMetadata] = {}
    for (name, numbers), answer in zip(versions.items(), answers, strict=True):
        if isinstance(answer, BaseException):
            raise answer
        models[name] = _metadata(name, tuple(sorted(numbers)), answer.config, server)
    same = {name: known.models[name] for name, one in models.items() if known.models.get(name) == one}
    models |= same
    return Catalogue(
        models=models,
        troubles={name: why for name, why in troubles.items() if name not in models},
        refused={
            _title(name, number): why for (name, number), why in failed.items() if _newer(number, models.get(name))
        },
        index=index,
    )


def _title(model: str, version: int) -> str:
    return f"{model} version {version}"


def _newer(version: int, model: ModelMetadata | None) -> bool:
    """Whether an older version of the model answers; Triton goes on listing versions that failed long ago."""
    return model is not None and version > max(model.versions)


def _metadata(name: str, versions: tuple[int, ...], config: Any, server: str) -> ModelMetadata:
    platform = config.platform or config.backend
    try:
        return read_metadata(f"{server}, model {name!r}", config, name, versions, platform)
    except RepositoryError as error:
        raise EngineUnavailable(str(error)) from error
