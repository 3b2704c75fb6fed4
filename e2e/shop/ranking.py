"""A model that takes its time."""

import asyncio


class Ranker:
    async def rank(self, order):
        await asyncio.sleep(order.get("seconds", 0))
        return order.get("seconds", 0)
