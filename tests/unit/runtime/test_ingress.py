"""What the ingress decides without a Ray behind it: the table, its changes, and what is asked of everybody."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from grpc import StatusCode

from servepipe.errors import RequestError
from servepipe.runtime import observer as observing
from servepipe.runtime.ingress import Ingress, _look_for_cycles_less_often, _State
from servepipe.runtime.observer import Observer, Replicas

GRAPH = {"steps": [{"name": "s", "node": "a", "args": [{"$input": []}]}], "output": {"$step": "s"}}
OTHER_GRAPH = {**GRAPH, "output": {"out": {"$step": "s"}}}
INLINE = {"import": "operator:neg", "args": [], "kwargs": {}, "code": None}


def table(name: str = "t1", off: bool = False, **routes: Any) -> dict[str, Any]:
    return {"table": name, "graph": GRAPH, "nodes": {node: {"routes": r, "off": off} for node, r in routes.items()}}


def route(revision: str, weight: int, **more: Any) -> dict[str, Any]:
    return {"revision": revision, "weight": weight, **more}


class StandIn(Ingress):  # type: ignore[misc]
    """The ingress without Serve around it."""

    def __init__(self) -> None:
        self._set_up("p", "ingress")
        self.kept: list[set[str]] = []

        async def keep_only(applications: Any) -> None:
            self.kept.append(set(applications))

        self._serve_caller = SimpleNamespace(handle=lambda application: None, keep_only=keep_only)  # type: ignore[assignment]


@pytest.mark.parametrize(("before", "after"), [(700, 10_000), (50_000, 50_000), (0, 0)])
def test_python_looks_for_cycles_rarely_but_never_more_or_less_than_somebody_wants(before: int, after: int) -> None:
    of_python = gc.get_threshold()
    try:
        gc.set_threshold(before)
        _look_for_cycles_less_often()
        assert gc.get_threshold() == (after, *of_python[1:])
    finally:
        gc.set_threshold(*of_python)


class TestReadiness:
    @pytest.mark.parametrize(
        ("routes", "off", "looked_for"),
        [
            ([], False, {"a": []}),
            ([], True, {}),
            ([route("r1", 100)], False, {"a": [("r1", 100)]}),
            ([route("r1", 100)], True, {}),
            ([route("r1", 10), route("r2", 90)], False, {"a": [("r1", 10), ("r2", 90)]}),
            ([route("i1", 100, inline=INLINE)], False, {}),
            ([route("i1", 0, inline=INLINE)], False, {"a": []}),
            ([route("i1", 0, inline=INLINE), route("r2", 100)], False, {"a": [("r2", 100)]}),
            ([route("i1", 100, inline=INLINE), route("r2", 0)], False, {}),
        ],
        ids=[
            "no revision",
            "off without revision",
            "dedicated",
            "off",
            "two revisions",
            "inline",
            "inline without weight",
            "from inline to dedicated",
            "from dedicated to inline",
        ],
    )
    async def test_a_node_is_looked_for_unless_it_is_inline_or_off(
        self, routes: Any, off: bool, looked_for: Any
    ) -> None:
        assert _State(table(off=off, a=routes), StandIn()).places.dedicated_nodes == looked_for

    async def test_a_node_without_weight_on_any_revision_is_not_ready(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(observing, "_look", lambda: {"b--r1": Replicas("HEALTHY", 1, True)})
        observer = Observer("ingress", lambda application: None)  # type: ignore[arg-type, return-value]
        state = _State(table(a=[route("i1", 0, inline=INLINE)], b=[route("r1", 100)], c=[]), StandIn())
        assert await observer.not_ready(state.places.dedicated_nodes) == ["a", "c"]

    @pytest.mark.parametrize(
        ("answered", "controller", "not_ready"),
        [
            ({"a--r1": 0, "b--r1": 0}, None, []),
            ({"a--r1": 0}, {"b--r1": Replicas("HEALTHY", 1, True)}, []),
            ({"a--r1": 0}, {}, ["b"]),
            ({"a--r1": observing.ANSWERED_S, "b--r1": 0}, {}, ["a"]),
            ({"a--r2": 0, "b--r1": 0}, {}, ["a"]),
        ],
        ids=["both: nobody is asked", "one, and one known", "one", "long ago", "a revision without weight"],
    )
    async def test_a_node_that_answered_a_moment_ago_is_ready(
        self, monkeypatch: pytest.MonkeyPatch, answered: Any, controller: Any, not_ready: list[str]
    ) -> None:
        def look() -> dict[str, Replicas]:
            assert controller is not None
            return dict(controller)

        monkeypatch.setattr(observing, "_look", look)
        now = time.monotonic()
        marks = {application: now - ago for application, ago in answered.items()}
        observer = Observer("ingress", lambda application: None, marks)  # type: ignore[arg-type, return-value]
        assert await observer.not_ready({"a": [("r1", 100)], "b": [("r1", 90), ("r2", 10)]}) == not_ready

    @pytest.mark.parametrize("how", ["raises", "says nothing"])
    async def test_a_controller_that_gives_no_answer_makes_it_not_ready(
        self, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        over = threading.Event()

        def look() -> dict[str, Replicas]:
            if how == "raises":
                raise OSError("no controller")
            over.wait(30)
            return {}

        monkeypatch.setattr(observing, "_look", look)
        monkeypatch.setattr(observing, "LOOK_WITHIN_S", 0.05 if how == "says nothing" else 30.0)
        ingress = StandIn()
        ingress._observer = Observer("ingress", lambda application: None)  # type: ignore[arg-type, return-value]
        await ingress.reconfigure(table(a=[route("r1", 100)]))
        status, told = await ingress._ready()
        over.set()
        assert (status, told["ready"]) == (503, False)
        assert ("no controller" if how == "raises" else "TimeoutError") in told["message"]


class TestTableChanges:
    async def test_what_a_coming_table_needs_is_not_retired_by_the_change_before(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A request holds the first table's instance: its retirement still goes on when the third table comes."""
        ingress = StandIn()
        waiting, building, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
        turns: list[asyncio.Event] = []

        async def sleep(_: float) -> None:
            turns.append(turn := asyncio.Event())
            waiting.set()
            await turn.wait()

        monkeypatch.setattr("servepipe.runtime.ingress.asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
        ensure = ingress._inline.ensure

        async def ensure_slowly(application: str, node: str, spec: Any) -> None:
            await ensure(application, node, spec)
            if application == "b--i3":
                building.set()
                await go_on.wait()

        ingress._inline.ensure = ensure_slowly  # type: ignore[method-assign]
        await ingress.reconfigure(table("t1", a=[route("i1", 100, inline=INLINE)]))
        pins = ingress._current().routes.draw()
        ingress._in_flight.begin(pins)
        await ingress.reconfigure(table("t2", a=[route("i2", 100, inline=INLINE)]))
        await asyncio.wait_for(waiting.wait(), 10)
        change = asyncio.create_task(
            ingress.reconfigure(table("t3", a=[route("i3", 100, inline=INLINE)], b=[route("i3", 100, inline=INLINE)]))
        )
        await asyncio.wait_for(building.wait(), 10)  # a--i3 and b--i3 are built, and t2 is in force
        waiting.clear()
        turns[0].set()
        await asyncio.wait_for(waiting.wait(), 10)  # the retirement has looked again
        go_on.set()
        await change
        assert "a--i3" in ingress._inline
        assert "b--i3" in ingress._inline
        ingress._in_flight.end(pins)
        waiting.clear()
        for turn in turns:
            turn.set()
        for task in list(ingress._retiring):
            await asyncio.wait_for(task, 10)
        assert sorted(ingress._inline) == ["a--i3", "b--i3"]

    @pytest.mark.parametrize("graph", [GRAPH, OTHER_GRAPH], ids=["same graph", "another graph"])
    async def test_a_request_whose_body_comes_slowly_meets_two_tables(self, graph: Any) -> None:
        """What the first one names is gone when it runs, or stays for its graph until it is answered."""
        ingress = StandIn()
        await ingress.reconfigure(table("t1", a=[route("i1", 100, inline=INLINE)]))
        began, body = asyncio.Event(), asyncio.Event()

        async def content() -> AsyncIterator[bytes]:
            began.set()
            await asyncio.wait_for(body.wait(), 10)
            yield b"5"

        async def post() -> Any:
            transport = httpx.ASGITransport(ingress.__serve_build_asgi_app__())
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return (await http.post("/", content=content())).json()

        request = asyncio.create_task(post())
        await asyncio.wait_for(began.wait(), 10)
        await ingress.reconfigure(table("t2", a=[route("i2", 100, inline=INLINE)]) | {"graph": graph})
        (retiring,) = list(ingress._retiring)
        if graph is GRAPH:
            await asyncio.wait_for(retiring, 10)
        assert sorted(ingress._inline) == (["a--i2"] if graph is GRAPH else ["a--i1", "a--i2"])
        assert ("a--i1" in ingress._busy()) is (graph is not GRAPH)
        body.set()
        assert await asyncio.wait_for(request, 10) == -5
        await asyncio.wait_for(retiring, 10)
        assert sorted(ingress._inline) == ["a--i2"]
        assert ingress._busy() == {}

    async def test_a_table_that_cannot_be_read_leaves_the_one_in_force(self) -> None:
        ingress = StandIn()
        await ingress.reconfigure(table("t1", a=[route("i1", 100, inline=INLINE)]))
        await ingress.reconfigure({"table": "t2", "graph": {"steps": [{"name": 1}], "output": None}, "nodes": {}})
        assert ingress._current().table == "t1"
        assert ingress._error
        await ingress.reconfigure(table("t3", a=[route("i1", 100, inline=INLINE)]))
        assert (ingress._current().table, ingress._error) == ("t3", "")


class GrpcContext:
    def __init__(self) -> None:
        self.code: Any = None
        self.details: Any = None

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("request_id", "abc")]

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = json.loads(details)

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.metadata = dict(metadata)


