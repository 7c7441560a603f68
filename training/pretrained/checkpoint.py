"""Published weights as a ``model.pt`` of this project, which export, training and the service take as their own."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from service.skeletons import SKELETONS
from training.pose_recipe import PoseRecipe
from training.pretrained.multi_stage import mspn, rsn
from training.pretrained.single_stage import hrnet, simple_baseline
from training.pretrained.vitpose import vitpose
from training.pretrained.weights import Imported, PretrainedError, Weights, fit, read_weights
from training.run import write_durably

LAYOUTS: dict[str, Callable[[Weights], Imported]] = {
    "hrnet": hrnet,
    "mspn": mspn,
    "rsn": rsn,
    "simple_baseline": simple_baseline,
}
VITPOSE = "vitpose"
# What published weights of so many joints most often are; 14 joints are AI Challenger's, CrowdPose's or LSP's.
_SKELETONS = {17: "coco17", 16: "mpii16"}
_CROP = (192, 256)


@dataclass(frozen=True)
class Origin:
    """What is known of published weights, for the model card; empty where it is not."""

    name: str = ""
    source: str = ""
    licence: str = ""
    data: str = ""
    published: str = ""


def import_pose(
    layout: str,
    source: str | Path,
    output: Path,
    *,
    size: tuple[int, int] | None = None,
    skeleton: str | None = None,
    padding: float | None = None,
    origin: Origin | None = None,
) -> Path:
    """Turn published weights into ``output`` and the ``.json`` beside it.

    Args:
        layout: ``hrnet``, ``mspn``, ``rsn``, ``simple_baseline`` or ``vitpose``.
        source: file of weights; for ViTPose a model's id or a folder.
        output: the ``model.pt`` to write.
        size: width, height of the crops the weights were trained on; 192x256 or what the weights say.
        skeleton: name of the joints' order; by default COCO's for 17 and MPII's for 16 joints.
        padding: factor on a box before it is cropped; by default the published code's.
        origin: for the model card.

    Raises:
        PretrainedError: what was given cannot be imported; nothing is written.
        RunError: the disk cannot be written to.
    """
    if layout == VITPOSE:
        imported = vitpose(str(source))
    elif layout in LAYOUTS:
        try:
            imported = LAYOUTS[layout](read_weights(Path(source)))
        except PretrainedError as error:
            raise error if str(source) in str(error) else PretrainedError(f"{source}: {error}") from error
    else:
        raise PretrainedError(f"unknown layout {layout!r}; known: {', '.join([*LAYOUTS, VITPOSE])}")
    recipe = _recipe(imported, size, skeleton, str(source))
    saved = {
        "kind": "pose",
        "recipe": recipe.model_dump(mode="json"),
        "weights": fit(imported, str(source)),
        "convention": imported.convention,
        "refinement": imported.refinement,
        "padding": imported.padding if padding is None else padding,
    }
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    story = _story(saved, imported, source, origin or Origin())
    output.parent.mkdir(parents=True, exist_ok=True)
    write_durably(output, buffer.getbuffer())
    write_durably(output.with_suffix(".json"), (json.dumps(story, indent=1) + "\n").encode())
    return output


def _recipe(imported: Imported, size: tuple[int, int] | None, skeleton: str | None, where: str) -> PoseRecipe:
    name = skeleton or _SKELETONS.get(imported.joints)
    if name is None:
        raise PretrainedError(
            f"{where}: {imported.joints} joints: say which with --skeleton, one of {_fitting(imported)}"
        )
    if name not in SKELETONS or len(SKELETONS[name]) != imported.joints:
        raise PretrainedError(
            f"{where}: {imported.joints} joints are not {name}: one of {_fitting(imported) or 'none'}"
        )
    width, height = size or imported.size or _CROP
    try:
        return PoseRecipe.model_validate(
            {
                "skeleton": name,
                "presets": [name],
                "width": width,
                "height": height,
                "network": imported.network.model_dump(mode="json"),
                "radii": [{"name": "medium", "kind": "gaussian", "sigma": imported.sigma}],
                "steps": 0,
            }
        )
    except ValueError as error:
        raise PretrainedError(f"{where}: {error}") from error


def _fitting(imported: Imported) -> str:
    return ", ".join(name for name, skeleton in SKELETONS.items() if len(skeleton) == imported.joints)


def _story(saved: dict[str, Any], imported: Imported, source: str | Path, origin: Origin) -> dict[str, Any]:
    known = {key: value for key, value in vars(origin).items() if value}
    if Path(source).is_file():
        digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
        known |= {"file": Path(source).name, "sha256": digest}
    else:
        known.setdefault("source", Path(source).name if Path(source).is_dir() else str(source))
    return {
        "kind": "pose",
        "recipe": saved["recipe"],
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "parameters": int(sum(value.numel() for value in saved["weights"].values())),
        "imported": {"layout": imported.layout, **known},
    }
