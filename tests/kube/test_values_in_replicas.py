"""Values that were bound arrive in the replica: through a file, kubectl, the API server, the operator and Serve."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pipelines import Json, Pipelines
from random_values import NAMES, VALUES, exactly

from servepipe import api
from servepipe.graph.wire import decode_value, encode_value
from servepipe.runtime.arguments import constructor_arguments

Bound = dict[str, Any]
#: Of each pipeline; all are brought up, and replaced, at once.
NODES = 30
MANY = st.lists(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3), min_size=NODES, max_size=NODES)
SETTINGS = settings(
    deadline=None,
    max_examples=1,  # of 30 nodes with several values each, created and updated in two ways
    phases=[Phase.generate],  # shrinking would start pipelines for minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


def written(pipelines: Pipelines, name: str, nodes: list[Bound]) -> str:
    """The file in which each node has these values as args, kwargs and userConfig."""
    resource = pipelines.resource(
        name,
        {
            f"n{number}": {
                "import": "models:Model",
                # The first argument tells the simulated Serve how the node behaves.
                "args": ["good", *(None if value is None else encode_value(value, "x") for value in values.values())],
                "kwargs": {key: encode_value(value, "x") for key, value in values.items()},
                "userConfig": encode_value(values, "x"),
            }
            for number, values in enumerate(nodes)
        },
        maxConcurrentUpgrades=NODES,
    )
    return api.write(api.validate(resource))


def arrived(config: Json) -> dict[str, Any]:
    """What the constructors and reconfigure() of the replicas are given, by node."""
    found = {}
    for application in config["applications"]:
        if application["name"] != "ingress":
            positional, keywords = constructor_arguments(application["args"], handle)
            own = application["deployments"][0]["user_config"]["userConfig"]
            found[application["args"]["node"]] = (positional[1:], keywords, decode_value(own))
    return found


def handle(node: str) -> Any:
    raise AssertionError(f"{node} is no node")


@pytest.mark.parametrize("server_side", [False, True], ids=["plain", "server-side"])
def test_the_replica_gets_what_was_bound(pipelines: Pipelines, server_side: bool) -> None:
    @SETTINGS
    @given(MANY, MANY)
    def check(first: list[Bound], second: list[Bound]) -> None:
        for nodes in (first, second):
            pipelines.apply_text(written(pipelines, "values", nodes), server_side=server_side)
            pipelines.wait_settled("values", timeout=180)
            last = pipelines.kuberay.last_puts(pipelines.namespace, pipelines.cluster("values"))[-1]
            got = arrived(json.loads(json.dumps(last.config)))
            for number, values in enumerate(nodes):
                assert exactly(got[f"n{number}"]) == exactly((list(values.values()), values, values))

    check()
