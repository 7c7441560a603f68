"""A model repository on disk: the new version beside the old ones, all models of an export or none.

Everything is written to a folder beside the repository first and then renamed in, so that a server that starts
meanwhile sees whole files only. Whatever fails on the way is undone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from export.checkpoints import ExportError
from export.configs import ModelPlan, config_text
from service.engines.base import ModelMetadata
from service.engines.config import RepositoryError, read_model, read_repository
from service.engines.ensembles import check_ensembles

CONFIG = "config.pbtxt"
CARD = "MODEL_CARD.md"
# An ensemble's version is an empty folder; git keeps no empty folders, and Triton minds no file in them.
_KEEP_FILE = ".gitkeep"


@contextmanager
def staging_folder(repository: Path) -> Iterator[Path]:
    """A new folder on the repository's file system, removed on the way out. Raises ExportError."""
    # Beside the repository, where no server looks for models; a mounted repository has its own file system.
    parent = repository if repository.is_mount() else repository.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{repository.name}-export-", dir=parent))
    except OSError as error:
        raise ExportError(f"{parent} cannot be written to: {error}") from error
    try:
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
            (place / _KEEP_FILE).touch()
        else:
            (place / "model.onnx").write_bytes(plan.graph.SerializeToString(deterministic=True))
        (folder / plan.name / CONFIG).write_text(config_text(plan), encoding="utf-8")


def publish(staged: Path, repository: Path, keep: int) -> None:
    """Take over staged models (each with one version) into the repository.

    Older versions stay up to ``keep`` in all, except those whose tensors differ from the new ones: no config fits
    both.

    Raises:
        ExportError: the repository would not be servable with the new models, or could not be written; it is as
            it was before.
    """
    names = sorted(path.name for path in staged.iterdir())
    _check_result(staged, repository, names)
    outdated = {name: _outdated(staged / name, repository / name, keep) for name in names}
    repository.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        try:
            # Ensembles last: whoever reads along finds their parts.
            for name in sorted(names, key=lambda n: (read_model(staged / n).onnx is None, n)):
                _take_over(staged / name, repository / name, undo)
        except OSError as error:
            undo.close()
            raise ExportError(f"{repository} could not be written: {error}") from error
        undo.pop_all()
    for name, versions in outdated.items():
        for number in versions:
            shutil.rmtree(repository / name / str(number))


def _take_over(staged: Path, target: Path, undo: ExitStack) -> None:
    (version,) = version_numbers(staged)
    if not target.exists():
        os.rename(staged, target)
        undo.callback(shutil.rmtree, target)
        return
    os.rename(staged / str(version), target / str(version))
    undo.callback(shutil.rmtree, target / str(version))
    for name in (CONFIG, CARD):
        if (staged / name).is_file():
            undo.callback(_restorer(target / name))
            os.replace(staged / name, target / name)


def _restorer(path: Path) -> Callable[[], None]:
    before = path.read_bytes() if path.is_file() else None

    def restore() -> None:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(before)

    return restore


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
