"""Node replicas on real Ray Serve: errors, threads, handles, live settings, cancellation, Inline nodes."""

from __future__ import annotations

import copy
import http.client
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from servepipe.runtime.serve_internals import session_folder

pytestmark = pytest.mark.ray

CODE = Path(__file__).parent / "code"
METHODS = ["tell", "fail", "fail_async", "block", "wait", "large", "prints"]
HOLDER_METHODS = ["sync", "async_", "ask", "catch"]
GRAPH = {
    "steps": [
        *({"name": m.replace("_", "-"), "node": "node", "method": m, "args": [{"$input": ["x"]}]} for m in METHODS),
        *(
            {"name": f"holder-{m.strip('_')}", "node": "holder", "method": m, "args": [{"$input": ["x"]}]}
            for m in ("sync", "async_")
        ),
        {"name": "size", "node": "node", "method": "size", "args": [{"$step": "large"}]},
        {"name": "array", "node": "node", "method": "array", "args": [{"$input": ["x"]}]},
        {"name": "written-there", "node": "node", "method": "write", "args": [{"$step": "array"}]},
        {"name": "written-here", "node": "writer", "args": [{"$step": "array"}]},
        *(
            {"name": f"look-{where}", "node": "node", "method": "look", "args": args}
            for where, args in {
                "there": [{"$step": "array"}, {"$step": "written-there"}],
                "here": [{"$step": "written-here"}],
            }.items()
        ),
        {"name": "inline", "node": "plain", "args": [{"$input": ["x"]}, 1, 2]},
        {"name": "model", "node": "model", "method": "forward", "args": [{"$input": ["x"]}]},
        {"name": "gone", "node": "gone", "args": [{"$input": ["x"]}]},
        {"name": "off", "node": "off", "args": [{"$input": ["x"]}]},
        {
            "name": "choice",
            "switch": {
                "on": {"$input": ["do"]},
                "cases": [
                    {"when": name, "then": {"$step": name}}
                    for name in [
                        *(m.replace("_", "-") for m in METHODS),
                        "holder-sync",
                        "holder-async",
                        "size",
                        "look-there",
                        "look-here",
                        "inline",
                        "model",
                        "gone",
                        "off",
                    ]
                ],
            },
        },
    ],
    "output": {"$step": "choice"},
}
NODES = {
    "node": "r1",
    "model": "r1",
    "holder": "r1",
    "gone": "r9",
    "off": {"routes": [{"revision": "r1", "weight": 100}], "off": True},
    **{
        node: [
            {"revision": "i1", "weight": 100, "inline": {"import": f"runtime_models:{code}", "args": [], "kwargs": {}}}
        ]
        for node, code in {"plain": "ensemble", "writer": "write"}.items()
    },
}
HOLDS = {"model": [{"revision": "r1", "weight": 100}], "plain-node": [{"revision": "r1", "weight": 100}]}


class Pipeline:
    """The deployed applications, and a way to change their user_config in place."""

    def __init__(self, serve):
        self.serve = serve
        self.table = 0
        self.applications = {
            app["name"]: app
            for app in [
                serve.node("node", "runtime_models:Node", "first", path=CODE, max_ongoing_requests=3),
                serve.node("model", "runtime_models:Model", 2, path=CODE),
                serve.node("model", "runtime_models:Model", 20, path=CODE, revision="r2"),
                serve.node("plain-node", "runtime_models:ensemble", path=CODE),
                serve.node(
                    "holder",
                    "runtime_models:Holder",
                    {"$node": "model"},
                    [{"$node": "plain-node"}],
                    path=CODE,
                    routes=HOLDS,
                ),
                serve.ingress(GRAPH, NODES, path=CODE, timeout_s=20),
            ]
        }
        serve.deploy(*self.applications.values())

    def change(self, application, **changes):
        """PUT a changed user_config of one application under a new table id, and wait until it is in force."""
        self.table += 1
        config = self.applications[application]["deployments"][0]["user_config"]
        config.update(copy.deepcopy(changes), table=f"t{self.table + 1}")
        self.serve.put(*self.applications.values())
        self.serve.wait_running(*self.applications)

    def acks(self):
        return self.serve.get("/-/routing").json["replicas"]

    def do(self, what, x=None, **options):
        return self.serve.ask({"do": what, "x": x}, **options)


@pytest.fixture(scope="module")
def pipeline(serve_session):
    return Pipeline(serve_session)


