"""The load client against small servers: what it counts, and what it makes of servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from graphbench.cases import Request
from graphbench.client import order_for, run

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SECONDS = 1.0
"""Long enough that a machine which is busy with other things answers at all meanwhile."""
REQUESTS = (Request(b"[1]", 2, noop=1, label="a"), Request(b"[2]", 4, noop=2, label="b"))


def response(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    return await reader.readexactly(length)


@contextlib.asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    connections: set[asyncio.Task[None]] = set()

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await handler(reader, writer)
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(quietly, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    await asyncio.wait_for(asyncio.gather(*connections), 10)


async def doubling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        body = await request_of(reader)
        await asyncio.sleep(0)
        writer.write(response(str(2 * int(body.strip(b"[]"))).encode()))


async def load(url: str, connections: int = 2, **more: Any) -> dict[str, Any]:
    return await run(order_for(url, connections, REQUESTS, seconds=SECONDS, warmup_s=0.05, **more))


async def test_right_answers_are_counted_by_label() -> None:
    async with served(doubling) as url:
        result = await load(url)
    figures = result["figures"]
    assert result["problem"] == ""
    assert result["failed"] == result["reconnected"] == 0
    assert figures.keys() == {"throughput", "p50", "p99", "p50 a", "p99 a", "p50 b", "p99 b"}
    assert 0 < figures["throughput"] * SECONDS <= result["requests"]
    assert 0 < figures["p50"] <= figures["p99"]


async def test_one_wrong_answer_is_a_problem() -> None:
    async def wrong_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(response(b"99"))
        await doubling(reader, writer)

    async with served(wrong_once) as url:
        result = await load(url, connections=1)
    assert result["failed"] == 1
    assert "b'99' instead of 2" in result["problem"]
    assert result["figures"]["throughput"] > 0, "the others count"


async def test_the_no_op_is_right_with_its_own_answer() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = await request_of(reader)
            writer.write(response(body.strip(b"[]")))

    async with served(echo) as url:
        assert (await load(url, noop=True))["problem"] == ""
        assert (await load(url))["problem"] != ""


async def test_a_connection_that_is_closed_between_two_requests_is_opened_again() -> None:
    async def three_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            body = await request_of(reader)
            writer.write(response(str(2 * int(body.strip(b"[]"))).encode()))

    async with served(three_each) as url:
        result = await load(url)
    assert result["problem"] == ""
    assert result["reconnected"] > 1
    assert result["figures"]["throughput"] > 0


async def test_a_server_that_never_answers_a_request_is_a_problem() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)

    async with served(slam) as url:
        result = await load(url)
    assert "closed without an answer" in result["problem"]
    assert result["figures"] == {}


async def test_nobody_there_is_a_problem() -> None:
    async with served(doubling) as url:
        pass
    result = await load(url)
    assert result["problem"].startswith("no connection to 127.0.0.1")
    assert result["failed"] == 2


async def test_what_is_no_http_is_a_problem() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"220 mail ready\r\n\r\n")
        await reader.read()

    async with served(greet) as url:
        assert "not a response" in (await load(url))["problem"]
