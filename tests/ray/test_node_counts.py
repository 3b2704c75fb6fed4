"""The ingress counts calls by node and revision on real Ray, wherever the nodes run."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

CODE = Path(__file__).parent / "code"
NODES = ("apart", "inside")
GRAPH = {
    "steps": [
        *({"name": node, "node": node, "method": "forward", "args": [{"$input": ["x"]}]} for node in NODES),
        {
            "name": "choice",
            "switch": {
                "on": {"$input": ["do"]},
                "cases": [{"when": node, "then": {"$step": node}} for node in NODES],
            },
        },
    ],
    "output": {"$step": "choice"},
}
MODEL = "runtime_models:Model"
GOOD, BAD = 2, None
"""What models multiply by: nothing can be multiplied by the second."""


def inline(revision, factor):
    return {"revision": revision, "weight": 50, "inline": {"import": MODEL, "args": [factor], "kwargs": {}}}


@pytest.fixture(scope="module")
def serve(serve_session):
    nodes = {
        "apart": [{"revision": revision, "weight": 50} for revision in ("good", "bad")],
        "inside": [inline("good", GOOD), inline("bad", BAD)],
    }
    serve_session.deploy(
        serve_session.node("apart", MODEL, GOOD, path=CODE, revision="good"),
        serve_session.node("apart", MODEL, BAD, path=CODE, revision="bad"),
        # The attempt is not that of other tests: their ingress, which has counted already, is not to be taken over.
        serve_session.ingress(GRAPH, nodes, path=CODE, attempt=2),
    )
    return serve_session


@pytest.mark.parametrize("node", NODES)
def test_two_revisions_of_a_node_one_of_which_fails(serve, node):
    asked = 60
    with ThreadPoolExecutor(8) as pool:
        answers = Counter(pool.map(lambda x: serve.ask({"do": node, "x": x}).status, range(asked)))
    assert answers.keys() == {200, 500}  # by chance 1 of 10^18 runs fails here

    def told(name, **labels):
        return serve.metric(name, of=["ingress"], node=node, **labels)

    serve.wait_for("all calls to be told", lambda: told("servepipe_node_requests_total", by="node")[node] >= asked)
    found = {
        revision: told("servepipe_node_requests_total", by="outcome", revision=revision) for revision in ("good", "bad")
    }
    assert found == {"good": {"ok": answers[200]}, "bad": {"error": answers[500]}}
    within = {
        revision: told("servepipe_node_latency_ms_bucket_total", by="le", revision=revision) for revision in found
    }
    assert {revision: one["+Inf"] for revision, one in within.items()} == {"good": answers[200], "bad": answers[500]}
    if node == "apart":  # and so does Serve, by application
        assert serve.wait_for(
            "Serve to tell its errors",
            lambda: serve.metric("serve_deployment_error_counter_total", by="application", of=["apart--bad"]),
        ) == {"apart--bad": answers[500]}
        assert not serve.metric("serve_deployment_error_counter_total", by="application", of=["apart--good"])
    assert all(one["1000"] <= one["+Inf"] for one in within.values())
    assert told("servepipe_node_latency_ms_sum_total", by="node")[node] > 0
