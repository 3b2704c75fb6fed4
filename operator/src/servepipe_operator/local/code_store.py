"""The copies of sources that a run keeps: one read-only folder per digest.

A stable revision may be older than the sources that lie on the disk now, also after a restart. It then starts from the
copy that was made when its sources were new, so copies stay for as long as any revision in history names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from servepipe.authoring.code import copies, remove_copies
from servepipe_operator.engine.state import Record

__all__ = ["CodeStore"]


class CodeStore:
    """The copies in ``folder``, which need not exist."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def paths(self) -> dict[str, str]:
        """The folder of each complete copy, by digest."""
        return {digest: str(path) for digest, path in copies(self._folder).items()}

    def prune(self, records: Iterable[Record], used: Iterable[str]) -> list[str]:
        """Remove the copies that nothing names any more; only while nothing of the run is alive.

        Args:
            records: The whole history: whatever a record names can be started again.
            used: Digests of what is about to run.

        Returns:
            The digests of what was removed.
        """
        named = {text for record in records for text in _texts(record.data)} | set(used)
        unused = {digest: path for digest, path in copies(self._folder).items() if digest not in named}
        for path in unused.values():
            remove_copies(path)
        return sorted(unused)


def _texts(value: Any) -> Iterator[str]:
    """Every string in a JSON value: digests stand in different places of different records."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
