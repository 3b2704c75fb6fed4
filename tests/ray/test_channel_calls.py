"""Calls over channels on real Ray: they are what is taken, and nobody can tell them from calls over Serve's handles."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from servepipe.runtime.flags import MAX_MESSAGE_BYTES

pytestmark = pytest.mark.ray

CODE = Path(__file__).parent / "code"
DIAMOND = {
    "steps": [
        {"name": "one", "node": "m1", "method": "forward", "args": [{"$input": ["x"]}]},
        {"name": "two", "node": "m2", "method": "forward", "args": [{"$input": ["x"]}]},
        {"name": "sum", "node": "ensemble", "args": [{"$step": "one"}, {"$step": "two"}, 0]},
    ],
    "output": {"$step": "sum"},
}
STEPS = {
    "diamond": None,
    "tell": {"node": "node", "method": "tell"},
    "fail": {"node": "node", "method": "fail"},
    "fail-async": {"node": "node", "method": "fail_async"},
    "wait": {"node": "node", "method": "wait"},
    "wait-briefly": {"node": "node", "method": "wait", "timeout": "500ms"},
    "after-wait": {"node": "node", "method": "after_wait"},
    "large": {"node": "node", "method": "large"},
    "no-method": {"node": "node", "method": "nothing"},
    "hold": {"node": "narrow", "method": "hold"},
    "way": {"node": "narrow", "method": "way"},
    "way-briefly": {"node": "narrow", "method": "way", "timeout": "500ms"},
    "block-briefly": {"node": "narrow", "method": "block", "timeout": "500ms"},
    "catch": {"node": "holder", "method": "catch"},
    "ask-fail": {"node": "holder", "method": "ask", "args": ["fail", {"$input": ["x"]}]},
    "ask-wait": {"node": "holder", "method": "ask", "args": ["wait", {"$input": ["x"]}]},
    "ask-sync-wait": {"node": "holder", "method": "ask_sync", "args": ["wait", {"$input": ["x"]}]},
}
GRAPH = {
    "steps": [
        *DIAMOND["steps"],
        *({"name": name, "args": [{"$input": ["x"]}], **step} for name, step in STEPS.items() if step is not None),
        {"name": "size", "node": "node", "method": "size", "args": [{"$step": "large"}]},
        {"name": "race", "first": [{"$step": "wait"}, {"$step": "after-wait"}]},
        {"name": "made", "node": "here", "args": [{"$input": ["x"]}]},
        {"name": "give", "node": "node", "method": "size", "args": [{"$step": "made"}]},
        {
            "name": "choice",
            "switch": {
                "on": {"$input": ["do"]},
                "cases": [
                    {"when": name, "then": {"$step": "sum" if name == "diamond" else name}}
                    for name in [*STEPS, "size", "race", "give"]
                ],
            },
        },
    ],
    "output": {"$step": "choice"},
}
HERE = {"import": "channel_models:zeros", "args": [], "kwargs": {}}
NODES = {
    **dict.fromkeys(("m1", "m2", "ensemble", "node", "narrow", "holder"), "r1"),
    "here": [{"revision": "i1", "weight": 100, "inline": HERE}],
}
WITHOUT = {"SERVEPIPE_CHANNEL": "off"}
# Spans go to a file of Serve's, of every request.
TRACED = {
    "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "ray.serve._private.tracing_utils:default_tracing_exporter",
    "RAY_SERVE_TRACING_SAMPLING_RATIO": "1.0",
}
ROUTES = {"channel": "/", "handle": "/handles", "traced": "/traced"}
INGRESSES = {"channel": "ingress", "handle": "ingress-of-handles", "traced": "ingress-traced"}
HOLDERS = {"channel": "holder--r1", "handle": "holder--r2", "traced": "holder--r1"}
CALLS = {"diamond": 3, "size": 2, "race": 2}
"""Of nodes by the ingress, where it is more than one. Those of the holder are one each."""
LIMIT_S = 60


class Ways:
    """One set of nodes behind three ingresses: at ``/`` one that uses channels, at ``/handles`` one that uses handles,
    as does its holder, and at ``/traced`` one whose requests Serve traces.

    Attributes:
        asked: How many calls of nodes each application was to make until now.
    """

    def __init__(self, serve):
        self.serve = serve
        self.asked = Counter()
        self._lock = threading.Lock()
        model, held = "runtime_models:Model", [{"revision": "r1", "weight": 100}]
        holder = {"path": CODE, "routes": {"node": held}, "kwargs": {"others": []}}
        applications = [
            serve.node("m1", model, 1, path=CODE),
            serve.node("m2", model, 2, path=CODE),
            serve.node("ensemble", "runtime_models:ensemble", path=CODE),
            serve.node("node", "runtime_models:Node", "first", path=CODE),
            serve.node("narrow", "channel_models:Worker", path=CODE, max_ongoing_requests=1, max_queued_requests=1),
            serve.node("holder", "runtime_models:Holder", {"$node": "node"}, **holder),
            serve.node(
                "holder",
                "runtime_models:Holder",
                {"$node": "node"},
                revision="r2",
                **environment(WITHOUT),
                **holder,
            ),
            # The attempt is not that of other tests: their ingress, which has counted already, is not to be taken over.
            serve.ingress(GRAPH, NODES, path=CODE, timeout_s=LIMIT_S, attempt=1),
            ingress_at(serve, "handle", {**NODES, "holder": "r2"}, WITHOUT),
            ingress_at(serve, "traced", NODES, TRACED),
        ]
        self.applications = {application["name"]: application for application in applications}
        serve.deploy(*applications)

    def ask(self, way, do, x=None, **options):
        self._count(way, do)
        return self.serve.ask({"do": do, "x": x}, ROUTES[way], **options)

    def open(self, way, do, x):
        """A connection on which this was asked, and nobody waits for the answer."""
        self._count(way, do)
        return self.serve.open({"do": do, "x": x}, ROUTES[way])

    def _count(self, way, do):
        with self._lock:
            self.asked[INGRESSES[way]] += CALLS.get(do, 1)
            if STEPS.get(do) and STEPS[do]["node"] == "holder":
                self.asked[HOLDERS[way]] += 1

    def told(self, *applications):
        """By application which way its calls took until now, once all that were asked for are told."""

        def found():
            told = {name: self.serve.metric("servepipe_node_calls_total", by="way", of=[name]) for name in applications}
            return all(told[name].total() >= self.asked[name] for name in applications) and told

        return self.serve.wait_for(f"all of {self.asked} to be told", found)

    @contextlib.contextmanager
    def watched(self, *applications):
        """What is asked for inside, and which way it took: two dicts by application, filled at the end."""
        asked, took = {}, {}
        asked_before, told_before = self.asked.copy(), self.told(*applications)
        yield asked, took
        told = self.told(*applications)
        asked |= {name: self.asked[name] - asked_before[name] for name in applications}
        took |= {name: told[name] - told_before[name] for name in applications}

    def diamonds(self, way, count):
        """Which way the calls of so many diamonds took."""
        with self.watched(INGRESSES[way]) as (_, took), ThreadPoolExecutor(8) as pool:
            answers = [*pool.map(lambda x: self.ask(way, "diamond", x).json, range(count))]
        assert answers == [3 * x for x in range(count)]
        return took[INGRESSES[way]]

    @contextlib.contextmanager
    def limit(self, way, seconds):
        """Requests may take so long and no longer."""
        config = self.applications[INGRESSES[way]]["deployments"][0]["user_config"]
        for limit in (seconds, LIMIT_S):
            config.update(requestTimeoutSeconds=limit, table=f"{config['table']}+")
            self.serve.put(*self.applications.values())
            self.serve.wait_running(*self.applications)
            if limit == seconds:
                yield


def environment(variables):
    """Options of a deployment: what its processes find in their environment."""
    return {"ray_actor_options": {"num_cpus": 0.01, "runtime_env": {"env_vars": variables}}}


def ingress_at(serve, way, nodes, variables):
    """Another ingress than the one at ``/``."""
    application = serve.ingress(GRAPH, nodes, path=CODE, route=ROUTES[way], timeout_s=LIMIT_S, **environment(variables))
    application["name"] = INGRESSES[way]
    return application


@pytest.fixture(scope="module")
def ways(serve_session):
    return Ways(serve_session)


def test_the_nodes_of_a_diamond_are_called_over_channels(ways):
    """Only a cold start uses handles."""
    ways.serve.wait_for("the channels to be open", lambda: ways.diamonds("channel", 1) == {"channel": 3})
    assert ways.diamonds("channel", 100) == {"channel": 300}
    assert ways.diamonds("handle", 1) == {"off": 3}


def test_the_calls_of_a_traced_request_go_over_handles(ways):
    """Although there are channels: those do not carry the trace along."""
    ways.serve.wait_for("the channels to be open", lambda: ways.diamonds("traced", 1) == {"traced": 3})
    assert ways.ask("traced", "way").json == "handle"
    assert ways.diamonds("traced", 10) == {"traced": 30}


CALLERS = ["ingress", "holder--r1", "ingress-of-handles", "holder--r2"]


@pytest.fixture(scope="module")
def table(ways):
    """What the calls of the cases below took, from when a cold start is over: see `Ways.watched`."""

    def are_open():
        with ways.watched(*CALLERS[:2]) as (asked, took):
            assert [ways.ask("channel", do, "fine").json for do in ("fail", "ask-fail")] == ["fine", "fine"]
        return all(took[name] == {"channel": asked[name]} for name in asked)

    ways.serve.wait_for("the channels of the ingress and of the holder to be open", are_open)
    with contextlib.ExitStack() as stack:
        asked, took = stack.enter_context(ways.watched(*CALLERS))

        def end():
            stack.close()
            return asked, took

        yield end


HOWS = ["fine", "value", "own", "picky", "sticky", "mute", "exit", "stop", "cancelled", "stubborn", "generator"]
CASES = [
    *(("fail", how) for how in HOWS),
    *(("fail-async", how) for how in HOWS),
    *(("ask-fail", how) for how in HOWS),
    ("catch", "value"),
    ("no-method", 1),
    ("large", 300_000),
    ("size", 9_000_000),
]


@pytest.mark.parametrize(("do", "x"), CASES)
def test_the_outcome_does_not_tell_the_way(ways, table, do, x):
    by_channel, by_handle = (ways.ask(way, do, x, headers={"x-request-id": "same"}) for way in ("channel", "handle"))
    assert (by_channel.status, by_channel.body) == (by_handle.status, by_handle.body)
    assert by_channel.status == (200 if x == "fine" or do in ("catch", "large", "size") else 500)


def test_the_ways_did_differ_when_their_outcomes_did_not(ways, table):
    """Calls of the node by the ingress, and those that another node made by its handle of it."""
    for way in ("channel", "handle"):
        assert [ways.ask(way, do, "fine").json for do in ("fail", "ask-fail")] == ["fine", "fine"]
    asked, took = table()
    assert all(asked[name] > 0 for name in CALLERS)
    assert took == {
        name: {way: asked[name]} for name, way in zip(CALLERS, ["channel", "channel", "off", "off"], strict=True)
    }


def in_time(ways, way, do, folder):
    """The answer to a call that was begun, and was not over when its time was."""

    def attempt():
        answer = ways.ask(way, do, str(folder))
        assert answer.status == 504, answer
        return (folder / "began").exists() and answer

    return ways.serve.wait_for("the node to begin before the time is up", attempt)


@pytest.mark.parametrize("way", ["channel", "handle"])
def test_a_step_that_takes_too_long_is_cancelled(ways, way, tmp_path):
    error = in_time(ways, way, "wait-briefly", tmp_path).json["error"]
    assert (error["code"], error["step"], error["node"]) == ("Timeout", "wait-briefly", "node")
    ways.serve.wait_for("the node to be cancelled", (tmp_path / "cancelled").exists)


@pytest.mark.parametrize("way", ["channel", "handle"])
def test_what_a_request_waits_for_is_cancelled_when_its_time_is_up(ways, way, tmp_path):
    with ways.limit(way, 1):
        error = in_time(ways, way, "wait", tmp_path).json["error"]
    assert (error["code"], error["step"], error["node"]) == ("Timeout", "wait", "node")
    ways.serve.wait_for("the node to be cancelled", (tmp_path / "cancelled").exists)


@pytest.mark.parametrize("way", ["channel", "handle"])
def test_the_loser_of_a_race_is_cancelled(ways, way, tmp_path):
    answer = ways.ask(way, "race", str(tmp_path))
    assert (answer.status, answer.json) == (200, "after")
    ways.serve.wait_for("the loser to be cancelled", (tmp_path / "cancelled").exists)


@pytest.mark.parametrize("way", ["channel", "handle"])
def test_a_sync_method_goes_on_without_its_caller_and_keeps_its_place(ways, way, tmp_path):
    """Nothing can stop a thread: the caller is not held up by it, but the next call of the node is."""
    try:
        error = in_time(ways, way, "block-briefly", tmp_path).json["error"]
        assert (error["code"], error["step"], error["node"]) == ("Timeout", "block-briefly", "narrow")
        error = ways.ask(way, "way-briefly").json["error"]
        assert (error["code"], error["step"], error["node"]) == ("Timeout", "way-briefly", "narrow")
        assert not (tmp_path / "ended").exists()
    finally:
        (tmp_path / "go").touch()
    answer = ways.ask(way, "way")
    assert (answer.status, answer.json) == (200, way)
    assert (tmp_path / "ended").exists()


@pytest.mark.parametrize("do", ["wait", "ask-wait", "ask-sync-wait"])
@pytest.mark.parametrize("way", ["channel", "handle"])
def test_a_caller_that_leaves_cancels_the_call(ways, way, do, tmp_path):
    """Also one that a node made in turn, from a sync method too."""
    connection = ways.open(way, do, str(tmp_path))
    ways.serve.wait_for("the node to begin", (tmp_path / "began").exists)
    connection.close()
    ways.serve.wait_for("the call to be cancelled", (tmp_path / "cancelled").exists)
    if way == "channel":  # with calls over handles under way, Serve fails to count the request
        ways.serve.wait_for("Serve to count the request", lambda: errors(ways.serve, "ingress")["CancelledError"])


def errors(serve, application):
    return serve.metric("serve_deployment_error_counter_total", by="exception_type", of=[application])


@pytest.mark.parametrize("way", ["channel", "handle"])
def test_a_node_that_is_full_says_so(ways, way, tmp_path):
    """One runs, one waits, the others are refused at once, and nothing runs twice."""
    ways.serve.wait_for("the way to the node to be open", lambda: ways.ask(way, "way").json == way)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(ways.ask, way, "hold", {"folder": str(tmp_path), "key": n}) for n in range(8)]
        ways.serve.wait_for("calls to be refused", lambda: sum(call.done() for call in calls) >= 6)
        assert len([*tmp_path.iterdir()]) == 1
        (tmp_path / "go").touch()
        answers = [call.result() for call in calls]
    refused = [answer for answer in answers if answer.status != 200]
    assert {(answer.status, answer.json["error"]["code"]) for answer in refused} == {(503, "Overloaded")}
    keys = [path.name.partition(".")[0] for path in tmp_path.glob("*.*.*")]
    assert len(keys) == len({*keys}) == 8 - len(refused)
    # To Serve a call waits also while it is on its way to a replica that is free.
    assert len(refused) == 6 if way == "channel" else len(refused) in (6, 7)


@pytest.mark.parametrize(("do", "said"), [("give", "was not called: the call"), ("size", "was called, but the answer")])
def test_what_only_a_channel_takes_is_an_error_over_a_handle(ways, do, said):
    """The arguments, and the answer. What Serve says itself names neither the node nor what to do."""
    size = MAX_MESSAGE_BYTES + 1
    assert ways.ask("channel", do, size).json == size
    answer = ways.ask("handle", do, size)
    error = answer.json["error"]
    step = "give" if do == "give" else "large"
    assert (answer.status, error["code"], error["step"], error["node"]) == (500, "ValueTooLarge", step, "node")
    assert re.match(
        f"node node {said} is a value of 268,43.,... bytes, more than the 268,435,456 that Serve's handle takes. "
        "Over a channel it may have 1,073,741,824; there was none to use, ",
        error["message"],
    )
