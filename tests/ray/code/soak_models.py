"""User code for the soak."""

import asyncio


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

    async def fail(self, x):
        raise ValueError(x)
