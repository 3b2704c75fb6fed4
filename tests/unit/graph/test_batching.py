"""Batched methods of a node in this process: through the node, and as its own code calls them."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

import pytest
from waiting import until

from servepipe import batch, set_batch
from servepipe.errors import NodeError, RequestError, StepTimeoutError
from servepipe.graph.batching.collector import Item
from servepipe.graph.batching.marks import owners
from servepipe.graph.calls import NodeHandle, RequestContext, current_request
from servepipe.graph.instance import NodeInstance

DEADLINE_S = 30.0

Make = Callable[..., Any]


@pytest.fixture
async def node() -> AsyncIterator[Make]:
    """Builds a node; closed in the end."""
    made: list[NodeInstance] = []

    async def build(target: Any, *args: Any, limit: int = 100, **options: Any) -> NodeInstance:
        instance = NodeInstance("n", target, max_ongoing_requests=limit, **options)
        await instance.build(args, {})
        made.append(instance)
        return instance

    yield build
    for instance in made:
        await instance.close()


class Doubler:
    """Waits in each batch until it is told to go on; remembers batches, threads and requests."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.threads: set[str] = set()
        self.requests: list[RequestContext | None] = []
        self.gate = threading.Event()
        self.gate.set()
        self.agate = asyncio.Event()
        self.agate.set()
        self.cancelled = 0

    @batch(max_size=4, max_wait_ms=0)
    def double(self, items: list[Any]) -> list[Any]:
        self.begin(items)
        assert self.gate.wait(DEADLINE_S)
        return [_doubled(item) for item in items]

    @batch(max_size=4, max_wait_ms=0)
    async def adouble(self, items: list[Any]) -> list[Any]:
        self.begin(items)
        try:
            await self.agate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [_doubled(item) for item in items]

    @batch(max_size=8, max_wait_ms=0)
    def answer(self, items: list[Any]) -> Any:
        return items[0]

    @batch(max_size=8, max_wait_ms=0)
    async def fail(self, items: list[Any]) -> Any:
        raise items[0]

    def twice(self, item: Any) -> Any:
        return self.double(self.double(item))

    async def atwice(self, item: Any) -> Any:
        return await self.adouble(await self.adouble(item))

    async def misled(self, item: Any) -> Any:
        return self.double(item)

    async def many(self, items: list[Any]) -> list[Any]:
        return await asyncio.gather(*(self.adouble(item) for item in items))

    @batch(max_size=4)
    def itself(self, items: list[int]) -> list[int]:
        return [0 if item == 0 else 1 + self.itself(item - 1) for item in items]

    @batch(max_size=4)
    async def aitself(self, items: list[int]) -> list[int]:
        return [0 if item == 0 else 1 + await self.aitself(item - 1) for item in items]

    def begin(self, items: list[Any]) -> None:
        self.batches.append(items)
        self.threads.add(threading.current_thread().name)
        self.requests.append(current_request.get())


def _doubled(item: Any) -> Any:
    return ValueError(f"bad {item}") if isinstance(item, str) else 2 * item


def start(instance: NodeInstance, method: str, *items: Any) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(instance.call(method, (item,), {})) for item in items]


METHODS = ("double", "adouble")


def shut(model: Doubler) -> None:
    model.gate.clear()
    model.agate.clear()


def go_on(model: Doubler) -> None:
    model.gate.set()
    model.agate.set()


@pytest.mark.parametrize("method", METHODS)
async def test_calls_that_meet_are_computed_together(node: Make, method: str) -> None:
    instance = await node(Doubler)
    model = instance._object

    assert await asyncio.gather(*start(instance, method, *range(6))) == [0, 2, 4, 6, 8, 10]

    assert model.batches == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize("method", METHODS)
async def test_while_a_batch_runs_the_next_one_gathers(node: Make, method: str) -> None:
    instance = await node(Doubler)
    model = instance._object
    shut(model)
    calls = start(instance, method, 1)
    await until("the first batch", lambda: model.batches)
    calls += start(instance, method, 2, 3)
    calls += start(instance, method, 4)
    go_on(model)
    assert await asyncio.gather(*calls) == [2, 4, 6, 8]
    assert model.batches == [[1], [2, 3, 4]]


