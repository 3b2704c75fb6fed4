"""What Serve promises holds over channels, on real Ray: counts, scaling, lost replicas, upgrades, strangers."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import struct
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from channel_bed import RawPeer
from frame_tools import Frame

from servepipe.channel import handshake
from servepipe.channel.endpoints import Endpoint
from servepipe.channel.errors import Reason
from servepipe.channel.frames import Kind, parse_refusal
from servepipe.channel.values import load

pytestmark = pytest.mark.ray

CODE = Path(__file__).parent / "code"
STEPS = {
    "pid": ("worker", "pid"),
    "brief": ("worker", "brief"),
    "hold": ("worker", "hold"),
    "stretch": ("elastic", "hold"),
    "stretch-way": ("elastic", "way"),
    "lone-brief": ("lone", "brief"),
    "lone-hold": ("lone", "hold"),
    "lone-way": ("lone", "way"),
}
GRAPH = {
    "steps": [
        *(
            {"name": name, "node": node, "method": method, "args": [{"$input": ["x"]}]}
            for name, (node, method) in STEPS.items()
        ),
        {
            "name": "choice",
            "switch": {
                "on": {"$input": ["do"]},
                "cases": [{"when": name, "then": {"$step": name}} for name in STEPS],
            },
        },
    ],
    "output": {"$step": "choice"},
}
NODES = dict.fromkeys(("worker", "elastic", "lone"), "r1")
WORKER = "channel_models:Worker"
SCALING = {
    "min_replicas": 1,
    "max_replicas": 3,
    "target_ongoing_requests": 1,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 1,
    "look_back_period_s": 1,
    "metrics_interval_s": 0.5,
}


class Serving:
    """Two ingresses, at ``/`` one that uses channels, at ``/handles`` one that uses handles, before the same nodes."""

    def __init__(self, serve):
        self.serve = serve
        self.table = 0
        self.first_calls = 0
        by_handle = serve.ingress(
            GRAPH,
            NODES,
            route="/handles",
            timeout_s=120,
            ray_actor_options={"num_cpus": 0.01, "runtime_env": {"env_vars": {"SERVEPIPE_CHANNEL": "off"}}},
        )
        by_handle["name"] = "handles"
        applications = [
            serve.node("worker", WORKER, path=CODE, replicas=2, max_ongoing_requests=8),
            serve.node("elastic", WORKER, path=CODE, max_ongoing_requests=2, autoscaling_config=SCALING),
            serve.node("lone", WORKER, path=CODE, max_ongoing_requests=8),
            # The attempt is not that of other tests: their ingress, which has counted already, is not to be taken over.
            serve.ingress(GRAPH, NODES, timeout_s=120, attempt=2),
            by_handle,
        ]
        self.applications = {application["name"]: application for application in applications}
        serve.deploy(*applications)
        serve.wait_for("channels to both replicas", lambda: len(self.first(8)) == 2)
        self.warm_up()

    def ask(self, do, x=None, *, way="channel", **options):
        return self.serve.ask({"do": do, "x": x}, "/" if way == "channel" else "/handles", timeout=130, **options)

    def put(self):
        self.serve.put(*self.applications.values())
        self.serve.wait_running(*self.applications)

    def way_is_open(self, do, way):
        """Wait until calls take this way; ``do`` has the node tell."""
        self.serve.wait_for(f"the {way} to be open", lambda: self.ask(do, way=way).json == way)

    def route(self, **nodes):
        """A new table of both ingresses, in force when this returns."""
        self.table += 1
        for name in ("ingress", "handles"):
            config = self.applications[name]["deployments"][0]["user_config"]
            config.update(nodes=self.serve.entries({**NODES, **nodes}), table=f"t{self.table + 1}")
        self.put()

    def ways(self):
        """How many calls of nodes went which way until now."""
        return self.serve.metric("servepipe_node_calls_total", by="way", of=["ingress", "handles"])

    def first(self, count):
        """The processes that answered so many of the calls with which all begins."""
        answers = [self.ask("pid") for _ in range(count)]
        assert {answer.status for answer in answers} == {200}
        self.first_calls += count
        return {answer.json for answer in answers}

    def warm_up(self):
        """Until calls take channels and all before is told."""
        told = Counter()

        def warm():
            nonlocal told
            before = told
            self.first(1)
            told = self.serve.wait_for(
                f"{self.first_calls} calls to be told",
                lambda: (now := self.ways()).total() == self.first_calls and now,
            )
            return told["channel"] > before["channel"]

        self.serve.wait_for("the channels to be open", warm)

    def ongoing(self):
        """How many calls each application has under way, as Serve counts them."""
        return self.serve.metric("serve_replica_processing_queries", by="application")

    def pids(self, replicas):
        """The processes of so many replicas of the worker."""

        def found():
            answered = {self.ask("pid").json for _ in range(10)}
            return len(answered) == replicas and answered

        return self.serve.wait_for(f"{replicas} replicas to answer", found)


class Held:
    """Calls that stay in the node until they are let go."""

    def __init__(self, serving, folder, count, do="hold", **options):
        self._serving, self._folder = serving, folder
        self._pool = ThreadPoolExecutor(count)
        self.calls = [
            self._pool.submit(serving.ask, do, {"folder": str(folder), "key": n}, **options) for n in range(count)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.let_go()
        self._pool.shutdown()

    def begun(self, count):
        """Wait until calls have begun so often; by process, how often."""
        self._serving.serve.wait_for(f"{count} calls to begin", lambda: self._count() >= count)
        return Counter(int(path.name.split(".")[1]) for path in self._folder.glob("*.*.*"))

    def _count(self):
        return len([*self._folder.glob("*.*.*")])

    def let_go(self):
        (self._folder / "go").touch()


class Load:
    """Four clients that ask one request after another."""

    def __init__(self, serving, do="brief", **options):
        self._serving = serving
        self._ask_one = partial(serving.ask, do, **options)
        self._stop = threading.Event()
        self.answers = []

    def _ask(self):
        while not self._stop.is_set():
            self.answers.append(self._ask_one())

    def __enter__(self):
        self._pool = ThreadPoolExecutor(4)
        self._clients = [self._pool.submit(self._ask) for _ in range(4)]
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._pool.shutdown()
        if error[0] is None:
            for client in self._clients:
                client.result()

    def more(self, count=40):
        """Wait until so many more were answered; their answers."""
        before = len(self.answers)
        self._serving.serve.wait_for(f"{count} more answers", lambda: len(self.answers) >= before + count)
        return self.answers[before:]

    @property
    def failed(self):
        return [answer for answer in self.answers if answer.status != 200]


@pytest.fixture(scope="module")
def serving(serve_session):
    return Serving(serve_session)


def test_serve_counts_calls_over_channels(serving, tmp_path):
    def counted():
        return serving.serve.metric(
            "serve_deployment_request_counter_total", by="application", of=["worker--r1"]
        ).total()

    serving.serve.wait_for("Serve to have counted the calls before", lambda: counted() == serving.first_calls)
    ways = serving.ways()
    with Held(serving, tmp_path, 5) as held:
        held.begun(5)
        serving.serve.wait_for("Serve to count them", lambda: serving.ongoing()["worker--r1"] == 5)
        held.let_go()
        assert [call.result().status for call in held.calls] == [200] * 5
    serving.serve.wait_for("Serve to count none", lambda: serving.ongoing()["worker--r1"] == 0)
    serving.serve.wait_for("Serve to have counted them", lambda: counted() == serving.first_calls + 5)
    serving.serve.wait_for("the calls to be told", lambda: serving.ways() == ways + Counter(channel=5))


def test_replicas_follow_the_calls_over_channels(serving, tmp_path):
    """Those that wait in the replica count as well: two may run."""
    serving.way_is_open("stretch-way", "channel")
    with Held(serving, tmp_path, 6, "stretch") as held:
        held.begun(2)
        serving.serve.wait_for("three replicas", lambda: len(serving.serve.replicas("elastic--r1")) == 3, 120)
        held.let_go()
        answers = [call.result() for call in held.calls]
        assert [(answer.status, answer.json) for answer in answers] == [(200, "channel")] * 6
    serving.serve.wait_for("one replica", lambda: len(serving.serve.replicas("elastic--r1")) == 1, 120)
    assert held.begun(6).total() == 6  # none was lost, and made again


def test_a_killed_replica_costs_no_request(serving):
    before = serving.serve.replicas("worker--r1")
    with Load(serving) as load:
        load.more()
        os.kill(min(serving.pids(2)), signal.SIGKILL)
        serving.serve.wait_for(
            "another replica in its place",
            lambda: len(now := serving.serve.replicas("worker--r1")) == 2 and now != before,
            120,
        )
        load.more()
    assert load.failed == []


@pytest.mark.parametrize("way", ["channel", "handle"])
def test_a_killed_replica_that_was_the_only_one_costs_no_request(serving, way, tmp_path):
    """Those inside it, and those that come before the next one is there, are answered by that."""
    serving.way_is_open("lone-way", way)
    (killed,) = serving.serve.replicas("lone--r1", "pid")
    with Load(serving, "lone-brief", way=way) as load, Held(serving, tmp_path, 3, "lone-hold", way=way) as held:
        assert held.begun(3) == {killed: 3}
        load.more()
        os.kill(killed, signal.SIGKILL)
        again = held.begun(6)
        load.more()
        held.let_go()
        assert [call.result().status for call in held.calls] == [200] * 3
    (another,) = serving.serve.replicas("lone--r1", "pid")
    assert another != killed
    assert again == {killed: 3, another: 3}
    assert load.failed == []
    assert {answer.json for answer in load.answers} == {killed, another}


@pytest.mark.parametrize("way", ["channel", "handle"])
def test_a_call_is_made_again_twice_and_no_more(serving, way, tmp_path):
    """One that kills whatever it comes to ends."""
    serving.way_is_open("lone-way", way)
    with Held(serving, tmp_path, 1, "lone-hold", way=way) as held:
        for count in (1, 2, 3):
            pids = held.begun(count)
            assert len(pids) == count
            (alive,) = serving.serve.wait_for(
                "Serve to know of the replica", lambda pids=pids: {*serving.serve.replicas("lone--r1", "pid")} & {*pids}
            )
            os.kill(alive, signal.SIGKILL)
        answer = held.calls[0].result(120)
        assert (answer.status, answer.json["error"]["code"]) == (502, "ReplicaLost")
        assert held.begun(3).total() == 3
    serving.way_is_open("lone-way", way)


@pytest.mark.parametrize("way", ["channel", "handle"])
def test_calls_inside_a_killed_replica_are_made_again(serving, way, tmp_path):
    serving.pids(2)
    with Held(serving, tmp_path, 6, way=way) as held:
        inside = held.begun(6)
        killed, lost = min(inside.items(), key=lambda item: item[1])
        os.kill(killed, signal.SIGKILL)
        again = held.begun(6 + lost)
        assert again[killed] == lost
        held.let_go()
        assert [call.result().status for call in held.calls] == [200] * 6


@pytest.mark.parametrize("way", ["channel", "handle"])
def test_a_node_that_is_not_idempotent_sees_no_call_twice(serving, way, tmp_path):
    serving.route(worker={"routes": [{"revision": "r1", "weight": 100}], "off": False, "idempotent": False})
    serving.pids(2)
    with Held(serving, tmp_path, 6, way=way) as held:
        inside = held.begun(6)
        killed, lost = min(inside.items(), key=lambda item: item[1])
        os.kill(killed, signal.SIGKILL)
        serving.serve.wait_for("the lost calls to fail", lambda: sum(call.done() for call in held.calls) == lost)
        errors = [call.result() for call in held.calls if call.done()]
        held.let_go()
        answers = Counter(call.result().status for call in held.calls)
        assert held.begun(6) == inside
    serving.route()
    assert {(answer.status, answer.json["error"]["code"]) for answer in errors} == {(502, "ReplicaLost")}
    assert not any("retry-after" in answer.headers for answer in errors)
    assert answers == Counter({200: 6 - lost, 502: lost})


def test_upgrades_under_load_lose_no_request(serving):
    """Of the replicas of an application, and of an application by the next one."""
    serving.pids(2)
    first = serving.applications["worker--r1"]
    second = serving.serve.node("worker", WORKER, path=CODE, revision="r2", replicas=2, max_ongoing_requests=8)
    before = serving.serve.replicas("worker--r1")
    ways = serving.ways()
    with Load(serving) as load:
        load.more()
        serving.applications["worker--r1"] = {**copy.deepcopy(first), "args": {**first["args"], "attempt": 1}}
        serving.put()
        assert not {*before} & {*serving.serve.replicas("worker--r1")}
        old = {answer.json for answer in load.more()}
        serving.applications["worker--r2"] = second
        serving.put()
        serving.route(worker="r2")
        load.more()
        del serving.applications["worker--r1"]
        serving.put()
        new = {answer.json for answer in load.more()}
    assert load.failed == []
    assert not old & new
    serving.applications["worker--r1"] = first
    serving.put()
    serving.route()
    assert serving.ways()["lost"] == ways["lost"]


# --- Strangers at the sockets -----------------------------------------------------------------------------------------


def endpoints(serving):
    """Where the worker's replicas listen, as their callers learn it."""
    from ray.serve.handle import DeploymentHandle

    from servepipe.runtime.node_channel import METADATA
    from servepipe.runtime.serve_internals import known_replicas, metadata_of

    handle = DeploymentHandle("node", "worker--r1")
    handle._init(_run_router_in_separate_loop=True)
    serving.serve.wait_for("Serve to tell the replicas", lambda: len(known_replicas(handle)) == 2)
    found = [Endpoint.parse(metadata_of(replica)[1][METADATA]) for replica in known_replicas(handle)]
    handle.shutdown()
    return found


