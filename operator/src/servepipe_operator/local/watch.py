"""Noticing that a file changed, by looking: no dependency, and the same on every file system."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = ["Watched"]


class Watched:
    """A set of files and what they looked like when last asked.

    A change counts once it is at rest: the files look the same in two looks one after the other. Editors write in
    several steps, and what is half written would not compile.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = frozenset(files)
        self._settled = self._seen = self._look()

    def changed(self) -> bool:
        """Whether the files differ from the last time this said so, and stand still."""
        look = self._look()
        still, self._seen = look == self._seen, look
        if still and look != self._settled:
            self._settled = look
            return True
        return False

    def replace(self, files: Iterable[Path]) -> None:
        """Watch these files from now on; a file that was watched before keeps what it looked like."""
        known = self._settled
        self._files = frozenset(files)
        now = self._look()
        self._settled = {path: known.get(path, look) for path, look in now.items()}
        self._seen = now

    def _look(self) -> dict[Path, tuple[int, int, int] | None]:
        return {path: _stat(path) for path in self._files}


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
