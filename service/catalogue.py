"""What ``GET /v1/models`` and ``tritonpose models`` say about the models of an engine."""

from __future__ import annotations

from typing import Any

from service import coco
from service.engines.base import Engine, ModelMetadata, TensorSpec
from service.errors import ModelNotFound, NotFound
from service.skeletons import Skeleton


async def list_models(engine: Engine) -> list[dict[str, Any]]:
    """Every loaded model, sorted by name."""
    return [describe(await engine.metadata(name)) for name in await engine.models()]


async def find_model(engine: Engine, name: str) -> dict[str, Any]:
    """One model. Raises NotFound."""
    try:
        return describe(await engine.metadata(name))
    except ModelNotFound:
        raise NotFound(f"there is no model {name[:100]!r}; there are {', '.join(await engine.models())}") from None


def describe(metadata: ModelMetadata) -> dict[str, Any]:
    """A model's config as JSON; the skeleton of a pose model as COCO's category."""
    parameters = dict(metadata.parameters)
    skeleton = parameters.pop("skeleton", None)
    described: dict[str, Any] = {
        "name": metadata.name,
        "kind": parameters.pop("kind", "part"),
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        "max_batch_size": metadata.max_batch_size,
        "inputs": [_tensor(spec) for spec in metadata.inputs],
        "outputs": [_tensor(spec) for spec in metadata.outputs],
        "parameters": parameters,
    }
    if skeleton is not None:
        parsed = Skeleton.from_json(skeleton)
        described["skeleton"] = {"preset": parsed.name, **coco.category(parsed), "sigmas": list(parsed.sigmas)}
    return described


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
