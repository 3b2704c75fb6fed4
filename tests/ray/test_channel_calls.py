"""Calls over channels on real Ray: they are what is taken, and nobody can tell them from calls over Serve's handles."""

from __future__ import annotations

import re
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
    "large": {"node": "node", "method": "large"},
    "no-method": {"node": "node", "method": "nothing"},
    "hold": {"node": "narrow", "method": "hold"},
    "way": {"node": "narrow", "method": "way"},
    "catch": {"node": "holder", "method": "catch"},
    "ask-fail": {"node": "holder", "method": "ask", "args": ["fail", {"$input": ["x"]}]},
    "ask-wait": {"node": "holder", "method": "ask", "args": ["wait", {"$input": ["x"]}]},
}
GRAPH = {
    "steps": [
        *DIAMOND["steps"],
        *({"name": name, "args": [{"$input": ["x"]}], **step} for name, step in STEPS.items() if step is not None),
        {"name": "size", "node": "node", "method": "size", "args": [{"$step": "large"}]},
        {"name": "made", "node": "here", "args": [{"$input": ["x"]}]},
        {"name": "give", "node": "node", "method": "size", "args": [{"$step": "made"}]},
        {
            "name": "choice",
            "switch": {
                "on": {"$input": ["do"]},
                "cases": [
                    {"when": name, "then": {"$step": "sum" if name == "diamond" else name}}
                    for name in [*STEPS, "size", "give"]
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


class Ways:
    """One set of nodes behind two ingresses: at ``/`` one that uses channels, at ``/handles`` one that uses handles."""

    def __init__(self, serve):
        self.serve = serve
        self.asked, self.told = 0, Counter()
        self.ingresses = ["ingress", "ingress-of-handles"]
        by_handle = serve.ingress(
            GRAPH,
            {**NODES, "holder": "r2"},
            path=CODE,
            route="/handles",
            timeout_s=60,
            ray_actor_options={"num_cpus": 0.01, "runtime_env": {"env_vars": WITHOUT}},
        )
        by_handle["name"] = self.ingresses[1]
        model, held = "runtime_models:Model", [{"revision": "r1", "weight": 100}]
        holder = {"path": CODE, "routes": {"node": held}, "kwargs": {"others": []}}
        serve.deploy(
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
                ray_actor_options={"num_cpus": 0.01, "runtime_env": {"env_vars": WITHOUT}},
                **holder,
            ),
            # The attempt is not that of other tests: their ingress, which has counted already, is not to be taken over.
            serve.ingress(GRAPH, NODES, path=CODE, timeout_s=60, attempt=1),
            by_handle,
        )

    def ask(self, way, do, x=None, **options):
        return self.serve.ask({"do": do, "x": x}, "/" if way == "channel" else "/handles", **options)

    def diamonds(self, way, count):
        """The calls of nodes of so many diamonds by the way that they took.

        Only what was asked since the start says when all is told.
        """
        with ThreadPoolExecutor(8) as pool:
            answers = [*pool.map(lambda x: self.ask(way, "diamond", x).json, range(count))]
        assert answers == [3 * x for x in range(count)]
        before, self.asked = self.told, self.asked + 3 * count
        self.told = self.serve.wait_for(
            f"{self.asked} calls in all to be told",
            lambda: (
                (found := self.serve.metric("servepipe_node_calls_total", by="way", of=self.ingresses)).total()
                >= self.asked
                and found
            ),
        )
        assert self.told.total() == self.asked
        return self.told - before


@pytest.fixture(scope="module")
def ways(serve_session):
    return Ways(serve_session)


def test_the_nodes_of_a_diamond_are_called_over_channels(ways):
    """Only a cold start uses handles."""
    ways.serve.wait_for("the channels to be open", lambda: ways.diamonds("channel", 1) == {"channel": 3})
    assert ways.diamonds("channel", 100) == {"channel": 300}
    assert ways.diamonds("handle", 1) == {"off": 3}


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
def test_the_outcome_does_not_tell_the_way(ways, do, x):
    by_channel, by_handle = (ways.ask(way, do, x, headers={"x-request-id": "same"}) for way in ("channel", "handle"))
    assert (by_channel.status, by_channel.body) == (by_handle.status, by_handle.body)
    assert by_channel.status == (200 if x == "fine" or do in ("catch", "large", "size") else 500)


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


@pytest.mark.parametrize("way", ["channel", "handle"])
def test_a_step_that_takes_too_long_is_cancelled(ways, way, tmp_path):
    answer = ways.ask(way, "wait-briefly", str(tmp_path))
    error = answer.json["error"]
    assert (answer.status, error["code"], error["step"], error["node"]) == (504, "Timeout", "wait-briefly", "node")
    if (tmp_path / "began").exists():
        ways.serve.wait_for("the node to be cancelled", (tmp_path / "cancelled").exists)


@pytest.mark.parametrize("do", ["wait", "ask-wait"])
@pytest.mark.parametrize("way", ["channel", "handle"])
def test_a_caller_that_leaves_cancels_the_call(ways, way, do, tmp_path):
    """Also one that a node made in turn."""
    connection = ways.serve.open({"do": do, "x": str(tmp_path)}, "/" if way == "channel" else "/handles")
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
