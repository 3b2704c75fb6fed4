"""Refusals of a real API server that it calls errors of its own (HTTP 500), and what becomes of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from bed.control_plane import ControlPlane

from servepipe.api import validate
from servepipe_operator.adapters.dry_runs import refusals
from servepipe_operator.adapters.kube import Kube
from servepipe_operator.adapters.kube_access import login
from servepipe_operator.adapters.kube_errors import Invalid
from servepipe_operator.adapters.kube_resource import RAYCLUSTERS
from servepipe_operator.adapters.refusals import problem_of
from servepipe_operator.objects.names import Owner


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    access = await login(str(control_plane.kubeconfig))
    async with aiohttp.ClientSession() as session:
        yield Kube(session, access)


@pytest.mark.parametrize(
    ("peer", "told"),
    [
        ({"pods": {}}, "spec.ingress.from[0].pods: field not declared in schema"),
        ({"podSelector": "x"}, "spec.ingress.from[0].podSelector: expected map"),
        ({"podSelector": {"matchLabels": {"a": 1}}}, "spec.ingress.from[0].podSelector.matchLabels.a: expected string"),
        ({}, "spec.ingress.from[0]: Required value: must specify a peer"),
        ({"ipBlock": {"cidr": "10.1.2.3"}}, "spec.ingress.from[0].ipBlock.cidr: Invalid value"),
        ({"podSelector": {}, "namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}, ""),
    ],
)
async def test_peers_are_tried_before_a_spec_is_accepted(
    kube: Kube, namespace: str, peer: dict[str, Any], told: str
) -> None:
    document = {
        "apiVersion": "servepipe.dev/v1alpha1",
        "kind": "ServePipeline",
        "metadata": {"name": "diamond"},
        "spec": {
            "graph": {"steps": [{"name": "out", "node": "m1"}], "output": {"$step": "out"}},
            "nodes": {"m1": {"import": "diamond:Model"}},
            "ingress": {"from": [peer]},
        },
    }
    found = await refusals(kube, Owner("diamond", namespace, "u", "main"), validate(document).spec, "runtime:1")
    assert [f"{problem.where}: {problem.what}"[: len(told)] for problem in found] == ([told] if told else [])


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_a_cluster_that_is_too_large_for_etcd_is_refused(kube: Kube, namespace: str) -> None:
    container = {"name": "ray", "image": "i", "env": [{"name": "X", "value": "y" * 30_000}]}
    template = {"spec": {"containers": [container]}}
    groups = [{"groupName": f"g{at}", "maxReplicas": 1, "template": template} for at in range(60)]
    body = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "large", "namespace": namespace},
        "spec": {"headGroupSpec": {"template": template}, "workerGroupSpecs": groups},
    }
    with pytest.raises(Invalid) as caught:
        await kube.create(RAYCLUSTERS, body)
    problem = problem_of(caught.value)
    assert (problem.reason, problem.stalled) == ("TooLarge", True)
    assert "fewer nodes with pods of their own" in problem.message