class TestEntrances:
    async def test_without_a_table_everything_is_503(self) -> None:
        app = StandIn().__serve_build_asgi_app__()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            answer, ready, graph = (
                await http.post("/", content=b"1"),
                await http.get("/-/ready"),
                await http.get("/-/graph"),
            )
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "NotReady")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert graph.status_code == 404
        context = GrpcContext()
        with pytest.raises(RequestError):
            await StandIn().Run(BytesValue(value=b"1"), context)
        assert (context.code, context.details["code"]) == (StatusCode.UNAVAILABLE, "NotReady")

    async def test_a_request_is_run_with_the_table_that_it_met(self) -> None:
        ingress = StandIn()
        await ingress.reconfigure(table("t1", a=[route("i1", 100, inline=INLINE)]))
        app = ingress.__serve_build_asgi_app__()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            assert (await http.post("/", content=b"5")).json() == -5
        context = GrpcContext()
        assert (await ingress.Run(BytesValue(value=b"5"), context)).value == b"-5"
        assert context.metadata == {"content-type-of-value": "application/json"}

    async def test_grpc_has_the_same_limit_for_bodies_as_http(self) -> None:
        ingress = StandIn()
        await ingress.reconfigure(table("t1", a=[route("i1", 100, inline=INLINE)]) | {"maxBodyBytes": 3})
        context = GrpcContext()
        with pytest.raises(RequestError):
            await ingress.Run(BytesValue(value=b"1234"), context)
        assert (context.code, context.details["code"]) == (StatusCode.RESOURCE_EXHAUSTED, "BodyTooLarge")
        assert context.details["requestId"] == "abc"


