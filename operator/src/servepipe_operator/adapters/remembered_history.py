"""History that is read once. Its records never change, and only the holder of the Lease writes them."""

from __future__ import annotations

import time
from collections.abc import Callable

from servepipe_operator.engine.state import Record
from servepipe_operator.ports import History

__all__ = ["RememberedHistory"]


class RememberedHistory:
    """A `History` in front of another one.

    Args:
        history: Where the records are.
        for_s: Seconds after which it is read again: somebody may have deleted records behind our back.
        clock: Monotonic seconds.
    """

    def __init__(self, history: History, for_s: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._history, self._for_s, self._clock = history, for_s, clock
        self._records: dict[tuple[str, str, int], Record] | None = None
        self._read_at = 0.0

    async def list(self) -> tuple[Record, ...]:
        """See `servepipe_operator.ports.History.list`."""
        if self._records is None or self._clock() - self._read_at >= self._for_s:
            self._records = None  # what fails in the middle leaves nothing half read
            found = await self._history.list()
            self._read_at = self._clock()
            self._records = {_key(record): record for record in found}
        return tuple(self._records.values())

    async def write(self, record: Record) -> None:
        """See `servepipe_operator.ports.History.write`."""
        try:
            await self._history.write(record)
        except BaseException:
            self._records = None  # it may have arrived, or another one is there
            raise
        if self._records is not None:
            self._records[_key(record)] = record

    async def delete(self, record: Record) -> None:
        """See `servepipe_operator.ports.History.delete`."""
        try:
            await self._history.delete(record)
        except BaseException:
            self._records = None
            raise
        if self._records is not None:
            self._records.pop(_key(record), None)


def _key(record: Record) -> tuple[str, str, int]:
    return record.kind, record.name, record.sequence
