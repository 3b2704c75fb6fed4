"""Replicas in processes of their own, some of which are killed."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from contextlib import asynccontextmanager

import channel_process
import numpy as np
from channel_bed import Context, folder, until

from servepipe.channel.endpoints import Endpoint
from servepipe.channel.errors import ChannelLostError
from servepipe.channel.pool import ChannelPool


@asynccontextmanager
async def processes(*names):
    """Replicas by name, and a pool with a channel to each of them."""
    async with folder() as path:
        running = {}
        try:
            endpoints = {}
            for name in names:
                running[name] = await asyncio.create_subprocess_exec(
                    sys.executable,
                    channel_process.__file__,
                    name,
                    str(path),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                )
            for name, process in running.items():
                endpoints[name] = Endpoint.parse(json.loads(await asyncio.wait_for(process.stdout.readline(), 60)))
            pool = ChannelPool()
            pool.update({name: endpoint.seen_from("here") for name, endpoint in endpoints.items()})
            await until(lambda: pool.usable == len(names), "all channels are open")
            yield running, pool
            await pool.close()
        finally:
            for process in running.values():
                process.stdin.close()
            for process in running.values():
                await asyncio.wait_for(process.wait(), 60)


async def test_values_between_processes():
    async with processes("a") as (_, pool):
        (channel,) = pool._usable
        await until(lambda: channel.lending.lender, "memory is shared")
        written = channel.written
        for size in (10, 100_000, 3_000_000):
            array = np.arange(size)
            got = await pool.call("echo", (array,), {}, Context())
            np.testing.assert_array_equal(got, array)
            got[0] = -1
        assert channel.written - written < 900_000  # the largest went another way
        del got
        await until(lambda: gc.collect() is not None and not channel.lending.lender.lent, "all memory has come back")


async def test_values_passed_on_from_process_to_process():
    async with processes("a") as (_, left), processes("b") as (_, right):
        first, second = *left._usable, *right._usable
        await until(lambda: first.lending.lender and second.lending.lender, "memory is shared")
        for seed in range(20):
            expected = np.arange(500_000) + seed
            value = await left.call("echo", (expected,), {}, Context())
            answers = [await right.call("echo", (value,), {}, Context()) for _ in range(2)]
            value[seed] = answers[0][seed + 1] = -1
            answers.append(await right.call("echo", (value,), {}, Context()))  # that is another one now
            np.testing.assert_array_equal(answers[1], expected)
            np.testing.assert_array_equal(answers[2], value)
            assert int((value != expected).sum()) == int((answers[0] != expected).sum()) == 1
        del value, answers
        await until(
            lambda: gc.collect() is not None and not first.lending.lender.lent + second.lending.lender.lent,
            "all memory has come back",
        )


async def test_a_killed_replica_costs_only_the_calls_that_it_had():
    async with processes("a", "b") as (running, pool):
        outcomes = []
        stop = asyncio.Event()

        async def caller(number):
            array = np.full(200_000, number)
            while not stop.is_set():
                try:
                    answer = await pool.call("slow", (array,), {}, Context())
                except ChannelLostError as error:
                    assert error.sent
                    outcomes.append("lost")
                else:
                    assert int(answer[-1]) == number
                    outcomes.append("answered")

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(16):
                group.create_task(caller(number))
            await until(lambda: outcomes.count("answered") > 100, "calls are answered")
            running["a"].send_signal(signal.SIGKILL)
            await running["a"].wait()
            await until(lambda: pool.usable == 1, "the channel is gone")
            answered = outcomes.count("answered")
            await until(lambda: outcomes.count("answered") > answered + 100, "calls are answered by the other")
            stop.set()
        assert 1 <= outcomes.count("lost") <= 16
        assert {await pool.call("pid", (), {}, Context()) for _ in range(5)} == {running["b"].pid}


async def test_a_stopped_replica_is_slow_and_not_gone():
    async with processes("a") as (running, pool):
        running["a"].send_signal(signal.SIGSTOP)
        call = asyncio.ensure_future(pool.call("pid", (), {}, Context()))
        done, _ = await asyncio.wait([call], timeout=0.3)
        assert not done
        assert pool.usable == 1
        running["a"].send_signal(signal.SIGCONT)
        assert await asyncio.wait_for(call, 30) == running["a"].pid


async def test_a_replica_that_ends_in_order_loses_no_call():
    async with processes("a", "b") as (running, pool):
        answered = []

        async def caller(number):
            for _ in range(60):
                await pool.call("slow", (number,), {}, Context())
                answered.append(number)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(caller(number))
            await until(lambda: len(answered) > 50, "calls are answered")
            running["a"].stdin.close()
            await running["a"].wait()
            assert len(answered) < 480
        assert len(answered) == 480