@pytest.mark.parametrize("method", METHODS)
async def test_a_bad_item_fails_alone(node: Make, method: str) -> None:
    instance = await node(Doubler)

    good, bad, other = await asyncio.gather(*start(instance, method, 1, "x", 2), return_exceptions=True)

    assert (good, other) == (2, 4)
    assert isinstance(bad, ValueError)
    assert str(bad) == "bad x"
    assert len(instance._object.batches) == 1


async def test_what_a_batch_raises_each_of_it_gets_as_its_own(node: Make) -> None:
    instance = await node(Doubler)
    error = KeyError("no such model")
    error.add_note("of the author")

    first, second = await asyncio.gather(*start(instance, "fail", error, error), return_exceptions=True)

    assert (type(first), first.args, type(second), second.args) == (KeyError, error.args, KeyError, error.args)
    assert first is not second
    first.add_note("for one")
    assert second.__notes__ == ["of the author"]
    assert second.__traceback__ is not None


class PickyError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


async def test_an_exception_that_cannot_be_copied_is_shared(node: Make) -> None:
    instance = await node(Doubler)
    first, second = await asyncio.gather(*start(instance, "fail", PickyError(1, 2), 0), return_exceptions=True)
    assert first is second


async def test_an_order_to_end_the_process_ends_none(node: Make) -> None:
    instance = await node(Doubler)
    for order in (SystemExit(3), asyncio.CancelledError(), KeyboardInterrupt()):
        with pytest.raises(NodeError, match=type(order).__name__):
            await instance.call("fail", (order,), {})


@pytest.mark.parametrize(
    ("returned", "error", "says"),
    [
        ([1], ValueError, r"Doubler.answer got 2 items and returned 1 results: .* one per item"),
        ([1, 2, 3], ValueError, "got 2 items and returned 3 results"),
        (None, TypeError, r"Doubler.answer returned a NoneType: .* takes a list of items and returns a list"),
        ("ab", TypeError, "returned a str"),
        ({1: 2, 3: 4}, TypeError, "returned a dict"),
        ({1, 2}, TypeError, "returned a set"),
        ((i for i in range(2)), TypeError, "returned a generator"),
    ],
)
async def test_results_that_are_not_one_per_item_fail_all(
    node: Make, returned: Any, error: type[Exception], says: str
) -> None:
    instance = await node(Doubler)
    outcomes = await asyncio.gather(*start(instance, "answer", returned, 0), return_exceptions=True)
    for outcome in outcomes:
        with pytest.raises(error, match=says):
            raise outcome


async def test_any_sequence_of_results_will_do(node: Make) -> None:
    instance = await node(Doubler)
    for returned in ((7, 8), range(7, 9)):
        assert await asyncio.gather(*start(instance, "answer", returned, 0)) == [7, 8]


@pytest.mark.parametrize("method", METHODS)
async def test_one_who_leaves_before_the_batch_is_not_computed(node: Make, method: str) -> None:
    instance = await node(Doubler)
    model = instance._object
    shut(model)
    (first,) = start(instance, method, 1)
    await until("the first batch", lambda: model.batches)
    stays, leaves, stays_too = start(instance, method, 2, 3, 4)
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.wait([leaves])
    go_on(model)
    assert await asyncio.gather(first, stays, stays_too) == [2, 4, 8]
    assert leaves.cancelled()
    assert model.batches == [[1], [2, 4]]


@pytest.mark.parametrize("method", METHODS)
async def test_one_who_leaves_a_running_batch_hurts_nobody(node: Make, method: str) -> None:
    instance = await node(Doubler)
    model = instance._object
    shut(model)
    opens, stays = start(instance, method, 1, 2)
    await until("the batch", lambda: model.batches)
    opens.cancel()  # the one whose call opened the batch
    await asyncio.wait([opens])
    go_on(model)
    assert await stays == 4
    assert model.cancelled == 0


