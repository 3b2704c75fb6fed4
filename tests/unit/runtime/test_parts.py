"""The parts of the runtime that need no Ray: routing, transport of exceptions, instances of nodes, flags."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import pickle
import threading
from collections import Counter
from pathlib import Path

import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from servepipe.errors import NodeError, NotReadyError, RunError, SignatureError
from servepipe.graph.calls import NodeHandle
from servepipe.graph.failures import failed_step, mark
from servepipe.graph.instance import NodeInstance
from servepipe.graph.ir import Call, DictOf, Graph, InputRef, ListOf, StepRef
from servepipe.runtime.flags import CALLBACKS, PLACES, serve_environment
from servepipe.runtime.inline import InlineNodes
from servepipe.runtime.interface import Interface
from servepipe.runtime.routing import InFlight, Places, Routes, application_name
from servepipe.runtime.transport import NodeFailure, pack, unpack


def route(revision, weight):
    return {"revision": revision, "weight": weight}


class TestRouting:
    def test_one_revision_is_always_drawn_and_shared(self):
        routes = Routes({"m1": [route("a", 100)], "m2": [route("b", 0), route("c", 100)]})
        assert routes.draw() is routes.draw()
        assert routes.draw().revisions == {"m1": "a", "m2": "c"}

    def test_weights_are_kept(self):
        routes = Routes({"m1": [route("a", 90), route("b", 10)], "m2": [route("c", 100)]})
        drawn = Counter(routes.draw().revisions["m1"] for _ in range(4000))
        assert 200 < drawn["b"] < 650  # 400 expected; 10 standard deviations
        assert {routes.draw().revisions["m2"] for _ in range(10)} == {"c"}

    def test_a_node_without_weight_is_not_routed(self):
        assert Routes({"m1": [route("a", 0)], "m2": []}).draw().revisions == {}

    def test_in_flight_requests_are_counted_by_application_across_tables(self):
        flying = InFlight()
        old, new = Routes({"m1": [route("a", 100)]}), Routes({"m1": [route("b", 100)], "m2": [route("c", 100)]})
        for routes in (old, new, new):
            flying.begin(routes.draw())
        assert flying.by_application() == {"m1--a": 1, "m1--b": 2, "m2--c": 2}
        flying.end(new.draw())
        assert flying.by_application() == {"m1--a": 1, "m1--b": 1, "m2--c": 1}
        for routes in (new, old):
            flying.end(routes.draw())
        assert flying.by_application() == {}

    def test_an_application_is_named_after_node_and_revision(self):
        assert application_name("m1", "6f3a91c2") == "m1--6f3a91c2"


def inline(revision, weight):
    return {**route(revision, weight), "inline": {"import": "m:f"}}


class TestPlaces:
    def test_replicas_answer_for_dedicated_nodes_and_this_process_for_inline_ones(self):
        places = Places(
            {"m1": {"routes": [route("a", 100), route("b", 0)]}, "f": {"routes": [inline("c", 100)], "off": False}}
        )
        assert places.dedicated == {"m1--a", "m1--b"}
        assert places.dedicated_nodes == {"m1": [("a", 100), ("b", 0)]}
        assert places.inline == {"f--c": ("f", {"import": "m:f"})}
        assert places.inline_nodes == {"f": "f--c"}

    def test_a_node_whose_weight_lies_nowhere_is_asked_for_in_vain(self):
        places = Places({"new": {"routes": []}, "f": {"routes": [inline("a", 0)]}})
        assert places.dedicated_nodes == {"new": [], "f": []}
        assert places.inline_nodes == {}

    def test_a_node_at_zero_by_choice_is_not_asked_for(self):
        places = Places({"m1": {"routes": [route("a", 100)], "off": True}, "f": {"routes": [], "off": True}})
        assert places.off == {"m1", "f"}
        assert places.dedicated_nodes == {}
        assert places.dedicated == {"m1--a"}

    def test_on_its_way_into_the_process_a_node_is_where_its_weight_is(self):
        places = Places(
            {"f": {"routes": [route("a", 100), inline("b", 0)]}, "g": {"routes": [route("a", 0), inline("b", 100)]}}
        )
        assert places.dedicated_nodes == {"f": [("a", 100)]}
        assert places.inline_nodes == {"g": "g--b"}
        assert set(places.inline) == {"f--b", "g--b"}


class PickyError(ValueError):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


class ExitOnLoadError(Exception):
    def __reduce__(self):
        return exec, ("raise SystemExit",)


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenError(Exception):
    code: int


class TestTransport:
    def travel(self, error):
        return unpack(pickle.loads(pickle.dumps(pack(error))))

    def test_an_exception_arrives_as_itself_with_its_traceback_and_step(self):
        try:
            raise KeyError("user")
        except KeyError as raised:
            mark(raised, "score", "model", "predict")
            error = self.travel(raised)
        assert type(error) is KeyError
        assert failed_step(error) == ("score", "model", "predict")
        assert "raise KeyError" in str(error.__cause__)

    @pytest.mark.parametrize("error", [PickyError("a", "b"), ExitOnLoadError("no"), SystemExit(3)])
    def test_what_cannot_be_rebuilt_arrives_as_node_error(self, error):
        mark(error, "score", "model")
        told = self.travel(error)
        assert isinstance(told, NodeError)
        assert type(error).__name__ in told.type_name
        assert failed_step(told) == ("score", "model", "") or isinstance(error, SystemExit)

    def test_an_exception_that_cannot_be_changed_arrives_as_itself(self):
        error = self.travel(FrozenError(3))
        assert error == FrozenError(3)
        assert "FrozenError" in str(error.__cause__)

    def test_what_is_no_exception_when_unpickled_arrives_as_node_error(self):
        told = unpack(NodeFailure(pickle.dumps("text"), "a.B", "gone", "Traceback"))
        assert isinstance(told, NodeError)
        assert (told.type_name, told.message, told.remote_traceback) == ("a.B", "gone", "Traceback")

    def test_a_huge_exception_is_told_but_not_carried(self):
        told = self.travel(ValueError("x" * 3_000_000))
        assert isinstance(told, NodeError)
        assert len(told.message) == 100_000


class Node:
    def __init__(self, *args):
        self.args = args
        self.events = []

    def setup(self):
        self.events.append("setup")

    async def close(self):
        self.events.append("close")

    def reconfigure(self, config):
        self.events.append(config)

    def thread(self):
        return threading.get_ident()

    async def later(self, x):
        return x

    def __call__(self, x):
        return [*self.args, x]

    def _private(self):
        return "secret"

    def items(self):
        yield 1


class TestInstance:
    async def test_a_class_is_built_configured_called_and_closed(self):
        instance = NodeInstance("n", Node)
        await instance.build([1], {})
        await instance.reconfigure({"a": 1})
        assert await instance.call(None, [2], {}) == [1, 2]
        assert await instance.call("later", [3], {}) == 3
        await instance.check_health()
        assert instance._object.events == ["setup", {"a": 1}]
        await instance.close()
        assert instance._object.events[-1] == "close"

    @pytest.mark.parametrize("blocking", [None, True, False])
    async def test_sync_methods_leave_the_loop_unless_told_otherwise(self, blocking):
        instance = NodeInstance("n", Node, blocking=blocking)
        await instance.build([], {})
        on_loop = await instance.call("thread", [], {}) == threading.get_ident()
        assert on_loop is (blocking is False)
        await instance.close()

    @pytest.mark.parametrize("method", ["nothing", "_private", "args"])
    async def test_a_method_that_is_none_is_an_error(self, method):
        instance = NodeInstance("n", Node)
        await instance.build([], {})
        with pytest.raises(SignatureError, match="has no method"):
            await instance.call(method, [], {})
        await instance.close()

    async def test_a_generator_is_refused(self):
        instance = NodeInstance("n", Node)
        await instance.build([], {})
        with pytest.raises(TypeError, match=r"n\.items returned a generator"):
            await instance.call("items", [], {})
        await instance.close()

    async def test_a_user_config_that_nothing_takes_is_an_error(self):
        instance = NodeInstance("n", len)
        await instance.reconfigure(None)
        with pytest.raises(SignatureError, match="no reconfigure"):
            await instance.reconfigure({"a": 1})
        assert await instance.call(None, [[1, 2]], {}) == 2
        await instance.close()

    async def test_the_number_of_threads_changes_in_place(self):
        gate, inside = threading.Event(), threading.Semaphore(0)

        def wait():
            inside.release()
            gate.wait(30)

        instance = NodeInstance("n", wait, max_ongoing_requests=1)
        first = asyncio.create_task(instance.call(None, [], {}))
        await asyncio.to_thread(inside.acquire, timeout=30)
        instance.limit_calls(2)
        more = [asyncio.create_task(instance.call(None, [], {})) for _ in range(2)]
        for _ in more:
            assert await asyncio.to_thread(inside.acquire, timeout=30)
        gate.set()
        await asyncio.gather(first, *more)
        await instance.close()


class TestInline:
    def spec(self, target, **fields):
        return {"import": target, "args": [], "kwargs": {}, "code": None, **fields}

    async def test_a_revision_that_cannot_be_built_is_named_and_the_others_run(self):
        nodes = InlineNodes(lambda node: None)
        await nodes.ensure("a--1", "a", self.spec("operator:neg"))
        await nodes.ensure("b--1", "b", self.spec("no_such_module:f"))
        assert await nodes.call("a--1", "a", None, [5], {}) == -5
        assert "no_such_module" in nodes.errors["b--1"]
        with pytest.raises(NotReadyError, match="node b could not be built"):
            await nodes.call("b--1", "b", None, [5], {})
        assert sorted(nodes) == ["a--1", "b--1"]
        for application in nodes:
            await nodes.close(application)
        assert list(nodes) == []

    async def test_a_refused_user_config_is_named_and_the_old_one_stays(self):
        nodes = InlineNodes(lambda node: None)
        await nodes.ensure("a--1", "a", self.spec("operator:neg"))
        await nodes.ensure("a--1", "a", self.spec("operator:neg", userConfig={"x": 1}))
        assert "no reconfigure" in nodes.errors["a--1"]
        assert await nodes.call("a--1", "a", None, [5], {}) == -5
        await nodes.ensure("a--1", "a", self.spec("operator:neg", maxOngoingRequests=2))
        assert nodes.errors == {}
        await nodes.close("a--1")

    async def test_calls_of_an_inline_node_are_cancelled_with_it(self, monkeypatch):
        inside, ended = asyncio.Event(), asyncio.Event()

        class Inner:
            async def call(self, *_):
                try:
                    inside.set()
                    await asyncio.Event().wait()
                finally:
                    ended.set()

        class Holder:
            def __init__(self, inner):
                self.inner = inner

            async def __call__(self):
                self.call = self.inner.remote()  # and does not await it
                await asyncio.Event().wait()

        monkeypatch.setattr("servepipe.authoring.loader.load_object", lambda _: Holder)
        nodes = InlineNodes(lambda node: NodeHandle(node, Inner(), asyncio.get_running_loop()))
        await nodes.ensure("a--1", "a", self.spec("mod:Holder", args=[{"$node": "inner"}]))
        call = asyncio.create_task(nodes.call("a--1", "a", None, [], {}))
        await asyncio.wait_for(inside.wait(), 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(ended.wait(), 10)
        await nodes.close("a--1")


def test_the_step_behind_a_part_of_the_answer():
    output = DictOf((("a", StepRef("left")), ("b", ListOf((StepRef("right"), InputRef((0,)))))))
    interface = Interface.of(Graph((Call("left", "n"), Call("right", "n")), output))
    assert interface.answering_step(("a", 0, "x")) == "left"
    assert interface.answering_step(("b", 0)) == "right"
    assert [interface.answering_step(path) for path in [(), ("b",), ("b", 1), ("b", 7), ("c",)]] == [""] * 5


class TestFlags:
    def test_every_flag_is_text(self):
        flags = serve_environment(folder="/tmp/x", metrics_port=1, stats_port=2, replica_http_ports=range(3, 5))
        assert {type(value) for value in flags.values()} == {str}
        assert flags["RAY_SERVE_HAPROXY_SOCKET_PATH"] == "/tmp/x/admin.sock"
        assert flags["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] == "5"

    def test_all_that_a_machine_has_to_say_itself_are_files_and_ports(self):
        """Whatever is added for a folder or a port is kept from those who think of pods: see `PLACES`."""
        ports = {"replica_http_ports": range(3, 5), "replica_grpc_ports": range(5, 7)}
        flags = serve_environment(folder="/tmp/x", metrics_port=1, stats_port=2, **ports)
        own = flags.keys() - serve_environment().keys() - {"RAY_SERVE_HAPROXY_MAXCONN"}
        assert own <= PLACES
        assert not serve_environment().keys() & PLACES

    @pytest.mark.parametrize("haproxy", [True, False])
    def test_clean_upgrades_and_large_values_are_always_set(self, haproxy):
        flags = serve_environment(haproxy=haproxy)
        assert flags["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] == "2"
        assert int(flags["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"]) >= 104_857_600  # spec.ingress.maxBodyBytes

    def test_without_haproxy_nothing_of_it_is_set(self):
        assert not [name for name in serve_environment(haproxy=False, folder="/tmp/x") if "HAPROXY" in name]

    def test_on_a_machine_with_other_programs_haproxy_asks_for_few_files(self):
        """Ray before 2.60 asks for 50,037, which most laptops refuse; pods keep what their Ray has."""
        assert serve_environment(folder="/tmp/x")["RAY_SERVE_HAPROXY_MAXCONN"] == "4096"
        assert "RAY_SERVE_HAPROXY_MAXCONN" not in serve_environment()

    def test_haproxy_reads_what_its_clients_send_itself(self):
        """What the kernel moves for it (splice) hides that the client has gone."""
        name = "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"
        assert serve_environment()[name].split("\n    ") == ["leastconn", "no option splice-request"]
        assert name not in serve_environment(haproxy=False)

    def test_haproxy_tells_nobody_of_single_requests(self):
        flags = serve_environment()
        assert flags["RAY_SERVE_HAPROXY_METRICS_ENABLED"] == "0"
        # Serve goes on with " local0 info", which is a comment then.
        line = HAPROXY_CONFIG_TEMPLATE.split("log {{ config.log_target }}")[1].split("\n")[0]
        assert f"log {flags['RAY_SERVE_HAPROXY_LOG_TARGET']}{line}".split("\n") == [
            "log 127.0.0.1:514 local0 notice",
            "    # local0 info",
        ]

    @pytest.mark.parametrize("callback", CALLBACKS)
    def test_what_serve_calls_can_be_imported(self, callback):
        module, _, name = serve_environment()[callback].partition(":")
        assert callable(getattr(importlib.import_module(module), name))
        assert callback not in serve_environment(callback=False)
        dockerfile = Path(__file__).parents[3] / "Dockerfile"
        assert f"\nENV {callback}={CALLBACKS[callback]}\n" in dockerfile.read_text()

    def test_a_folder_too_long_for_sockets_is_refused(self):
        with pytest.raises(RunError, match="characters"):
            serve_environment(folder="/tmp/" + "x" * 40)
