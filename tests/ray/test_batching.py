"""Batched methods on real Ray: called over channels, over Serve's handles, and inside the ingress."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

CODE = Path(__file__).parent / "code"
KERNEL = "batch_models:Kernel"
METHODS = ("double", "double_later", "twice", "told", "ongoing", "pid")
STEPS = {
    **{f"kernel-{method}": ("kernel", method) for method in METHODS},
    **{f"local-{method}": ("local", method) for method in METHODS},
    "elastic-double": ("elastic", "double"),
    "elastic-told": ("elastic", "told"),
}
GRAPH = {
    "steps": [
        *(
            {"name": name.replace("_", "-"), "node": node, "method": method, "args": [{"$input": ["x"]}]}
            for name, (node, method) in STEPS.items()
        ),
        {
            "name": "hurried",
            "node": "kernel",
            "method": "double",
            "args": [{"$input": ["x"]}],
            "timeout": "1s",
        },
        {
            "name": "choice",
            "switch": {
                "on": {"$input": ["do"]},
                "cases": [
                    {"when": name, "then": {"$step": name}}
                    for name in (*(step.replace("_", "-") for step in STEPS), "hurried")
                ],
            },
        },
    ],
    "output": {"$step": "choice"},
}
INLINE = {"import": KERNEL, "args": [], "kwargs": {}, "maxOngoingRequests": 16}
NODES = {"kernel": "r1", "elastic": "r1", "local": [{"revision": "i1", "weight": 100, "inline": INLINE}]}
SCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 4,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 1,
    "look_back_period_s": 1,
    "metrics_interval_s": 0.5,
}


class Batching:
    """The same nodes behind two ingresses: at ``/`` one that uses channels, at ``/handles`` one that uses handles."""

    def __init__(self, serve):
        self.serve = serve
        by_handle = serve.ingress(
            GRAPH,
            NODES,
            path=CODE,
            route="/handles",
            timeout_s=120,
            ray_actor_options={"num_cpus": 0.01, "runtime_env": {"env_vars": {"SERVEPIPE_CHANNEL": "off"}}},
        )
        by_handle["name"] = "handles"
        self.kernel = serve.node("kernel", KERNEL, path=CODE, max_ongoing_requests=16)
        self._others = [
            serve.node("elastic", KERNEL, path=CODE, max_ongoing_requests=16, autoscaling_config=SCALING),
            serve.ingress(GRAPH, NODES, path=CODE, timeout_s=120),
            by_handle,
        ]
        self.elastic_calls = 0
        serve.deploy(self.kernel, *self._others)
        serve.wait_for("channels to be open", self._uses_channels)

    def configure(self, **user_config):
        """A new ``userConfig`` of the kernel, in force when this returns."""
        self.kernel["deployments"][0]["user_config"]["userConfig"] = user_config
        self.serve.put(self.kernel, *self._others)
        self.serve.wait_running(*(application["name"] for application in (self.kernel, *self._others)))

    def _uses_channels(self):
        before = self.ways()
        self.ask("elastic-told", "nobody")
        self.elastic_calls += 1
        self.ask("kernel-told", "nobody")
        after = self.serve.wait_for("calls to be told", lambda: (now := self.ways()).total() > before.total() and now)
        return after["channel"] >= before["channel"] + 2

    def ways(self):
        """How many calls of nodes went which way until now."""
        return self.serve.metric("servepipe_node_calls_total", by="way")

    def ask(self, do, x, way="channel", **options):
        path = "/handles" if way == "handle" else "/"
        return self.serve.ask({"do": do.replace("_", "-"), "x": x}, path, timeout=130, **options)

    def open(self, do, x, way):
        path = "/handles" if way == "handle" else "/"
        return self.serve.open({"do": do.replace("_", "-"), "x": x}, path)

    def told(self, node, test):
        """The batches with items of a test."""
        return self.ask(f"{node}-told", test).json

    def wait_ongoing(self, count):
        """Until Serve counts so many requests in the kernel's replica."""
        self.serve.wait_for(f"{count} requests to be counted", lambda: self.ask("kernel-ongoing", 0).json == count)

    def many(self, do, items, way="channel"):
        with ThreadPoolExecutor(len(items)) as pool:
            return [*pool.map(lambda item: self.ask(do, item, way), items)]


