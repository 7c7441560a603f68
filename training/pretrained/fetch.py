"""Published weights from where they are published to a ``model.pt``: one step for what the catalogue knows."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import torch

from training.detector import DetectorRecipe
from training.networks.detector_weights import initialise_detector
from training.networks.torchvision_detectors import TorchvisionDetector
from training.pretrained.catalogue import PUBLISHED, Published
from training.pretrained.checkpoint import Origin, import_pose
from training.pretrained.weights import PretrainedError
from training.recipe import RecipeError
from training.run import write_durably


def find(name: str) -> Published:
    """The catalogue's entry. Raises PretrainedError naming what there is."""
    for entry in PUBLISHED:
        if entry.name == name:
            return entry
    raise PretrainedError(f"unknown weights {name!r}; known: {', '.join(entry.name for entry in PUBLISHED)}")


def fetch(name: str, folder: Path, file: Path | None = None) -> Path:
    """Download, check, import.

    Args:
        name: of the catalogue.
        folder: where the download and ``model.pt`` go.
        file: the download, where it was made by hand (ViTPose: the folder of its files).

    Returns:
        path of ``model.pt``.

    Raises:
        PretrainedError: an unknown name, no internet, a file that is not what was published.
        RunError: the disk cannot be written to.
    """
    entry = find(name)
    target = folder / "model.pt"
    if entry.layout == "detector":
        return import_detector(entry, target, file)
    source: str | Path = file or entry.source
    if entry.source.startswith("https://"):
        source = file or download(entry, folder)
        verify(entry, Path(source))
    origin = Origin(entry.name, entry.source, entry.licence, entry.data, entry.figure)
    size = None if entry.layout == "vitpose" else entry.size
    return import_pose(entry.layout, source, target, size=size, origin=origin)


def download(entry: Published, folder: Path) -> Path:
    """The file; one that is there already is not fetched again."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / entry.source.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    try:
        torch.hub.download_url_to_file(entry.source, str(path), hash_prefix=entry.hash_prefix, progress=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a broken download has another hash
        raise PretrainedError(
            f"{entry.source} cannot be downloaded ({error}). Without internet, fetch that file where there is some "
            f"and name it: --file /path/to/{path.name}"
        ) from error
    return path


def verify(entry: Published, path: Path) -> None:
    """Hold a file to the digits of the SHA-256 that were published. Raises PretrainedError when it is another."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PretrainedError(f"{path}: {error.strerror or error}") from error
    if entry.hash_prefix and not found.startswith(entry.hash_prefix):
        raise PretrainedError(
            f"{path}: not the file that was published as {entry.name}: its SHA-256 begins with {found[:8]}, "
            f"not with {entry.hash_prefix}; weights of your own go through import-pose"
        )


def import_detector(entry: Published, output: Path, file: Path | None) -> Path:
    """torchvision's weights with all their categories, of which people are served: scores stay what they were."""
    # ``init`` stands in the recipe because the first ResNet-50's normalisation depends on whose weights it has.
    network = {"name": entry.source, "classes": "coco80", "init": "coco"}
    recipe = DetectorRecipe.model_validate({"network": network, "steps": 0})
    model = recipe.network.build()
    assert isinstance(model, TorchvisionDetector)
    try:
        initialise_detector(model.model, entry.source, file or "coco")
    except RecipeError as error:
        by_hand = str(error).replace("--set network.init=", "--file ")
        raise PretrainedError(by_hand.removeprefix("network.init: ").removeprefix("network.init ")) from error
    saved = {"kind": "detector", "recipe": recipe.model_dump(mode="json"), "weights": model.state_dict()}
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    about = {"layout": "torchvision's detectors", "name": entry.name, "licence": entry.licence}
    story = {
        "kind": "detector",
        "recipe": saved["recipe"],
        "parameters": int(sum(value.numel() for value in model.state_dict().values())),
        "imported": {**about, "data": entry.data, "published": entry.figure},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_durably(output, buffer.getbuffer())
    write_durably(output.with_suffix(".json"), (json.dumps(story, indent=1) + "\n").encode())
    return output
