"""User code for the soak."""

import asyncio

import numpy as np


class Patient:
    """Keeps calls for as long as their callers stay, and knows how many it has."""

    def __init__(self):
        self.begun = self.inside = 0

    async def wait(self, _):
        self.begun += 1
        self.inside += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.inside -= 1

    async def told(self, _):
        return {"begun": self.begun, "inside": self.inside}

    async def echo(self, x):
        return x

    async def array(self, x):
        return np.full(1 << 17, x)

    async def ends(self, *arrays):
        return [[int(array[0]), int(array[-1])] for array in arrays]

    async def fail(self, x):
        raise ValueError(x)