async def test_an_async_batch_that_all_have_left_is_cancelled_and_the_next_one_runs(node: Make) -> None:
    instance = await node(Doubler)
    model = instance._object
    shut(model)
    calls = start(instance, "adouble", 1, 2)
    await until("the batch", lambda: model.batches)
    (last,) = start(instance, "adouble", 5)
    for call in calls:
        call.cancel()
    await until("the batch to be cancelled", lambda: model.cancelled)
    go_on(model)
    assert await last == 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("turns", range(5))
async def test_a_batch_that_all_leave_before_it_begins_is_not_computed(node: Make, method: str, turns: int) -> None:
    instance = await node(Doubler)
    model = instance._object
    calls = start(instance, method, 1, 2)
    for _ in range(turns):
        await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert await instance.call(method, (3,), {}) == 6
    if turns < 2:
        assert model.batches == [[3]]


async def test_one_who_leaves_as_the_batch_is_made_is_not_computed(node: Make) -> None:
    instance = await node(Doubler)
    stays, leaves = start(instance, "adouble", 1, 2)
    await asyncio.sleep(0)
    leaves.cancel()
    assert await stays == 2
    assert instance._object.batches == [[1]]


@pytest.mark.parametrize("method", METHODS)
async def test_calls_that_were_cancelled_leave_nothing_behind(node: Make, method: str) -> None:
    instance = await node(Doubler)
    for turns in range(200):
        calls = start(instance, method, *range(20))
        for _ in range(turns % 5):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        del call, calls
    assert await instance.call(method, (1,), {}) == 2
    instance._object.batches.clear()
    await asyncio.sleep(0)
    gc.collect()
    assert [one for one in gc.get_objects() if isinstance(one, Item)] == []
    assert instance._slots.free == 100


async def test_what_is_told_of_batches_may_fail(node: Make) -> None:
    def begins(*what: Any) -> None:
        raise OSError("no metrics")

    instance = await node(Doubler, batch_begins=begins)
    assert await instance.call("double", (3,), {}) == 6


async def test_a_sync_batch_that_all_have_left_runs_to_its_end_before_the_next_one(node: Make) -> None:
    instance = await node(Doubler)
    model = instance._object
    shut(model)
    (gone,) = start(instance, "double", 1)
    await until("the batch", lambda: model.batches)
    gone.cancel()
    await asyncio.wait([gone])
    later = start(instance, "double", 5)
    await asyncio.sleep(0.01)
    later += start(instance, "double", 6)
    assert model.batches == [[1]]
    go_on(model)
    assert await asyncio.gather(*later) == [10, 12]
    assert model.batches == [[1], [5, 6]]
    assert len(model.threads) == 1


async def in_request(instance: NodeInstance, method: str, item: Any, **fields: Any) -> Any:
    current_request.set(RequestContext(**fields))
    return await instance.call(method, (item,), {})


async def test_an_item_whose_deadline_passes_while_it_waits_is_not_computed(node: Make) -> None:
    instance = await node(Doubler)
    model = instance._object
    shut(model)
    (first,) = start(instance, "double", 1)
    await until("the first batch", lambda: model.batches)
    hurried = asyncio.create_task(in_request(instance, "double", 2, deadline=time.time() + 0.02))
    patient = asyncio.create_task(in_request(instance, "double", 3, deadline=time.time() + 60))

    with pytest.raises(StepTimeoutError, match=r"waited for a batch of Doubler.double of node n") as caught:
        await hurried  # although the batch before it still runs

    assert caught.value.node == "n"
    go_on(model)
    assert await asyncio.gather(first, patient) == [2, 6]
    assert model.batches == [[1], [3]]
    with pytest.raises(StepTimeoutError):
        await in_request(instance, "double", 4, deadline=time.time() - 1)
    assert model.batches == [[1], [3]]


@pytest.mark.parametrize(("method", "inner"), [("twice", "double"), ("atwice", "adouble")])
async def test_methods_of_the_class_share_batches_with_calls_from_outside(node: Make, method: str, inner: str) -> None:
    instance = await node(Doubler)
    model = instance._object
    shut(model)
    calls = [*start(instance, method, 1), *start(instance, inner, 5)]
    await until("a batch", lambda: model.batches)
    calls += start(instance, inner, 6)
    go_on(model)
    assert await asyncio.gather(*calls) == [4, 10, 12]
    assert sorted(item for items in model.batches for item in items) == [1, 2, 5, 6]
    assert len(model.batches) <= 3


