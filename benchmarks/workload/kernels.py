"""The kernel as a node of servepipe calls it."""

import models


class Kernel(models.Kernel):
    async def one(self, item: int) -> int:
        # Without batching in servepipe each item is a batch of its own.
        return (await self.run([item]))[0]
