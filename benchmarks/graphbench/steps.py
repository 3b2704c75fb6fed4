"""What the interpreter costs without Ray: per step of async methods, and for a call of a sync one.

The figures are those of ``benchmarks/interpreter.py``, with the caller that ``execute`` uses: of a chain of async steps
CPU time, less what the hand-written coroutines take; of a chain of sync ones wall time, beside as many bare calls of
`loop.run_in_executor`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import interpreter

from graphbench.cases import Case
from graphbench.figures import Sample
from graphbench.schedule import Pace, plan

__all__ = ["rounds"]

ASYNC_STEPS, ASYNC_TURNS = 100, 30
SYNC_STEPS, SYNC_TURNS = 10, 60


async def rounds(case: Case, pace: Pace) -> AsyncGenerator[list[Sample], None]:
    """The samples of each round."""
    for number, loads in enumerate(plan(case, pace), 1):
        chosen = {load.name for load in loads}
        found = []
        if "async" in chosen:
            chain = next(one for one in interpreter.CASES if one.name == f"chain of {ASYNC_STEPS}")
            us = (await interpreter.measure(chain, ASYNC_TURNS)).in_process_us_per_step
            found.append(Sample(case.name, "async", "interpreter", number, {"us_per_step": us}))
        if "sync" in chosen:
            result = await interpreter.measure_sync(SYNC_STEPS, 1, SYNC_TURNS)
            for contestant, us in (("interpreter", result.graph_us), ("by-hand", result.bare_us)):
                found.append(Sample(case.name, "sync", contestant, number, {"us_per_call": us}))
        yield [sample for sample in found if sample.contestant in case.contestants]
