"""A model repository on disk: the new version beside the old ones, all models of an export or none.

Everything is written to a folder beside the repository first and then renamed in, so that a server that reads along
sees whole files only. An ensemble names the versions of its parts: new parts lie there without effect until the
ensemble's config is replaced, in one step. Whatever fails on the way is undone; after a kill, by the next export.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from export.accelerated import accelerate_graphs
from export.checkpoints import ExportError
from export.configs import ModelPlan, as_text, carry_over, config_text, is_accelerated, pin, read_config
from export.undo import Undo, held, undo_interrupted
from service.engines.base import ModelMetadata
from service.engines.config import ENSEMBLE, RepositoryError, read_model, read_repository
from service.engines.ensembles import check_ensembles

CONFIG = "config.pbtxt"
CARD = "MODEL_CARD.md"
# An ensemble's version is an empty folder; git keeps no empty folders, and Triton minds no file in them.
KEEP_FILE = ".gitkeep"


@contextmanager
def staging_folder(repository: Path) -> Iterator[Path]:
    """A new folder on the repository's file system, removed on the way out; undoes what a killed export has left.

    Raises ExportError.
    """
    # Beside the repository, where no server looks for models; a mounted repository has its own file system.
    parent = repository if repository.is_mount() else repository.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        undo_interrupted(parent, f".{repository.name}-export-*", repository)
        folder = Path(tempfile.mkdtemp(prefix=f".{repository.name}-export-", dir=parent))
    except OSError as error:
        raise ExportError(f"{parent} cannot be written to: {error}") from error
    try:
        with held(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def version_numbers(folder: Path) -> list[int]:
    """Version folders of a model, ascending; empty when there is no such model."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name[0] != "0")


def next_version(repository: Path, names: Sequence[str]) -> int:
    """One more than any of these models has: what is exported together carries one number."""
    return 1 + max((number for name in names for number in version_numbers(repository / name)), default=0)


def write_models(folder: Path, plans: Sequence[ModelPlan], version: int) -> None:
    """Write models in Triton's layout into an empty folder."""
    for plan in plans:
        place = folder / plan.name / str(version)
        place.mkdir(parents=True)
        if plan.graph is None:
            (place / KEEP_FILE).touch()
        else:
            (place / "model.onnx").write_bytes(plan.graph.SerializeToString(deterministic=True))
        (folder / plan.name / CONFIG).write_text(config_text(plan), encoding="utf-8")


def publish(staged: Path, repository: Path, keep: int) -> None:
    """Take over staged models (each with one version) into the repository.

    Ensembles of the repository that use a staged model get a new version too, and name its new version. Older
    versions stay up to ``keep`` in all, except those whose tensors differ from the new ones: no config fits both.

    Raises:
        ExportError: the repository would not be servable with the new models, or could not be written; it is as
            it was before.
    """
    _let_ensembles_follow(staged, repository)
    names = _models(staged)
    for name in names:
        _finish_config(staged, repository, name)
    _check_result(staged, repository, names)
    outdated = {name: _outdated(staged / name, repository / name, keep) for name in names}
    # Ensembles last: whoever reads along finds their parts.
    order = sorted(names, key=lambda n: (read_model(staged / n).onnx is None, n))
    try:
        repository.mkdir(parents=True, exist_ok=True)
        undo = Undo.begin(staged, repository, {n: version_numbers(staged / n)[0] for n in order}, (CONFIG, CARD))
        try:
            for name in order:
                _take_over(staged / name, repository / name)
        except OSError:
            undo.run()
            raise
        undo.forget()
    except OSError as error:
        raise ExportError(f"{repository} could not be written: {error}") from error
    for name, versions in outdated.items():
        for number in versions:
            shutil.rmtree(repository / name / str(number))


def _models(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _let_ensembles_follow(staged: Path, repository: Path) -> None:
    """Stage a new version of every ensemble of the repository that uses a staged model."""
    if not repository.is_dir():
        return
    names, found = set(_models(staged)), True
    while found:  # an ensemble may be a part of another one
        found = False
        for name in set(_models(repository)) - names:
            path = repository / name / CONFIG
            if not path.is_file():
                continue
            config = read_config(path)
            if any(step.model_name in names for step in config.ensemble_scheduling.step):
                place = staged / name / str(next_version(repository, [name]))
                place.mkdir(parents=True)
                (place / KEEP_FILE).touch()
                (staged / name / CONFIG).write_text(as_text(config), encoding="utf-8")
                names.add(name)
                found = True


def _finish_config(staged: Path, repository: Path, name: str) -> None:
    """Name the versions of an ensemble's parts; keep what an operator has set for a network."""
    path = staged / name / CONFIG
    config = read_config(path)
    if config.platform == ENSEMBLE:
        (version,) = version_numbers(staged / name)
        parts = {}
        for step in config.ensemble_scheduling.step:
            found = version_numbers(staged / step.model_name) or version_numbers(repository / step.model_name)
            parts[step.model_name] = max(found, default=-1)
        pin(config, version, parts)
    elif (repository / name / CONFIG).is_file():
        carry_over(read_config(repository / name / CONFIG), config)
    if is_accelerated(config):
        accelerate_graphs(staged / name, config)
    path.write_text(as_text(config), encoding="utf-8")


def _take_over(staged: Path, target: Path) -> None:
    (version,) = version_numbers(staged)
    if not target.exists():
        os.rename(staged, target)
        return
    os.rename(staged / str(version), target / str(version))
    for name in (CONFIG, CARD):
        if (staged / name).is_file():
            os.replace(staged / name, target / name)


def _outdated(staged: Path, target: Path, keep: int) -> list[int]:
    """Versions of a model that go when the staged one is there."""
    present = version_numbers(target)
    if not present:
        return []
    try:
        fits = _tensors(read_model(target).metadata) == _tensors(read_model(staged).metadata)
    except RepositoryError:
        fits = False
    kept = present[len(present) - (keep - 1) :] if fits and keep > 1 else []
    return [number for number in present if number not in kept]


def _tensors(metadata: ModelMetadata) -> object:
    return metadata.max_batch_size, metadata.inputs, metadata.outputs


def _check_result(staged: Path, repository: Path, names: Sequence[str]) -> None:
    """Would the repository, with the new models in place of the old ones, be one that engines take?"""
    with staging_folder(repository) as view:
        present = [path for path in repository.iterdir() if path.is_dir()] if repository.is_dir() else []
        for path in (*(p for p in present if p.name not in names), *(staged / name for name in names)):
            (view / path.name).symlink_to(path.resolve(), target_is_directory=True)
        try:
            check_ensembles(read_repository(view))
        except RepositoryError as error:
            raise ExportError(f"the repository would not be servable: {str(error).replace(str(view), '')}") from error
