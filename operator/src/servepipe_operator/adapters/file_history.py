"""History as files: one JSON file per record in one folder.

A record is written beside its final name, flushed to the disk and renamed, so that a power cut leaves either the whole
record or none. A file that cannot be read is reported and skipped: one bad record must not take down what serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args
from urllib.parse import quote

from servepipe_operator.engine.state import Record, RecordKind
from servepipe_operator.ports import ConflictError

__all__ = ["FileHistory"]

KINDS = frozenset(get_args(RecordKind))


def _ignore(path: Path, reason: str) -> None: ...


class FileHistory:
    """Records of one pipeline in ``folder``, which is made when the first is written.

    Args:
        folder: Where the files are.
        on_corrupt: Called with the path and the reason, once per file that cannot be read.
    """

    def __init__(self, folder: Path, on_corrupt: Callable[[Path, str], None] = _ignore) -> None:
        self._folder = folder
        self._on_corrupt = on_corrupt
        self._reported: set[Path] = set()

    async def list(self) -> tuple[Record, ...]:
        """All readable records, oldest sequence first. Raises `OSError` if the folder cannot be read."""
        return await asyncio.to_thread(self._list)

    async def write(self, record: Record) -> None:
        """Durable when it returns. Raises `ConflictError`, and `OSError` (disk full, no permission)."""
        await asyncio.to_thread(self._write, record)

    async def delete(self, record: Record) -> None:
        """Deleting a record that is gone does nothing."""
        await asyncio.to_thread(self._path(record).unlink, missing_ok=True)

    def _path(self, record: Record) -> Path:
        # Names are hashes and node names; quoting keeps any other name inside the folder.
        return self._folder / f"{record.kind}-{record.sequence:08d}-{quote(record.name, safe='')}.json"

    def _list(self) -> tuple[Record, ...]:
        if not self._folder.is_dir():
            return ()
        found = (self._read(path) for path in sorted(self._folder.glob("[!.]*.json")))
        return tuple(sorted((r for r in found if r is not None), key=lambda r: (r.sequence, r.kind, r.name)))

    def _read(self, path: Path) -> Record | None:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            record = Record(kind=data["kind"], name=data["name"], data=data["data"], sequence=data["sequence"])
            if record.kind not in KINDS or not isinstance(record.data, dict) or self._path(record) != path:
                raise ValueError("the contents do not fit the file's name")
        except FileNotFoundError:
            return None  # pruned while the folder was read
        except (OSError, ValueError, KeyError, TypeError) as error:
            if path not in self._reported:
                self._reported.add(path)
                self._on_corrupt(path, f"{type(error).__name__}: {error}")
            return None
        return record

    def _write(self, record: Record) -> None:
        path = self._path(record)
        if path.exists() and (found := self._read(path)) is not None:
            if found.data != record.data:
                raise ConflictError(f"another {record.kind} is there already: {path}")
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        body = {"kind": record.kind, "name": record.name, "sequence": record.sequence, "data": record.data}
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(body, file, ensure_ascii=False, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self._reported.discard(path)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the rename itself
        finally:
            os.close(descriptor)
