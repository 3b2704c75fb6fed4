"""The resource's status as a file, for people and for the next start."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from servepipe_operator.engine.state import Json

__all__ = ["StatusFile"]


class StatusFile:
    """The `StatusWriter` port on one file; what cannot be read counts as never written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._latest: Json | None = None

    async def read(self) -> Json:
        """See `servepipe_operator.ports.StatusWriter.read`."""
        if self._latest is None:
            self._latest = await asyncio.to_thread(self._load)
        return self._latest

    async def write(self, status: Json) -> None:
        """See `servepipe_operator.ports.StatusWriter.write`. Raises `OSError`."""
        await asyncio.to_thread(self._store, status)
        self._latest = status

    def _load(self) -> Json:
        try:
            status = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    def _store(self, status: Json) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(status, indent=1), encoding="utf-8")
        temporary.replace(self._path)