@pytest.fixture(scope="module")
def batching(serve_session):
    return Batching(serve_session)


WAYS = [("channel", "kernel"), ("handle", "kernel"), ("inline", "local")]


@pytest.mark.parametrize("method", ["double", "double_later", "twice"])
@pytest.mark.parametrize(("way", "node"), WAYS)
def test_batches_form_under_load(batching, way, node, method, tmp_path):
    test = str(tmp_path)
    for start in (0, 100, 200):
        answers = batching.many(f"{node}-{method}", [{"test": test, "x": start + n} for n in range(16)], way)
        assert [answer.json for answer in answers] == [(4 if method == "twice" else 2) * (start + n) for n in range(16)]
    batches = batching.told(node, test)
    assert sum(map(len, batches)) == (96 if method == "twice" else 48)
    assert 2 <= max(map(len, batches)) <= 8
    assert len(batches) < sum(map(len, batches)) * 2 / 3


@pytest.mark.parametrize("method", ["double", "double_later"])
@pytest.mark.parametrize(("way", "node"), WAYS)
def test_a_bad_item_fails_alone(batching, way, node, method, tmp_path):
    test, xs = str(tmp_path), [0, 1, "x", 3, 4, 5]
    gate = tmp_path / "gate"
    gate.mkdir()
    with ThreadPoolExecutor(7) as pool:
        first = pool.submit(batching.ask, f"{node}-{method}", {"test": test, "x": 9, "folder": str(gate)}, way)
        batching.serve.wait_for("the first batch", (gate / "began-9").exists)
        calls = [pool.submit(batching.ask, f"{node}-{method}", {"test": test, "x": x}, way) for x in xs]
        if node == "kernel":
            batching.wait_ongoing(7)
        (gate / "go").touch()
        answers = [call.result() for call in calls]
        assert first.result().json == 18
    assert [answer.json for answer, x in zip(answers, xs, strict=True) if x != "x"] == [0, 2, 6, 8, 10]
    error = answers[2].json["error"]
    assert (answers[2].status, error["node"]) == (500, node)
    assert "ValueError: bad item x" in error["message"]
    if node == "kernel":
        assert sorted(map(len, batching.told(node, test))) == [1, 6]


@pytest.mark.parametrize("method", ["double", "double_later"])
@pytest.mark.parametrize("way", ["channel", "handle"])
def test_a_caller_that_leaves_hurts_nobody(batching, way, method, tmp_path):
    test, do = str(tmp_path), f"kernel-{method}"
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batching.ask, do, {"test": test, "x": 0, "folder": str(one)}, way)
        batching.serve.wait_for("the first batch", (one / "began-0").exists)
        leaves_late = batching.open(do, {"test": test, "x": 1, "folder": str(other)}, way)
        leaves_early = batching.open(do, {"test": test, "x": 2, "folder": str(other)}, way)
        stays = pool.submit(batching.ask, do, {"test": test, "x": 3, "folder": str(other)}, way)
        batching.wait_ongoing(4)
        leaves_early.close()
        batching.wait_ongoing(3)
        (one / "go").touch()
        assert first.result().json == 0
        batching.serve.wait_for("the second batch", (other / "began-1").exists)
        leaves_late.close()
        batching.wait_ongoing(1)
        (other / "go").touch()
        assert (stays.result().status, stays.result().json) == (200, 6)
    assert [sorted(items) for items in batching.told("kernel", test)] == [[0], [1, 3]]
    assert not (other / "cancelled").exists()


@pytest.mark.parametrize("way", ["channel", "handle"])
def test_a_batch_that_all_have_left_is_cancelled(batching, way, tmp_path):
    connections = []
    for x in range(2):
        item = {"test": str(tmp_path), "x": x, "folder": str(tmp_path)}
        connections.append(batching.open("kernel-double_later", item, way))
    batching.serve.wait_for("a batch to begin", lambda: [*tmp_path.glob("began-*")])
    for connection in connections:
        connection.close()
    batching.serve.wait_for("it to be cancelled", (tmp_path / "cancelled").exists)
    batching.wait_ongoing(0)
    assert batching.ask("kernel-double_later", {"test": "", "x": 7}, way).json == 14


