"""A graph on real Ray Serve: over HTTP, by handle and over gRPC, and what each says when something is wrong."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import grpc
import pytest

from servepipe.graph.failures import failed_step

pytestmark = pytest.mark.ray

CODE = Path(__file__).parent / "code"
DIAMOND = {
    "steps": [
        {"name": "m1-output", "node": "m1", "method": "forward", "args": [{"$input": [0]}]},
        {"name": "m2-output", "node": "m2", "method": "forward", "args": [{"$input": [1]}]},
        {
            "name": "ray-dag",
            "node": "ensemble",
            "args": [{"$step": "m1-output"}, {"$step": "m2-output"}, {"$input": [2]}],
        },
    ],
    "output": {"$step": "ray-dag"},
}
NODES = {"m1": "r1", "m2": "r1", "ensemble": "r1"}


@pytest.fixture(scope="module")
def nodes(serve_session):
    s = serve_session
    return [
        s.node("m1", "runtime_models:Model", 1, path=CODE),
        s.node("m2", "runtime_models:Model", 2, path=CODE),
        s.node("ensemble", "runtime_models:ensemble", path=CODE),
    ]


@pytest.fixture(scope="module")
def diamond(serve_session, nodes):
    serve_session.deploy(*nodes, serve_session.ingress(DIAMOND, NODES, path=CODE, replicas=2, max_body_bytes=1000))
    return serve_session


@pytest.fixture(scope="module")
def adapted(serve_session, nodes, diamond):
    """The same nodes behind an ingress with a route, a preprocessor and a postprocessor."""
    hooks = {"preprocessor": "runtime_models:preprocess", "postprocessor": "runtime_models:postprocess"}
    serve_session.deploy(*nodes, serve_session.ingress(DIAMOND, NODES, path=CODE, route="/pipe", **hooks))
    return serve_session


def handle():
    from servepipe.runtime.serve_caller import ingress_handle

    return ingress_handle()


def test_the_diamond_answers_over_http(diamond):
    answer = diamond.ask([1, 2, 3])
    assert (answer.status, answer.json) == (200, 8)


def test_head_and_body_of_an_answer_come_together(diamond):
    with socket.create_connection(("127.0.0.1", diamond.ingress_port), timeout=30) as connection:
        for n in range(20):
            body = b"[%d, 2, 3]" % n
            connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            assert connection.recv(65536).endswith(b"\r\n\r\n%d" % (7 + n))


def test_the_diamond_answers_by_handle(diamond):
    assert handle().remote(1, 2, 3).result(timeout_s=30) == 8


async def test_the_diamond_answers_by_handle_in_a_loop(diamond):
    assert await handle().remote(1, 2, 3) == 8


def test_the_diamond_answers_over_grpc(diamond):
    assert diamond.ask_grpc([1, 2, 3]) == 8


def test_it_is_ready_and_tells_its_graph(diamond):
    assert (diamond.get("/-/ready").status, diamond.get("/-/ready").json) == (200, {"ready": True, "notReady": []})
    assert diamond.get("/-/graph").json["graph"] == DIAMOND


def test_every_ingress_replica_acknowledges_its_table(diamond):
    def acknowledged():
        acks = diamond.get("/-/routing").json["replicas"]
        return {(ack["replica"], ack["table"]) for ack in acks if ack["application"] == "ingress"}

    replicas = diamond.replicas("ingress")
    assert len(replicas) == 2
    diamond.wait_for("both acknowledgements", lambda: acknowledged() == {(replica, "t1") for replica in replicas})


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/", b"[1, 2", 400, "InvalidJson"),
        ("POST", "/elsewhere", b"[1, 2, 3]", 404, "NotFound"),
        ("PUT", "/", b"[1, 2, 3]", 405, "MethodNotAllowed"),
        ("POST", "/", b" " * 2000, 413, "BodyTooLarge"),
        ("POST", "/", b"[1, 2]", 422, "InvalidInput"),
        ("POST", "/", b"7", 422, "InvalidInput"),
        ("POST", "/", b'["a", {}, 3]', 500, "StepFailed"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(diamond, method, path, body, status, code):
    answer = diamond.send(method, diamond.url + path, body)
    error = answer.json["error"]
    assert (answer.status, error["code"], error["requestId"]) == (status, code, answer.headers["x-request-id"])


def test_the_ingress_counts_its_requests(diamond):
    """Not HAProxy, which would send a datagram for each."""
    for _ in range(5):
        assert diamond.send("POST", diamond.url + "/elsewhere", b"1").status == 404

    def counted():
        return diamond.metric("serve_num_http_requests_total", by="status_code", of=["ingress"])["404"]

    diamond.wait_for("the ingress to count them", lambda: counted() >= 5)


def test_the_step_and_node_that_failed_are_named(diamond):
    error = diamond.ask([1, {}, 3]).json["error"]
    assert (error["step"], error["node"]) == ("m2-output", "m2")
    assert "TypeError: unsupported operand" in error["message"]


def test_a_handle_raises_the_users_exception_with_its_step(diamond):
    with pytest.raises(TypeError, match="unsupported operand") as raised:
        handle().remote(1, {}, 3).result(timeout_s=30)
    assert failed_step(getattr(raised.value, "cause", raised.value)) == ("m2-output", "m2", "forward")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ([1, 2], grpc.StatusCode.INVALID_ARGUMENT, "InvalidInput"),
        ([1, {}, 3], grpc.StatusCode.INTERNAL, "StepFailed"),
    ],
)
def test_grpc_tells_errors_as_http_does(diamond, body, status, code):
    with pytest.raises(grpc.RpcError) as raised:
        diamond.ask_grpc(body)
    assert raised.value.code() is status
    assert json.loads(raised.value.details())["code"] == code


def test_a_node_cannot_be_called_over_grpc(diamond):
    """Serve routes gRPC by application, and a node is one: it must not run anything."""
    with pytest.raises(grpc.RpcError) as raised:
        diamond.ask_grpc([5], application="m1--r1")
    assert raised.value.code() is not grpc.StatusCode.OK
    assert diamond.ask([1, 2, 3]).json == 8


def test_preprocessor_route_and_postprocessor(adapted):
    answer = adapted.ask({"inputs": [1, 2, 3]}, "/pipe")
    assert (answer.status, answer.json) == (200, {"answer": 8})
    assert adapted.get("/pipe/-/ready").status == 200
    assert adapted.ask({"inputs": [1, 2, 3]}, "/pipe/x").status == 404
    too_little = adapted.ask({"inputs": 5}, "/pipe").json["error"]
    assert "the preprocessor runtime_models:preprocess returned a single int" in too_little["message"]
    assert adapted.ask({}, "/pipe").json["error"]["code"] == "PreprocessorFailed"


def test_requests_take_the_short_way_and_those_that_mean_something_to_serve_its_own(adapted):
    assert adapted.ask({"short": "?"}, "/pipe").json == {"answer": 1}
    for name, value in (("x-session-id", "a"), ("x-request-timeout-seconds", "30")):
        assert adapted.ask({"short": "?"}, "/pipe", headers={name: value}).json == {"answer": 0}


def test_handles_and_grpc_skip_preprocessor_and_postprocessor(adapted):
    assert handle().remote(1, 2, 3).result(timeout_s=30) == 8
    assert adapted.ask_grpc([1, 2, 3]) == 8
