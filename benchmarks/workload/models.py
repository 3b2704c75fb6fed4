"""What the nodes of the benchmarked graphs compute: plain Python, the same for servepipe and for every peer.

All of it does as little as it can, so that what is measured is what lies between the nodes. All of it is async, as
models are that wait for an accelerator.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

KERNEL_S = 0.005
ITEM_S = 0.0001


async def echo(x: Any) -> Any:
    return x


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    async def forward(self, x: int) -> int:
        return self.factor * x


async def ensemble(a: int, b: int, c: int) -> int:
    return a + b + c


class Increment:
    async def forward(self, x: int) -> int:
        return x + 1


async def total(*values: int) -> int:
    return sum(values)


class Work:
    """Waits as long as it is told to, as for an accelerator."""

    async def wait(self, milliseconds: int) -> int:
        await asyncio.sleep(milliseconds / 1000)
        return milliseconds


class Source:
    """Gives arrays of a size; made once, so that neither the memory nor the filling of it is measured."""

    def __init__(self, fill: int) -> None:
        self.fill = fill
        self._arrays: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}

    async def get(self, size: int) -> Any:
        if size not in self._arrays:
            self._arrays[size] = np.full(size, self.fill, dtype=np.uint8)
        return self._arrays[size]


async def measure(a: Any, b: Any) -> list[int]:
    """What shows that both values arrived whole: sizes, first and last bytes."""
    return [a.nbytes, int(a[0]), int(a[-1]), b.nbytes, int(b[0]), int(b[-1])]


class Kernel:
    """A device that works on one batch at a time: 5 ms, and 0.1 ms for each item in it."""

    def __init__(self) -> None:
        self._device = asyncio.Lock()

    async def run(self, items: list[int]) -> list[int]:
        async with self._device:
            await asyncio.sleep(KERNEL_S + ITEM_S * len(items))
        return [item + 1 for item in items]