@pytest.mark.parametrize("way", ["channel", "handle"])
def test_an_item_that_is_too_late_is_not_computed(batching, way, tmp_path):
    test = str(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batching.ask, "kernel-double", {"test": test, "x": 0, "folder": test}, way)
        batching.serve.wait_for("the first batch", (tmp_path / "began-0").exists)
        patient = pool.submit(batching.ask, "kernel-double", {"test": test, "x": 1}, way)
        late = batching.ask("hurried", {"test": test, "x": 2}, way)
        batching.wait_ongoing(2)
        (tmp_path / "go").touch()
        assert (first.result().json, patient.result().json) == (0, 2)
    error = late.json["error"]
    assert (late.status, error["code"], error["step"], error["node"]) == (504, "Timeout", "hurried", "kernel")
    assert batching.told("kernel", test) == [[0], [1]]


def test_items_are_counted_singly(batching, tmp_path):
    """In Serve's metrics and for autoscaling: one batch of many items asks for another replica."""
    serve = batching.serve
    name = "elastic--r1"

    def processed():
        return serve.metric("serve_deployment_request_counter_total", by="application")[name]

    before = batching.elastic_calls
    serve.wait_for("all calls before these to be counted", lambda: processed() == before)
    with ThreadPoolExecutor(9) as pool:
        calls = [
            pool.submit(batching.ask, "elastic-double", {"test": "count", "x": x, "folder": str(tmp_path)})
            for x in range(9)
        ]
        serve.wait_for("a batch to begin", lambda: [*tmp_path.glob("began-*")])
        serve.wait_for(
            "nine requests to be counted",
            lambda: serve.metric("serve_replica_processing_queries", by="application")[name] == 9,
        )
        serve.wait_for("a second replica", lambda: len(serve.replicas(name)) == 2)
        (tmp_path / "go").touch()
        assert [call.result().json for call in calls] == [2 * x for x in range(9)]
    serve.wait_for("nine more calls to have been counted", lambda: processed() >= before + 9)
    assert processed() == before + 9


def test_the_size_is_changed_by_the_user_config_in_place(batching, tmp_path):
    replica = batching.serve.replicas("kernel--r1")
    batching.configure(max_size=2)
    for start in (0, 100):
        batching.many("kernel-double", [{"test": str(tmp_path), "x": start + n} for n in range(8)])
    assert max(map(len, batching.told("kernel", str(tmp_path)))) == 2
    batching.configure(max_size=8)
    assert batching.serve.replicas("kernel--r1") == replica


def test_the_sizes_of_batches_are_told(batching):
    """Also of a node inside the ingress."""
    for node in ("kernel", "local"):
        batching.many(f"{node}-double", [{"test": "sizes", "x": n} for n in range(8)])

    def counted():
        count, items = (batching.serve.metric(f"servepipe_batch_size_{what}", by="node") for what in ("count", "sum"))
        return all(1 < count[node] < items[node] for node in ("kernel", "local")) and (count, items)

    batching.serve.wait_for("batches of more than one item in the metric", counted)


@pytest.mark.parametrize("way", ["channel", "handle"])
def test_items_of_a_killed_replica_are_computed_by_another(batching, way, tmp_path):
    """Those in the batch that ran, and those that waited for the next one."""
    with ThreadPoolExecutor(4) as pool:

        def hold(x):
            item = {"test": str(tmp_path), "x": x, "folder": str(tmp_path)}
            return pool.submit(batching.ask, "kernel-double", item, way)

        calls = [hold(0)]
        batching.serve.wait_for("the first batch", (tmp_path / "began-0").exists)
        calls += [hold(x) for x in (1, 2, 3)]
        batching.wait_ongoing(4)
        os.kill(batching.ask("kernel-pid", 0).json, signal.SIGKILL)
        (tmp_path / "go").touch()
        answers = [call.result() for call in calls]
    assert [(answer.status, answer.json) for answer in answers] == [(200, 0), (200, 2), (200, 4), (200, 6)]
    again = batching.told("kernel", str(tmp_path))  # by the replica in its place
    assert sorted(x for items in again for x in items) == [0, 1, 2, 3]


def test_calls_took_the_ways_that_they_should(batching):
    batching.serve.wait_for("calls by both ways", lambda: all(batching.ways()[way] > 100 for way in ("channel", "off")))