@pytest.mark.parametrize("method", ["fail", "fail-async"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("value", "ValueError: bad pixel"),
        ("own", "runtime_models.OwnError: half of it"),
        ("picky", "runtime_models.PickyError: one and two"),
        ("sticky", "runtime_models.StickyError: glue"),
        ("mute", "runtime_models.MuteError: <no text: RuntimeError>"),
        ("exit", "SystemExit: 3"),
        ("stop", "StopIteration"),
        ("cancelled", "CancelledError: the call was cancelled"),
        ("stubborn", "cannot pickle"),
        ("generator", "returned a generator"),
    ],
)
def test_whatever_a_node_raises_is_told_and_breaks_nothing(pipeline, method, how, message):
    answer = pipeline.do(method, how)
    assert answer.status == 500
    error = answer.json["error"]
    assert (error["code"], error["step"], error["node"]) == ("StepFailed", method, "node")
    assert message in error["message"]
    assert pipeline.do(method, "fine").json == "fine"


def test_a_large_value_travels_between_nodes(pipeline):
    assert pipeline.do("size", 9_000_000).json == 9_000_000


@pytest.mark.parametrize(("do", "found"), [("look-there", [[0, 9], [-1, 9]]), ("look-here", [[-1, 9]])])
def test_a_large_array_is_what_was_passed_on(pipeline, do, found):
    """What another node writes to it is in its own copy, what an Inline node writes to it is in what follows."""
    for _ in range(5):
        assert pipeline.do(do, 500_000).json == found


def test_a_large_body_and_answer_travel_through_the_ingress(pipeline):
    answer = pipeline.do("large", 9_000_000)
    assert (answer.status, len(answer.body)) == (200, 9_000_000)
    assert pipeline.do("fail", "y" * 9_000_000).status == 200


def test_sync_methods_run_in_as_many_threads_as_max_ongoing_requests(pipeline, tmp_path):
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(pipeline.do, "block", str(tmp_path)) for _ in range(5)]
        pipeline.serve.wait_for("three calls to be inside", lambda: len(list(tmp_path.glob("in-*"))) == 3)
        (tmp_path / "go").touch()
        assert max(answer.result().json for answer in answers) == 3


def test_the_request_id_travels_to_the_node(pipeline):
    answer = pipeline.do("tell", headers={"x-request-id": "abc-7"})
    assert (answer.json["request"], answer.headers.get_all("x-request-id")) == ("abc-7", ["abc-7"])


@pytest.mark.parametrize("way", ["holder-sync", "holder-async"])
def test_a_node_calls_others_through_handles(pipeline, way):
    assert pipeline.do(way, 5).json == [10, 15]


def test_an_inline_node_runs_in_the_ingress(pipeline):
    assert pipeline.do("inline", 5).json == 8


def test_a_node_that_is_off_answers_503(pipeline):
    answer = pipeline.do("off")
    error = answer.json["error"]
    assert (answer.status, error["code"], error["step"], error["node"]) == (503, "NodeScaledToZero", "off", "off")
    assert answer.headers["retry-after"]


def test_a_node_without_application_answers_503_when_the_request_runs_out_of_time(pipeline):
    pipeline.change("ingress", requestTimeoutSeconds=1)
    answer = pipeline.do("gone")
    pipeline.change("ingress", requestTimeoutSeconds=20)
    assert (answer.status, answer.json["error"]["node"]) == (503, "gone")


def test_a_slow_node_answers_504_and_is_cancelled(pipeline, tmp_path):
    pipeline.change("ingress", requestTimeoutSeconds=1)
    answer = pipeline.do("wait", str(tmp_path))
    pipeline.change("ingress", requestTimeoutSeconds=20)
    error = answer.json["error"]
    assert (answer.status, error["code"], error["step"], error["node"]) == (504, "Timeout", "wait", "node")
    pipeline.serve.wait_for("the node to be cancelled", (tmp_path / "cancelled").exists)


@pytest.mark.parametrize("entrance", ["the pipeline's", "a replica's"])
def test_a_caller_that_leaves_cancels_the_work(pipeline, tmp_path, entrance):
    """Long before the request's deadline, also where the body comes in packets of its own over a connection in use."""
    serve = pipeline.serve
    pipeline.change("ingress", requestTimeoutSeconds=300)
    port = serve.port if entrance == "the pipeline's" else serve.ingress_port
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/", json.dumps({"do": "model", "x": 1}))
        assert connection.getresponse().read() == b"2"
        connection.request("POST", "/", json.dumps({"do": "wait", "x": str(folder)}))
        serve.wait_for("the node to begin", (folder / "began").exists)
        connection.close()
        serve.wait_for(f"call {number} to be cancelled", (folder / "cancelled").exists, timeout=30)
    pipeline.change("ingress", requestTimeoutSeconds=20)


def test_what_a_node_prints_into_a_file_is_what_it_printed(pipeline, tmp_path):
    assert pipeline.do("prints", str(tmp_path / "file")).status == 200
    assert (tmp_path / "file").read_text() == "one-2\n"