class Evil:
    """Leaves a file where it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


async def test_strangers_at_a_replicas_sockets_run_nothing_and_disturb_nobody(serving, tmp_path):
    pids, halves = serving.pids(2), []
    evil = Frame(Kind.CALL, 1, b"", pickle.dumps(((Evil(tmp_path / "ran"),), {})))
    for endpoint in endpoints(serving):
        ways = [endpoint.seen_from(endpoint.machine), endpoint.seen_from("elsewhere")]
        assert ways[0].path
        assert ways[1].host
        for way in ways:
            for what in (b"GET / HTTP/1.1\r\n\r\n", bytes(100_000), evil.encode()):
                peer = await RawPeer.connect(way)
                peer.send(what)
                await peer.end()
            hello = handshake.new_hello(endpoint.application, endpoint.replica, 1 << 20)
            peer = await RawPeer.connect(way)
            await peer.prove(b"x" * 32, hello, then=evil.encode())
            (refusal,) = await peer.end()
            assert parse_refusal(refusal.head)[0] is Reason.TOKEN
            halves.append(await RawPeer.connect(way))  # of the first frame, and then nothing: it is given some seconds
            halves[-1].send(Frame(Kind.HELLO, 0, hello.encode()).encode()[:20])
            known = await RawPeer.let_in(way)  # one that may call, and ends in the middle of one
            known.send(known.call(1, bytes(1000), method="size").encode()[:200])
            known.close()
            known = await RawPeer.let_in(way)
            known.send(known.call(1, "call", method="pid"))
            answer = await known.frame()
            assert (answer.kind, load(answer.body) in pids) == (Kind.RESULT, True)
            known.send(struct.pack("<2sBBHHQII", b"??", 1, Kind.CALL, 0, 0, 0, 0, 0))
            await known.end()
            assert serving.ask("pid").json in pids
    for half in halves:
        await half.end()
    assert not (tmp_path / "ran").exists()
    assert serving.pids(2) == pids
