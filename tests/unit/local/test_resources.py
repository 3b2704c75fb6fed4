"""Sizes in a resource."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from servepipe.errors import ServePipeError
from servepipe_operator.local.resources import cpus_for, custom_resources, declared_replicas, scaled

RESOURCE: dict[str, Any] = {
    "metadata": {"name": "diamond"},
    "spec": {
        "nodes": {
            "m1": {"import": "d:M", "replicas": 30, "resources": {"cpu": "500m", "custom": {"tpu": 1}}},
            "m2": {"import": "d:M", "autoscaling": {"maxReplicas": 20}, "resources": {"cpu": "4"}},
            "m3": {"import": "d:M"},
        },
    },
}


def test_cpus_hold_every_replica_twice() -> None:
    # 30 x 1 (Serve gives at least one to each) + 20 x 4 + 1 + the ingress
    assert cpus_for(RESOURCE, at_most=None) == 2 * (30 + 80 + 1 + 1)
    assert cpus_for(RESOURCE, at_most=1) == 64


def test_custom_resources_are_there() -> None:
    assert custom_resources(RESOURCE) == {"tpu": 1000.0}


def test_declared_replicas() -> None:
    assert declared_replicas(RESOURCE) == {"m1": 30, "m2": {"maxReplicas": 20}, "m3": None, "ingress": None}


def test_scaling_replaces_autoscaling_and_leaves_the_original() -> None:
    before = copy.deepcopy(RESOURCE)
    result = scaled(RESOURCE, {"m2": 3, "m3": 0, "ingress": 2})
    assert result["spec"]["nodes"]["m2"] == {"import": "d:M", "resources": {"cpu": "4"}, "replicas": 3}
    assert result["spec"]["nodes"]["m3"]["replicas"] == 0
    assert result["spec"]["ingress"] == {"replicas": 2}
    assert before == RESOURCE


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"m11": 1}, r"There is no node 'm11'; did you mean 'm1'\?(.|\n)*m1, m2, m3; and ingress"),
        ({"zzz": 1}, "There is no node 'zzz'\n"),
        ({"m1": -1}, "cannot have -1 replicas"),
        ({"m1": 6}, "--replicas-at-most 5"),
        ({"ingress": 0}, "at least one"),
    ],
)
def test_impossible_sizes(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ServePipeError, match=message):
        scaled(RESOURCE, sizes, at_most=5)