def test_a_node_cannot_be_called_around_the_ingress(pipeline):
    """Every replica has an HTTP and a gRPC port of its own; a node's answers neither with user code."""
    if not pipeline.serve.haproxy:
        pytest.skip("replicas have no ports of their own without HAProxy")
    statuses = {}
    for port in pipeline.serve.replica_ports:
        answer = pipeline.serve.send_to(port, {"do": "tell"})
        if answer is not None:
            statuses[port] = (answer.status, b"Forbidden" in answer.body)
    refused = [status for status in statuses.values() if status == (403, True)]
    assert len(refused) == 5, statuses  # node, model r1 and r2, plain-node, holder


def test_user_config_is_applied_in_place_and_only_where_it_changed(pipeline):
    before = pipeline.serve.replicas("node--r1")
    told = pipeline.do("tell").json
    assert told["events"][:2] == ["init", "setup"]
    pipeline.change("node--r1", userConfig={"level": {"$float": "1.0"}})
    changed = pipeline.do("tell").json
    assert changed["config"] == {"level": 1.0}
    assert isinstance(changed["config"]["level"], float)
    pipeline.change("node--r1", routes={})  # a new table alone reconfigures nothing of the user's
    assert pipeline.do("tell").json["events"] == changed["events"]
    assert pipeline.serve.replicas("node--r1") == before


def test_a_user_config_that_is_refused_is_told_and_stops_no_replica(pipeline):
    before = pipeline.serve.replicas("node--r1")
    pipeline.change("node--r1", userConfig={"level": 2})
    pipeline.change("node--r1", userConfig={"broken": True})
    assert pipeline.do("tell").json["config"] == {"level": 2}
    assert pipeline.serve.replicas("node--r1") == before
    errors = pipeline.serve.wait_for("the error", lambda: [a["errors"] for a in pipeline.acks() if a["errors"]])
    assert errors == [{"node--r1": "userConfig: cannot take this"}]
    pipeline.change("node--r1", userConfig={"level": 3})
    assert pipeline.do("tell").json["config"] == {"level": 3}
    pipeline.serve.wait_for("no more error", lambda: not any(ack["errors"] for ack in pipeline.acks()))


@pytest.mark.parametrize("application", ["model--r1", "ingress"])
def test_the_access_log_is_switched_in_place(pipeline, application):
    """By replicas that stay; Serve's GET tells the setting as it was sent, so that nobody sends it again."""
    serve = pipeline.serve
    deployment = pipeline.applications[application]["deployments"][0]
    before = serve.replicas(application)
    logs = session_folder() / "logs" / "serve"

    def logged():
        """The requests of this test that were logged, by their ids: a line comes after its answer."""
        (file,) = [log for log in logs.glob("replica_*.log") if log.stem.endswith(before[0])]
        return re.findall(rf" ({application}-\d-\d) -- (?:CALL|POST) \S+ (?:OK|200) ", file.read_text())

    for turn, on in enumerate((False, True, False, True)):
        deployment["logging_config"] = {"enable_access_log": on}
        serve.put(*pipeline.applications.values())
        serve.wait_running(*pipeline.applications)
        told = serve.applications()[application]["deployed_app_config"]["deployments"][0]
        assert told["logging_config"] == {"enable_access_log": on}
        for x in range(3):
            assert pipeline.do("model", x, headers={"x-request-id": f"{application}-{turn}-{x}"}).json == 2 * x
        if on:
            serve.wait_for("the last line", lambda turn=turn: f"{application}-{turn}-2" in logged())
    assert sorted(logged()) == [f"{application}-{turn}-{x}" for turn in (1, 3) for x in range(3)]
    assert serve.replicas(application) == before
    del deployment["logging_config"]


def test_a_graph_that_is_refused_is_told_and_stops_no_replica(pipeline):
    before = pipeline.serve.replicas("ingress")
    in_force = pipeline.applications["ingress"]["deployments"][0]["user_config"]["table"]
    pipeline.change("ingress", graph={**GRAPH, "output": {"$step": "nowhere"}})
    told = next(ack for ack in pipeline.acks() if ack["application"] == "ingress")
    still = pipeline.do("model", 5)
    pipeline.change("ingress", graph=GRAPH)
    assert "nowhere" in told["errors"]["ingress"]
    assert told["table"] == in_force
    assert still.json == 10
    assert next(ack for ack in pipeline.acks() if ack["application"] == "ingress")["errors"] == {}
    assert pipeline.serve.replicas("ingress") == before


