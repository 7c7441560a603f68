"""Undoing a change of a repository that did not come to its end: by its maker, or after a kill by the next one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: a change that was killed is then undone by hand
    fcntl = None  # type: ignore[assignment]

_FOLDER, _JOURNAL, _LOCK = ".undo", "journal.json", ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Mark a staging folder as one whose process lives, for the ``with`` block."""
    with (folder / _LOCK).open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Undo:
    """What a repository was before staged models were renamed in."""

    def __init__(self, folder: Path, repository: Path) -> None:
        """``folder``: where the journal and the files before are, see :meth:`begin`."""
        self._folder, self._repository = folder, repository

    @classmethod
    def begin(cls, staged: Path, repository: Path, versions: Mapping[str, int], files: Sequence[str]) -> Undo:
        """Write down what is about to change; nothing may change before this returns.

        Args:
            staged: the staging folder.
            repository: what changes.
            versions: the version folder that each model gets.
            files: names of the files of a model's folder that may be replaced.
        """
        folder = staged / _FOLDER
        folder.mkdir()
        absent: list[tuple[str, str]] = []
        for name in versions:
            (folder / name).mkdir()
            for file in files:
                if (repository / name / file).is_file():
                    shutil.copy2(repository / name / file, folder / name / file)
                else:
                    absent.append((name, file))
        created = [name for name in versions if not (repository / name).exists()]
        journal = {"versions": dict(versions), "created": created, "files": list(files), "absent": absent}
        with (folder / _JOURNAL).open("w", encoding="utf-8") as out:
            json.dump(journal, out)
            out.flush()
            os.fsync(out.fileno())
        return cls(folder, repository)

    def run(self) -> None:
        """Make the repository what it was. May be called again after it was interrupted."""
        journal = json.loads((self._folder / _JOURNAL).read_text(encoding="utf-8"))
        for name, version in reversed(journal["versions"].items()):
            target = self._repository / name
            if name in journal["created"]:
                shutil.rmtree(target, ignore_errors=True)
                continue
            # Configs before versions: no config may name a version that is gone.
            for file in journal["files"]:
                before = self._folder / name / file
                if [name, file] in journal["absent"]:
                    (target / file).unlink(missing_ok=True)
                elif before.is_file():  # else it was put back before an interruption
                    os.replace(before, target / file)
            shutil.rmtree(target / str(version), ignore_errors=True)
        self.forget()

    def forget(self) -> None:
        """The change has come to its end."""
        (self._folder / _JOURNAL).unlink()


def undo_interrupted(parent: Path, pattern: str, repository: Path) -> None:
    """Undo the changes whose process is gone, and remove their staging folders."""
    if fcntl is None:
        return
    for folder in parent.glob(pattern):
        try:
            lock = (folder / _LOCK).open("r+")
        except OSError:
            continue  # being made, or being removed
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # somebody is at work
            if (folder / _FOLDER / _JOURNAL).is_file():
                Undo(folder / _FOLDER, repository).run()
            shutil.rmtree(folder, ignore_errors=True)