async def test_sync_methods_that_wait_for_batches_leave_them_a_thread(node: Make) -> None:
    instance = await node(Doubler, limit=3)
    assert await asyncio.gather(*start(instance, "twice", *range(12))) == [4 * n for n in range(12)]
    assert max(map(len, instance._object.batches)) > 1


async def test_items_of_one_request_are_computed_together(node: Make) -> None:
    instance = await node(Doubler, limit=1)
    assert await instance.call("many", ([1, 2, 3],), {}) == [2, 4, 6]
    assert instance._object.batches == [[1, 2, 3]]


async def test_a_sync_batch_cannot_be_awaited_by_waiting_on_the_loop(node: Make) -> None:
    instance = await node(Doubler)
    with pytest.raises(RequestError, match=r"Doubler.double is batched.*\n  Make it async and await it"):
        await instance.call("misled", (1,), {})


@pytest.mark.parametrize("method", ["itself", "aitself"])
async def test_a_batch_that_needs_itself_computes_that_on_the_spot(node: Make, method: str) -> None:
    instance = await node(Doubler)
    assert await asyncio.gather(*start(instance, method, 3, 1)) == [3, 1]


async def test_a_batch_is_called_from_other_event_loops(node: Make) -> None:
    instance = await node(Doubler)
    model = instance._object
    shut(model)
    (first,) = start(instance, "adouble", 1)
    await until("the first batch", lambda: model.batches)
    elsewhere = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(model.adouble(2))))
    await until("the other to wait", lambda: instance._batches._batchers[_mark("adouble")]._collector._waiting)
    go_on(model)
    assert (await first, await elsewhere) == (2, 4)


def _mark(method: str) -> Any:
    return getattr(Doubler, method).__servepipe_batch__


async def test_calls_are_bounded_by_the_limit_of_the_node(node: Make) -> None:
    """As in Serve's replicas: each item is a call."""
    instance = await node(Doubler, limit=2)
    assert await asyncio.gather(*start(instance, "double", *range(5))) == [0, 2, 4, 6, 8]
    assert max(map(len, instance._object.batches)) == 2


@pytest.mark.parametrize("method", METHODS)
async def test_methods_are_called_on_the_loop_where_the_node_says_so(node: Make, method: str) -> None:
    instance = await node(Doubler, blocking=False)
    await asyncio.gather(*start(instance, method, 1, 2))
    assert instance._object.threads == {threading.current_thread().name}


async def test_batches_of_a_node_that_may_block_run_on_a_loop_of_its_own(node: Make) -> None:
    here, go_on = threading.get_ident(), threading.Event()
    seen: list[tuple[int, list[int]]] = []

    class Blocks:
        @batch(max_size=4, max_wait_ms=0)
        async def double(self, items: list[int]) -> list[int]:
            seen.append((threading.get_ident(), items))
            assert go_on.wait(DEADLINE_S)
            return [2 * item for item in items]

        async def through(self, item: int) -> int:
            return await self.double(item)

    instance = await node(Blocks, blocking=True)
    calls = start(instance, "double", 1, 2, 3)
    through = asyncio.create_task(instance.call("through", (4,), {}))
    await until("a batch to begin", lambda: seen)
    go_on.set()
    assert await asyncio.gather(*calls, through) == [2, 4, 6, 8]
    assert here not in {thread for thread, _ in seen} and len({thread for thread, _ in seen}) == 1


@pytest.mark.parametrize("blocking", [None, True])
async def test_the_next_batch_waits_for_one_that_all_have_left(node: Make, blocking: bool | None) -> None:
    """Also where its code takes its time to end."""
    running, most, begun = 0, 0, asyncio.Queue[int]()
    home = asyncio.get_running_loop()

    class Cleans:
        @batch(max_size=1, max_wait_ms=0)
        async def work(self, items: list[int]) -> list[int]:
            nonlocal running, most
            running += 1
            most = max(most, running)
            home.call_soon_threadsafe(begun.put_nowait, items[0])
            try:
                await asyncio.sleep(DEADLINE_S if items[0] < 5 else 0)
            finally:
                for _ in range(20):
                    await asyncio.sleep(0)
                running -= 1
            return items

    instance = await node(Cleans, blocking=blocking)
    for item in range(5):
        (call,) = start(instance, "work", item)
        async with asyncio.timeout(DEADLINE_S):
            assert await begun.get() == item
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert await instance.call("work", (5,), {}) == 5
    assert most == 1