def test_weights_move_requests_and_replace_no_replica(pipeline):
    replicas = {name: pipeline.serve.replicas(name) for name in pipeline.applications}
    seen, stop = [], threading.Event()

    def load():
        while not stop.is_set():
            seen.append(pipeline.do("model", 1))

    def split(weight):
        routes = [{"revision": "r1", "weight": 100 - weight}, {"revision": "r2", "weight": weight}]
        pipeline.change("ingress", nodes=pipeline.serve.entries({**NODES, "model": routes}))
        start = len(seen)
        pipeline.serve.wait_for("60 more requests", lambda: len(seen) >= start + 60)
        return [answer.json for answer in seen[start + 8 :]]

    with ThreadPoolExecutor(4) as pool:
        threads = [pool.submit(load) for _ in range(4)]
        half, all_new, none_new = split(50), split(100), split(0)
        stop.set()
        for thread in threads:
            thread.result()
    assert set(half) == {2, 20}
    assert set(all_new) == {20}
    assert set(none_new) == {2}
    assert [answer for answer in seen if answer.status != 200] == []
    assert {name: pipeline.serve.replicas(name) for name in pipeline.applications} == replicas


def test_a_holder_uses_the_revision_that_its_request_is_pinned_to(pipeline):
    holder = pipeline.serve.replicas("holder--r1")
    pipeline.change("ingress", nodes=pipeline.serve.entries({**NODES, "model": "r2", "plain-node": "r1"}))
    # Its own table still says r1; the request's pins decide.
    assert pipeline.do("holder-async", 5).json == [100, 15]
    pipeline.change("ingress", nodes=pipeline.serve.entries(NODES))
    assert pipeline.do("holder-async", 5).json == [10, 15]
    assert pipeline.serve.replicas("holder--r1") == holder


def test_acknowledgements_come_from_every_ingress_replica_and_holder(pipeline, tmp_path):
    by_application = {ack["application"]: ack for ack in pipeline.acks()}
    assert {"ingress", "holder--r1"} <= by_application.keys()
    assert by_application["ingress"]["replica"] in pipeline.serve.replicas("ingress")
    assert by_application["holder--r1"]["table"] == "t1"
    assert by_application["ingress"]["busy"] == {}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(pipeline.do, "block", str(tmp_path))
        pipeline.serve.wait_for("a call to be inside", lambda: list(tmp_path.glob("in-*")))
        busy = next(ack["busy"] for ack in pipeline.acks() if ack["application"] == "ingress")
        (tmp_path / "go").touch()
        assert answer.result().status == 200
    assert busy["node--r1"] == 1


def test_a_broken_inline_node_fails_its_calls_only_and_is_reported(pipeline):
    broken = {"import": "runtime_models:Broken", "args": [], "kwargs": {}}
    routes = [{"revision": "i2", "weight": 100, "inline": broken}]
    pipeline.change("ingress", nodes=pipeline.serve.entries({**NODES, "plain": routes}))
    errors = next(ack["errors"] for ack in pipeline.acks() if ack["application"] == "ingress")
    assert errors == {"plain--i2": "no weights"}
    answer = pipeline.do("inline", 5)
    assert (answer.status, answer.json["error"]["node"]) == (503, "plain")
    assert pipeline.do("model", 5).json == 10
    assert "plain" in pipeline.serve.get("/-/ready").json["notReady"]
    pipeline.change("ingress", nodes=pipeline.serve.entries(NODES))
    assert pipeline.do("inline", 5).json == 8
    assert next(ack["errors"] for ack in pipeline.acks() if ack["application"] == "ingress") == {}


def test_readiness_names_the_nodes_that_nobody_can_answer(pipeline):
    answer = pipeline.serve.get("/-/ready")
    assert (answer.status, answer.json["notReady"]) == (503, ["gone"])
    without = {name: entry for name, entry in NODES.items() if name != "gone"}
    pipeline.change("ingress", nodes=pipeline.serve.entries(without))
    pipeline.serve.wait_for("the pipeline to be ready", lambda: pipeline.serve.get("/-/ready").status == 200)
    pipeline.change("ingress", nodes=pipeline.serve.entries(NODES))


def test_the_graph_is_told(pipeline):
    told = pipeline.serve.get("/-/graph").json
    assert told["graph"] == GRAPH
    assert told["nodes"]["model"] == {
        "routes": [{"revision": "r1", "weight": 100}],
        "placement": "Dedicated",
        "off": False,
    }


def test_a_node_without_any_revision_is_not_ready(pipeline):
    pipeline.change("ingress", nodes=pipeline.serve.entries({**NODES, "model": []}))
    assert pipeline.serve.get("/-/ready").json["notReady"] == ["gone", "model"]
    pipeline.change("ingress", nodes=pipeline.serve.entries(NODES))
    assert pipeline.serve.get("/-/ready").json["notReady"] == ["gone"]
