"""``python -m export configure``: how a repository's models are served, written anew; their graphs stay as they are."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from export.accelerated import accelerate_graphs
from export.checkpoints import ExportError
from export.configs import NETWORK_QUEUE, Accelerator, accelerate, as_text, limit, pin, queue_of, read_config, serve
from export.repository import CONFIG, KEEP_FILE, next_version, staging_folder, version_numbers
from service.engines.config import ENSEMBLE, ONNX, RepositoryError, read_repository
from service.engines.ensembles import check_ensembles


@dataclass(frozen=True)
class ConfigureRequest:
    """What to write where.

    Attributes:
        repository: whose configs are read.
        into: a sibling repository to make, with copies of the graphs; None to rewrite the configs in place.
        accelerator: TensorRT for the heavy networks, in a sibling only; None leaves it as it is.
        gpu_memory: most bytes of GPU memory that ONNX Runtime takes for each instance; None leaves it as it is.
        threads: of each network's run on a CPU; None leaves it as it is.
    """

    repository: Path
    into: Path | None = None
    accelerator: Accelerator | None = None
    gpu_memory: int | None = None
    threads: int | None = None


def configure(request: ConfigureRequest) -> list[str]:
    """Write the configs; returns the names of the models whose config is another one now.

    Networks get this project's batching, queues, versions, instances and warm-up. Ensembles get the newest versions of
    their parts, so a version that was put beside the others by hand comes into use.

    Raises:
        ExportError: the repository cannot be read, written, or served with the new configs; it is as it was.
    """
    if request.accelerator is not None and request.into is None:
        raise ExportError("TensorRT's graphs are not those that other servers are best served with: give --into")
    with staging_folder(request.into or request.repository) as staged:
        work = staged / "models"
        try:
            _copy_layout(request.repository, work, graphs=request.into is not None)
            changed = [path.parent.name for path in sorted(work.glob(f"*/{CONFIG}")) if _rewrite(path, request)]
            check_ensembles(read_repository(work))
            if request.into is None:
                for name in changed:
                    _replace(work / name, request.repository / name)
            elif request.into.exists():
                raise ExportError(f"{request.into} is there already")
            else:
                os.rename(work, request.into)
        except (ExportError, RepositoryError, text_format.ParseError, OSError) as error:
            raise ExportError(str(error).replace(str(work), str(request.repository))) from error
    return changed


def _copy_layout(repository: Path, work: Path, *, graphs: bool) -> None:
    """Copy a repository; with links in the place of files other than configs unless ``graphs`` are wanted."""
    if not repository.is_dir():
        raise RepositoryError(f"model repository {repository} is not a folder")
    work.mkdir()
    for source in sorted(repository.rglob("*")):
        inside = source.relative_to(repository)
        target = work / inside
        if any(part.startswith(".") and part != KEEP_FILE for part in inside.parts):
            continue
        if source.is_dir():
            target.mkdir()  # an ensemble's version may be empty
            continue
        if graphs or source.name == CONFIG:
            shutil.copy2(source, target)
        else:
            target.symlink_to(source.resolve())


def _rewrite(path: Path, request: ConfigureRequest) -> bool:
    """Write one model's config anew, in the working copy; whether it says something else than before."""
    config, before = read_config(path), read_config(path)
    config.name = path.parent.name  # Triton takes the folder's where none is given; engine caches are named after it
    if config.platform == ENSEMBLE:
        _use_newest(path.parent, config)
    elif config.platform == ONNX or config.backend == "onnxruntime":
        queue = queue_of(config)
        serve(config, queue)
        limit(config, gpu_memory=request.gpu_memory, threads=request.threads)
        if request.accelerator is not None and queue == NETWORK_QUEUE:
            accelerate(config, request.accelerator)
            accelerate_graphs(path.parent, config)
    path.write_text(as_text(config), encoding="utf-8")
    return bool(config != before)


def _use_newest(folder: Path, config: Any) -> None:
    """Name the newest versions of an ensemble's parts; other parts than before make a new version of it."""
    parts = {
        step.model_name: max(version_numbers(folder.parent / step.model_name), default=-1)
        for step in config.ensemble_scheduling.step
    }
    version = max(version_numbers(folder), default=1)
    named = {step.model_version for step in config.ensemble_scheduling.step}
    if named != {-1} and any(step.model_version != parts[step.model_name] for step in config.ensemble_scheduling.step):
        version = next_version(folder.parent, [folder.name])
        (folder / str(version)).mkdir()
        (folder / str(version) / KEEP_FILE).touch()
    pin(config, version, parts)


def _replace(work: Path, target: Path) -> None:
    """Put a model's new config, and an ensemble's new version before it, into the repository."""
    for version in set(version_numbers(work)) - set(version_numbers(target)):
        shutil.copytree(work / str(version), target / str(version))
    os.replace(work / CONFIG, target / CONFIG)
