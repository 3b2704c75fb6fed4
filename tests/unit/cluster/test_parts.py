"""Patches of ops, log files, calls: the pure parts of the commands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from servepipe.errors import BadRequestError, RequestError, ServePipeError
from servepipe_operator.cluster.handle import answer_of, body_for
from servepipe_operator.cluster.log_files import LogFile, known_nodes, log_files, whole_lines
from servepipe_operator.cluster.operate import scaling, switching
from servepipe_operator.cluster.reach import active_cluster, ingress_of, ingress_selector

Json = dict[str, Any]


def pipeline(**more: Any) -> Json:
    nodes = {
        "m1": {"import": "shop:M1", "replicas": 3},
        "auto": {"import": "shop:M2", "autoscaling": {"minReplicas": 1, "maxReplicas": 4}},
        "glue": {"import": "shop:glue", "placement": "Inline"},
    }
    steps = [{"name": name, "node": name} for name in nodes]
    output = [{"$step": name} for name in nodes]
    return {
        "apiVersion": "servepipe.dev/v1alpha1",
        "kind": "ServePipeline",
        "metadata": {"name": "shop", "namespace": "ns", "resourceVersion": "7"},
        "spec": {"graph": {"steps": steps, "output": output}, "nodes": nodes, **more},
    }


# --- Patches ----------------------------------------------------------------------------------------------------------


def test_scaling() -> None:
    assert scaling(pipeline(), {"m1": 5, "auto": 2, "ingress": 3}) == [
        {"op": "add", "path": "/spec/nodes/m1/replicas", "value": 5},
        {"op": "remove", "path": "/spec/nodes/auto/autoscaling"},
        {"op": "add", "path": "/spec/nodes/auto/replicas", "value": 2},
        {"op": "add", "path": "/spec/ingress", "value": {"replicas": 3}},
    ]
    there = pipeline(ingress={"route": "/shop"})
    assert scaling(there, {"ingress": 3}) == [{"op": "add", "path": "/spec/ingress/replicas", "value": 3}]
    assert scaling(pipeline(), {"m1": 0}) == [{"op": "add", "path": "/spec/nodes/m1/replicas", "value": 0}]


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"auo": 1}, "There is no node 'auo'; did you mean 'auto'?"),
        ({"ingress": 0}, "The ingress needs at least one replica"),
        ({"glue": 2}, "Inline"),
    ],
)
def test_scaling_that_makes_no_sense(sizes: dict[str, int], says: str) -> None:
    with pytest.raises(ServePipeError, match=says.replace("?", r"\?")):
        scaling(pipeline(), sizes)


def test_scaling_an_object_with_fields_of_a_newer_version() -> None:
    there = pipeline(fromTheFuture=True)
    assert scaling(there, {"m1": 4}) == [{"op": "add", "path": "/spec/nodes/m1/replicas", "value": 4}]


def test_switching() -> None:
    assert switching(pipeline(), {"suspend": True}) == [{"op": "add", "path": "/spec/suspend", "value": True}]
    assert switching(pipeline(suspend=True), {"suspend": True}) == []
    assert switching(pipeline(suspend=False), {"suspend": True}) == [
        {"op": "add", "path": "/spec/suspend", "value": True}
    ]
    assert switching(pipeline(paused=True), {"suspend": False, "paused": False}) == [
        {"op": "remove", "path": "/spec/paused"}
    ]


# --- Log files --------------------------------------------------------------------------------------------------------


def replica(name: str, start: float, **more: Any) -> Json:
    return {"replica_id": f"a#node#{name}", "state": "RUNNING", "start_time_s": start, "node_id": "n1", **more}


def details(**applications: Json) -> Json:
    return {"applications": {name.replace("_", "-"): value for name, value in applications.items()}}


def application(*replicas: Json, dead: tuple[Json, ...] = ()) -> Json:
    return {"deployments": {"node": {"replicas": list(replicas), "recent_dead_replicas": list(dead)}}}


def test_files_of_every_revision_oldest_replica_first() -> None:
    found = log_files(
        details(
            m1__bbbb=application(replica("newer01", 2.0, log_file_path="/serve/b.log")),
            m1__aaaa=application(replica("older01", 1.0, log_file_path="/serve/a.log", pid=7)),
            m1_x__cccc=application(replica("other", 0.5, log_file_path="/serve/c.log")),
        ),
        "m1",
    )
    assert found == (
        LogFile((("node_id", "n1"), ("filename", "serve/a.log")), "aaaa/older0"),
        LogFile((("node_id", "n1"), ("pid", "7"), ("suffix", "out")), "aaaa/older0"),
        LogFile((("node_id", "n1"), ("pid", "7"), ("suffix", "err")), "aaaa/older0"),
        LogFile((("node_id", "n1"), ("filename", "serve/b.log")), "bbbb/newer0"),
    )


def test_replicas_that_ended_and_those_that_are_nowhere_yet() -> None:
    there = details(
        m1__aaaa=application(
            replica("starting", 1.0, node_id=None, log_file_path=None),
            replica("stopping", 1.0, state="STOPPING", log_file_path="/x.log"),
            dead=(replica("dead", 0.5, log_file_path="/serve/d.log"),),
        )
    )
    assert log_files(there, "m1") == ()
    assert [file.query[1] for file in log_files(there, "m1", previous=True)] == [("filename", "serve/d.log")]


def test_the_ingress_and_what_is_known() -> None:
    there = details(ingress=application(replica("i", 1.0, log_file_path="/serve/i.log")), m1__aaaa=application())
    assert known_nodes(there) == ("ingress", "m1")
    assert [file.prefix for file in log_files(there, "ingress")] == ["ingress/i"]
    assert known_nodes({}) == ()


def test_lines_may_arrive_in_pieces() -> None:
    lines, rest = whole_lines(b"", b":job_id:01\none\r\ntw")
    assert (lines, rest) == (["one"], b"tw")
    assert whole_lines(rest, "o\n\xff\n".encode("latin-1")) == (["two", "\ufffd"], b"")


# --- Calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "body"),
    [((1, 2), {}, [1, 2]), ((5,), {}, [5]), ((), {}, []), ((), {"x": "a"}, {"x": "a"}), (([1],), {}, [[1]])],
)
def test_arguments_become_the_body(args: tuple[Any, ...], kwargs: Json, body: Any) -> None:
    assert json.loads(body_for(args, kwargs)) == body


def test_arguments_with_a_preprocessor_are_its_body() -> None:
    assert body_for(({"a": 1},), {}, preprocessed=True) == b'{"a": 1}'
    for args, kwargs in (((1, 2), {}), ((), {"a": 1}), ((), {})):
        with pytest.raises(BadRequestError, match="preprocessor"):
            body_for(args, kwargs, preprocessed=True)


@pytest.mark.parametrize(("args", "kwargs"), [((1,), {"x": 1}), ((object(),), {}), ((float("nan"),), {})])
def test_arguments_that_http_cannot_carry(args: tuple[Any, ...], kwargs: Json) -> None:
    with pytest.raises(BadRequestError):
        body_for(args, kwargs)


def test_answers() -> None:
    assert answer_of(200, "application/json", b'{"a": 1}') == {"a": 1}
    assert answer_of(200, "text/plain", b"a") == "a"
    assert answer_of(200, "image/png", b"\x89") == b"\x89"
    error = {"code": "StepFailed", "message": "no", "step": "first", "node": "m1"}
    with pytest.raises(RequestError, match="no") as told:
        answer_of(500, "application/json", json.dumps({"error": error}).encode())
    assert (told.value.status, told.value.code, told.value.step, told.value.node) == (500, "StepFailed", "first", "m1")
    with pytest.raises(RequestError, match="HTTP 502") as told:
        answer_of(502, "text/html", b"")
    assert told.value.status == 502


def test_where_a_pipeline_is() -> None:
    there = pipeline(ingress={"service": {"port": 9000}})
    assert (ingress_of(there).service, ingress_of(there).port) == ("shop", 9000)
    assert ingress_of(pipeline()).port == 8000
    there["status"] = {"clusters": [{"name": "old", "role": "Draining"}, {"name": "new", "role": "Active"}]}
    assert active_cluster(there) == "new"
    behind = {"servepipe.dev/pipeline=shop", "servepipe.dev/role=ingress", "ray.io/cluster=new"}
    assert {*ingress_selector(there).split(",")} == behind, "as the selector of the Service"
    assert active_cluster(pipeline()) == ""
