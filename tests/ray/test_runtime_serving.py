"""A graph on real Ray Serve: over HTTP, by handle and over gRPC."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def diamond(serve_session):
    s = serve_session
    s.deploy(
        s.node("m1", "runtime_models:Model", 1, path=CODE),
        s.node("m2", "runtime_models:Model", 2, path=CODE),
        s.node("ensemble", "runtime_models:ensemble", path=CODE),
        s.ingress(DIAMOND, {"m1": "r1", "m2": "r1", "ensemble": "r1"}, path=CODE),
    )
    return s


def test_the_diamond_answers_over_http(diamond):
    answer = diamond.ask([1, 2, 3])
    assert (answer.status, answer.json) == (200, 8)


def test_the_diamond_answers_by_handle(diamond):
    from servepipe.runtime.serve_caller import ingress_handle

    assert ingress_handle().remote(1, 2, 3).result(timeout_s=30) == 8


def test_the_diamond_answers_over_grpc(diamond):
    assert diamond.ask_grpc([1, 2, 3]) == 8