async def test_a_batch_belongs_to_no_request(node: Make) -> None:
    instance = await node(Doubler)
    model = instance._object

    one = in_request(instance, "double", 1, request_id="one", deadline=5e9, pins={"m": "r1"})
    two = in_request(instance, "double", 2, request_id="two", deadline=6e9, pins={"m": "r2"})
    three = in_request(instance, "double", 3, request_id="three", deadline=None)
    await asyncio.gather(*map(asyncio.create_task, (one, two)))
    await asyncio.gather(*map(asyncio.create_task, (three, in_request(instance, "double", 4, deadline=5e9))))
    await in_request(instance, "double", 5, request_id="alone", deadline=5e9)
    await asyncio.create_task(instance.call("double", (6,), {}))

    assert model.batches == [[1, 2], [3, 4], [5], [6]]
    both, some, alone = model.requests[:3]
    assert both.request_id not in ("one", "two")
    assert (both.deadline, some.deadline, alone.deadline) == (6e9, None, 5e9)
    assert alone.request_id == "alone"


variable: ContextVar[str] = ContextVar("variable", default="nobody's")


async def test_nothing_of_a_caller_is_seen_in_a_batch(node: Make) -> None:
    class Curious:
        @batch(max_size=8)
        async def look(self, items: list[int]) -> list[str]:
            return [variable.get() for _ in items]

    instance = await node(Curious)
    variable.set("the caller's")
    assert await asyncio.gather(*start(instance, "look", 1, 2)) == ["nobody's"] * 2


class Holder(Doubler):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held

    @batch(max_size=4)
    async def ask(self, items: list[Any]) -> list[Any]:
        self.held.ask.remote(items)  # nobody awaits it yet
        await self.agate.wait()
        return items


class Other:
    """Another node, which is asked and never answers."""

    def __init__(self) -> None:
        self.began = self.cancelled = False

    async def call(self, *_: Any) -> None:
        self.began = True
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def test_what_a_batch_has_asked_others_ends_when_all_have_left(node: Make) -> None:
    other = Other()
    instance = await node(Holder, NodeHandle("m", other, asyncio.get_running_loop()))
    shut(instance._object)
    calls = start(instance, "ask", 1, 2)
    await until("the other node to be asked", lambda: other.began)
    calls[0].cancel()
    await asyncio.wait([calls[0]])
    assert not other.cancelled
    calls[1].cancel()
    await until("that call to be cancelled", lambda: other.cancelled)


async def test_what_may_call_other_revisions_of_other_nodes_shares_no_batch(node: Make) -> None:
    handle = NodeHandle("m", None, asyncio.get_running_loop())  # type: ignore[arg-type]
    instance = await node(Holder, [{"m": handle}])
    pins: list[dict[str, str]] = [{"m": "r1"}, {"m": "r2"}, {"m": "r1"}]

    calls = [asyncio.create_task(in_request(instance, "double", n, pins=p)) for n, p in enumerate(pins)]
    await asyncio.gather(*calls)

    model = instance._object
    assert model.batches == [[0, 2], [1]]
    assert [request.pins for request in model.requests] == [{"m": "r1"}, {"m": "r2"}]


class Tuned:
    def __init__(self, size: int) -> None:
        self.sizes: list[int] = []
        set_batch(self.embed, max_size=size, max_wait_ms=0)

    @batch(max_size=100, max_wait_ms=1000)
    async def embed(self, items: list[int]) -> list[int]:
        self.sizes.append(len(items))
        return items

    def reconfigure(self, user_config: Any) -> None:
        set_batch(self.embed, **user_config)


