"""Calls of nodes are counted by revision and by how they end, and told to Ray's metrics some time later."""

from __future__ import annotations

import asyncio
import time

import pytest
from channel_bed import until

from servepipe.errors import StepTimeoutError
from servepipe.runtime import node_counts
from servepipe.runtime.node_counts import AT_MOST_MS, CANCELLED, ERROR, OK, TIMEOUT, Ended, NodeCounts


async def gives(value):
    return value


async def raises(error):
    raise error


async def waits(seconds=60.0):
    await asyncio.sleep(seconds)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(ValueError("bad"), ERROR), (StepTimeoutError("late"), TIMEOUT), (SystemExit(3), ERROR)],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
async def test_every_end_is_counted_and_goes_on(error, outcome):
    counts = NodeCounts()
    assert await counts.counted("n", "r1", None, gives(7)) == 7
    with pytest.raises(type(error)):
        await counts.counted("n", "r1", None, raises(error))
    await counts.counted("n", "r2", None, gives(None))
    await counts.counted("other", "r1", None, gives(None))
    found = {(one.node, one.revision): one for one in counts.take()}
    assert {key: one.outcomes for key, one in found.items()} == {
        ("n", "r1"): {OK: 1, outcome: 1},
        ("n", "r2"): {OK: 1},
        ("other", "r1"): {OK: 1},
    }
    assert [one.within[-1] for one in found.values()] == [2, 1, 1]
    assert counts.take() == []


@pytest.mark.parametrize(("left", "outcome"), [(None, CANCELLED), (60.0, CANCELLED), (-1.0, TIMEOUT)])
async def test_one_that_is_cancelled_has_no_latency(left, outcome):
    counts = NodeCounts()
    deadline = None if left is None else time.time() + left
    call = asyncio.create_task(counts.counted("n", "r1", deadline, waits()))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert counts.take() == [Ended("n", "r1", {outcome: 1}, [0] * (len(AT_MOST_MS) + 1), 0.0)]


async def test_latencies_are_told_as_a_histogram_is(monkeypatch):
    """Each bound with all that are below it; one that is met is within."""
    clock = [0.0]
    monkeypatch.setattr(node_counts.time, "perf_counter", lambda: clock[0])
    counts = NodeCounts()

    async def takes(seconds):
        clock[0] += seconds

    for seconds in (0.001, 0.0005, 0.003, 0.1, 1000.0):
        clock[0] = 0.0
        await counts.counted("n", "r1", None, takes(seconds))
    (one,) = counts.take()
    within = dict(zip((*AT_MOST_MS, None), one.within, strict=True))
    assert (within[1], within[2], within[5], within[50], within[100], within[60_000], within[None]) == (
        2,
        2,
        3,
        3,
        4,
        4,
        5,
    )
    assert one.ms == pytest.approx(1_000_104.5)


class Metric:
    def __init__(self):
        self.told = []

    def inc(self, value, tags):
        self.told.append((value, tags))


async def test_they_are_told_once_some_time_later(monkeypatch):
    monkeypatch.setattr(node_counts, "TELL_AFTER_S", 0.01)
    requests, buckets, total = told = Metric(), Metric(), Metric()
    monkeypatch.setattr(node_counts, "_metrics", lambda: told)
    counts = NodeCounts()
    for _ in range(3):
        await counts.counted("n", "r1", None, gives(1))
    assert requests.told == []
    await until(lambda: requests.told, "they are told")
    assert requests.told == [(3, {"node": "n", "revision": "r1", "outcome": OK})]
    assert buckets.told[0] == (3, {"node": "n", "revision": "r1", "le": "1"})
    assert buckets.told[-1] == (3, {"node": "n", "revision": "r1", "le": "+Inf"})
    assert len(total.told) == 1
    assert counts._timer is None  # an ingress without requests does nothing
    await counts.counted("n", "r2", None, gives(1))
    await until(lambda: len(requests.told) == 2, "the next are told")


async def test_metrics_that_fail_fail_no_call(monkeypatch, caplog):
    def broken():
        raise RuntimeError("no metrics")

    monkeypatch.setattr(node_counts, "_metrics", broken)
    monkeypatch.setattr(node_counts, "TELL_AFTER_S", 0.0)
    counts = NodeCounts()
    for _ in range(2):
        assert await counts.counted("n", "r1", None, gives(1)) == 1
        await until(lambda: counts._timer is None, "they were to be told")
    assert caplog.text.count("no metrics") >= 2
