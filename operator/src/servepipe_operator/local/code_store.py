"""The copies of sources that a run keeps: ``code/<digest in hex>``, one import root per digest.

They outlive a run, as history does: the next start may have to bring back a stable revision whose sources have been
edited since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from servepipe.authoring.code import PREFIX, copies, remove_copies
from servepipe_operator.adapters.file_history import FileHistory
from servepipe_operator.engine.state import Json, Record

__all__ = ["digests_in", "kept_code", "prune_code", "tidy_code"]


def kept_code(store: Path) -> dict[str, str]:
    """Every complete copy in ``store``: its folder by digest. Empty where there is no such folder."""
    return {digest: str(path) for digest, path in copies(store).items()}


def digests_in(records: Iterable[Record]) -> frozenset[str]:
    """Every digest of code that a record names, wherever it stands in it.

    Looked for by form, not by field: a record of a kind that is new here must never lose its code.
    """
    found: set[str] = set()
    waiting: list[Json | object] = [record.data for record in records]
    while waiting:
        match waiting.pop():
            case dict() as fields:
                waiting.extend(fields.values())
            case list() | tuple() as items:
                waiting.extend(items)
            case str() as text if text.startswith(PREFIX):
                found.add(text)
            case _:
                pass
    return frozenset(found)


def prune_code(store: Path, needed: Iterable[str]) -> list[str]:
    """Remove the copies whose digest is not ``needed``; returns their digests.

    Only while nothing compiles for this run: a new copy is not named by any record yet. Raises `OSError`.
    """
    kept = copies(store)
    superfluous = sorted(kept.keys() - set(needed))
    for digest in superfluous:
        remove_copies(kept[digest])
    return superfluous


async def tidy_code(store: Path, history: Path, *, keep: Iterable[str]) -> list[str]:
    """`prune_code` by what the records in the folder ``history`` name, and ``keep``; returns what it removed.

    Nothing is removed while a record cannot be read: the record may be mended by hand, its code may not. Raises
    `OSError`.
    """
    corrupt: list[Path] = []
    records = await FileHistory(history, lambda path, _: corrupt.append(path)).list()
    if corrupt:
        return []
    return await asyncio.to_thread(prune_code, store, digests_in(records) | set(keep))
