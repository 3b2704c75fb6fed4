"""The kernel as a node of servepipe: its callers give one item, and it computes what meets in a replica."""

import models

import servepipe


class Kernel(models.Kernel):
    # As many as the requests that may be under way, in batches that wait no longer than a fraction of the kernel.
    @servepipe.batch(max_size=64, max_wait_ms=1)
    async def one(self, items: list[int]) -> list[int]:
        return await self.run(items)