async def test_sizes_come_from_arguments_and_the_user_config(node: Make) -> None:
    instance, other = await node(Tuned, 3), await node(Tuned, 5)
    await asyncio.gather(*start(instance, "embed", *range(6)), *start(other, "embed", *range(6)))
    assert (instance._object.sizes, other._object.sizes) == ([3, 3], [5, 1])

    await instance.reconfigure({"max_size": 2})
    await asyncio.gather(*start(instance, "embed", *range(6)))
    assert instance._object.sizes[2:] == [2, 2, 2]

    await instance.reconfigure({"max_wait_ms": 60_000})
    waits = start(instance, "embed", 1)
    await until("it to wait for another", lambda: instance._batches._batchers[_embed()]._timer)
    await instance.reconfigure({"max_wait_ms": 0})
    assert await waits[0] == 1


def _embed() -> Any:
    return Tuned.embed.__servepipe_batch__  # type: ignore[attr-defined]


async def test_it_waits_for_more_items_as_long_as_it_may(node: Make) -> None:
    class Slow:
        @batch(max_size=8, max_wait_ms=50)
        async def embed(self, items: list[int]) -> list[int]:
            sizes.append(len(items))
            return items

    sizes: list[int] = []
    instance = await node(Slow)
    await asyncio.gather(*start(instance, "embed", 1, 2))  # two callers
    began = time.monotonic()
    await asyncio.gather(*start(instance, "embed", 1))
    assert 0.04 < time.monotonic() - began < DEADLINE_S
    began = time.monotonic()
    await asyncio.gather(*start(instance, "embed", 1))  # now there is one
    assert sizes == [2, 1, 1]


async def test_functions_are_batched_too(node: Make) -> None:
    sizes: list[int] = []

    @batch(max_size=4)
    def double(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return [2 * item for item in items]

    instance = await node(double)
    assert await asyncio.gather(*(instance.call(None, (n,), {}) for n in range(3))) == [0, 2, 4]
    assert await instance.call(None, (), {"items": 4}) == 8
    assert double(5) == 10
    assert sizes == [3, 1, 1]


async def test_wrong_arguments_fail_their_call_only(node: Make) -> None:
    instance = await node(Doubler)
    for args, kwargs in ([(), {}], [(1, 2), {}], [(1,), {"other": 2}]):
        with pytest.raises(TypeError, match=r"Doubler.double\(\) is called with one item"):
            await instance.call("double", args, kwargs)
    assert await instance.call("double", (), {"items": 3}) == 6


async def test_a_fake_may_be_batched_or_not() -> None:
    class Plain:
        def double(self, item: int) -> int:
            return 20 * item

    plain, batched = NodeInstance("n", Plain()), NodeInstance("n", Doubler())
    assert await plain.call("double", (1,), {}) == 20
    assert await batched.call("double", (1,), {}) == 2
    await plain.close()
    await batched.close()


async def test_an_object_in_the_place_of_one_that_is_gone_is_not_taken_for_it(node: Make) -> None:
    instance, other = await node(Doubler), Doubler()
    owners[id(other)] = instance._batches
    assert await other.adouble(2) == 4
    assert (other.batches, instance._object.batches) == ([[2]], [])


async def test_a_closed_node_leaves_its_object_to_itself(node: Make) -> None:
    instance = await node(Doubler)
    model = instance._object
    await instance.call("double", (1,), {})
    await instance.close()
    assert await asyncio.to_thread(model.double, 4) == 8
    assert await model.adouble(4) == 8
    assert model.batches[-1] == [4]


async def test_a_limit_that_batches_cannot_reach_is_told_once(node: Make, caplog: pytest.LogCaptureFixture) -> None:
    begun: list[tuple[str, str, int]] = []
    instance = await node(Doubler, limit=3, batch_begins=lambda *what: begun.append(what))
    for _ in range(2):
        await asyncio.gather(*start(instance, "double", 1, 2))
    assert [record.getMessage() for record in caplog.records] == [
        "Doubler.double of node n has a max_size of 4, but no batch gets larger than maxOngoingRequests, 3: raise that"
    ]
    assert begun == [("n", "double", 2)] * 2
    caplog.clear()
    instance.limit_calls(4)
    await asyncio.gather(*start(instance, "adouble", 1, 2))
    assert caplog.records == []