class TestObserver:
    def observer(self, monkeypatch: pytest.MonkeyPatch, seen: dict[str, Replicas], ask: Any) -> Observer:
        monkeypatch.setattr(observing, "_look", lambda: dict(seen))
        monkeypatch.setattr(observing, "_broadcast", ask)
        return Observer("ingress", lambda application: application)  # type: ignore[arg-type, return-value]

    @pytest.mark.parametrize("controller", ["raises", "says nothing", "knows nobody"])
    @pytest.mark.parametrize("answering", [("a--r1", "b--r1"), ("a--r1",)], ids=["all", "one"])
    async def test_replicas_tell_while_the_controller_starts_again(
        self, monkeypatch: pytest.MonkeyPatch, controller: str, answering: tuple[str, ...]
    ) -> None:
        over = threading.Event()

        def look() -> dict[str, Replicas]:
            if controller == "raises":
                raise OSError("no controller")
            if controller == "says nothing":
                over.wait(30)
            return {}

        async def ask(handle: Any) -> Any:
            return time.monotonic(), [{"application": handle}] if handle in answering else []

        observer = self.observer(monkeypatch, {}, ask)
        monkeypatch.setattr(observing, "_look", look)
        if controller == "says nothing":  # waited for in vain; all else may take its time on a busy machine
            monkeypatch.setattr(observing, "CONTROLLER_WITHIN_S", 0.05)
            if len(answering) == 1:
                monkeypatch.setattr(observing, "LOOK_WITHIN_S", 0.5)
        nodes = {"a": [("r1", 100)], "b": [("r1", 100)]}
        try:
            if len(answering) == 2:
                assert await observer.not_ready(nodes) == []
            elif controller == "knows nobody":
                assert await observer.not_ready(nodes) == ["b"]
            else:
                with pytest.raises(OSError if controller == "raises" else TimeoutError):
                    await observer.not_ready(nodes)
        finally:
            over.set()

    async def test_several_may_ask_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked, answer = asyncio.Semaphore(0), asyncio.Event()

        async def ask(handle: Any) -> Any:
            asked.release()
            await answer.wait()
            return observing.time.monotonic(), [{"application": str(handle), "holds": True}]

        observer = self.observer(monkeypatch, {"a--r1": Replicas("HEALTHY", 1, True)}, ask)
        asking = [asyncio.create_task(observer.acknowledgements()) for _ in range(3)]
        for _ in range(2):
            await asyncio.wait_for(asked.acquire(), 10)
        answer.set()
        for answers in await asyncio.wait_for(asyncio.gather(*asking), 10):
            assert [each["application"] for each in answers].count("a--r1") == 1

    async def test_an_application_that_goes_while_it_is_asked_is_left_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(observing, "ANSWER_WITHIN_S", 10.0)
        seen = {"a--r1": Replicas("HEALTHY", 1, True)}
        asked, cancelled, answer = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def ask(handle: Any) -> Any:
            if handle == "a--r1":
                asked.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    cancelled.set()
            await answer.wait()
            return observing.time.monotonic(), [{"application": "ingress"}]

        observer = self.observer(monkeypatch, seen, ask)
        first = asyncio.create_task(observer.acknowledgements())
        await asyncio.wait_for(asked.wait(), 10)
        seen.clear()
        second = asyncio.create_task(observer.acknowledgements())
        await asyncio.wait_for(cancelled.wait(), 10)
        answer.set()
        for answers in await asyncio.wait_for(asyncio.gather(first, second), 10):
            assert [each["application"] for each in answers] == ["ingress"]
