"""Requests that take too long end on the short way as they do on Serve's."""

from __future__ import annotations

import asyncio
import gc
import time
from types import SimpleNamespace

import pytest
import ray.serve.context as serve_context
from channel_bed import until
from http_path_bed import Bed, answer, of_deployment, of_request


class Slow:
    """Runs until it is cancelled.

    Args:
        starts: Begins to answer before that.
        then: What it makes of being cancelled.
    """

    def __init__(self, starts=False, then=None):
        self.starts, self.then = starts, then
        self.cancelled = asyncio.Event()
        self.calls = []

    async def __call__(self, scope, receive, send):
        inside = serve_context._get_serve_request_context()._internal_request_id
        for number, call in enumerate(self.calls):
            serve_context._add_in_flight_request(inside, number, call)
        if self.starts:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            if self.then is None:
                raise
            await self.then()


async def nothing(): ...


async def fails():
    raise ValueError("bad")


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("then", [None, nothing, fails])
async def test_serves_own_timeout(bed_of, heard, starts, then):
    app = Slow(starts, then)
    bed = bed_of(app, timeout_s=0.2)
    cancelled = []
    app.calls.append(SimpleNamespace(cancel=lambda: cancelled.append("other")))
    asked = await bed.ask(headers=[(b"x-request-id", b"theirs")])
    await app.cancelled.wait()
    assert "other" in cancelled
    assert [status for status, _ in asked.starts] == [200 if starts else 408]
    assert asked.body == (b"" if starts else b"Request theirs timed out after 0.2s.")
    assert asked.request_ids == [b"theirs"]
    await until(lambda: bed.serve._metrics_manager.ongoing == 0, "the app has ended")
    assert bed.counted == [of_deployment(error="CancelledError"), of_request("408")]
    assert [record for record in heard if record[0] == "INFO"] == [("INFO", "POST / 408", None)]


async def test_the_end_of_an_app_that_takes_no_notice_is_not_waited_for(bed_of, heard):
    gate = asyncio.Event()
    bed = bed_of(Slow(then=gate.wait), timeout_s=0.2)
    asking = asyncio.create_task(bed.ask())
    await until(lambda: bed.asked and len(bed.asked[0].sent) == 2, "the caller is told")
    assert bed.asked[0].starts[0][0] == 408
    assert [one["status_code"] for one in bed.serve._metrics_manager.requests] == ["408"]
    gate.set()
    assert (await asking).raised is None
    await until(lambda: bed.serve._metrics_manager.ongoing == 0, "the app has ended")
    assert bed.counted == [of_deployment(error="CancelledError"), of_request("408")]
    assert heard == [("INFO", "POST / 408", None)]


async def test_half_an_answer_is_ended_at_the_limit():
    """uvicorn does that when Serve returns."""
    closed = []

    async def goes_on():
        await send_on({"type": "http.response.body", "body": b"tail"})

    async def app(scope, receive, send):
        nonlocal send_on
        send_on = send
        await slow(scope, receive, send)

    slow, send_on = Slow(starts=True, then=goes_on), None
    bed = Bed(app, "short", timeout_s=0.1)
    take = bed.asgi._way.take
    bed.asgi._way.take = lambda scope, receive, send, _: take(scope, receive, send, lambda: closed.append("closed"))
    asked = await bed.ask()
    assert (closed, asked.body) == (["closed"], b"")


async def test_what_an_app_does_after_its_answer_is_not_limited(bed_of):
    done = []

    async def app(scope, receive, send):
        await answer(scope, receive, send)
        await asyncio.sleep(0.5)
        done.append("done")

    bed = bed_of(app, timeout_s=0.1)
    assert (await bed.ask()).body == b"ok"
    await until(lambda: bed.serve._metrics_manager.ongoing == 0, "the app has ended")
    assert (done, bed.counted) == (["done"], [of_deployment(), of_request("200")])


async def test_what_comes_in_the_moment_of_the_limit_is_in_time(bed_of):
    came = asyncio.Event()

    async def app(scope, receive, send):
        await came.wait()
        await answer(scope, receive, send)

    bed = bed_of(app, timeout_s=0.2)
    asking = asyncio.create_task(bed.ask())
    await until(lambda: bed.inside, "it runs")
    time.sleep(0.3)  # noqa: ASYNC251 - the loop is blocked meanwhile
    came.set()
    assert (await asking).starts[0][0] == 200
    assert bed.counted == [of_deployment(), of_request("200")]


async def test_a_caller_who_cannot_be_told_is_not(caplog):
    async def gone(message):
        raise OSError("gone")

    gc.collect()
    caplog.clear()
    bed = Bed(Slow(), "short", timeout_s=0.1)
    scope = {"type": "http", "method": "POST", "path": "/", "client": None, "headers": []}
    await bed.asgi(scope, lambda: asyncio.Event().wait(), gone)
    gc.collect()
    assert bed.counted == [of_deployment(error="CancelledError"), of_request("408")]
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_one_timer_is_for_all():
    gate = asyncio.Event()
    bed = Bed(lambda scope, receive, send: gate.wait(), "short", timeout_s=30.0)
    timeout = bed.asgi._way._timeout
    first = asyncio.create_task(bed.ask())
    await until(lambda: timeout._timer, "it is set")
    timer = timeout._timer
    others = [asyncio.create_task(bed.ask()) for _ in range(3)]
    await until(lambda: len(timeout._until) == 4, "all run")
    assert timeout._timer is timer
    gate.set()
    await asyncio.gather(first, *others)
    timer.cancel()


async def test_a_request_in_time_is_not_touched_by_the_end_of_others():
    gate = asyncio.Event()
    bed = Bed(lambda scope, receive, send: gate.wait(), "short", timeout_s=0.3)
    early = asyncio.create_task(bed.ask())
    await asyncio.sleep(0.2)
    bed.app = answer
    assert (await bed.ask()).starts[0][0] == 200
    late = Slow()
    bed.app = late
    asking = asyncio.create_task(bed.ask())
    assert (await early).starts == [(408, early.result().starts[0][1])]
    assert not late.cancelled.is_set()
    assert (await asking).starts[0][0] == 408
    bed.app = answer
    assert (await bed.ask()).starts[0][0] == 200
    timeout = bed.asgi._way._timeout
    assert timeout._until == {}
    await until(lambda: timeout._timer is None, "nothing waits any longer")
