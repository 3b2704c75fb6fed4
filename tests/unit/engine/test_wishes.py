"""Which pool a revision's pods belong to, and how large they are."""

from __future__ import annotations

from typing import Any

import pytest
from small_specs import make_spec

from servepipe.api.v1alpha1 import Spec
from servepipe_operator.engine.pools import PodWish
from servepipe_operator.engine.revisions import node_identity
from servepipe_operator.engine.wishes import cluster_identity, ingress_wish, node_wish, pod_resources


def wish_of(spec: Spec) -> PodWish:
    return node_wish("m1", node_identity(spec.nodes["m1"], spec.image, ()), spec, spec.image)


@pytest.mark.parametrize(
    "node",
    [
        {"image": "acme/own:1"},
        {"env": [{"name": "A", "value": "1"}]},
        {"volumes": [{"name": "v", "mountPath": "/v", "source": {"emptyDir": {}}}]},
        {"nodeSelector": {"zone": "a"}},
        {"tolerations": [{"operator": "Exists"}]},
        {"gpuResourceName": "amd.com/gpu"},
        {"template": {"spec": {"priorityClassName": "high"}}},
        {"resources": {"gpu": 1}},
        {"resources": {"cpu": "5"}},
        {"resources": {"memory": "17Gi"}},
        {"resources": {"custom": {"licence": 1}}},
    ],
)
def test_wishes_of_its_own_give_a_pool_of_its_own(node: dict[str, Any]) -> None:
    assert wish_of(make_spec(node=node)).pool == "m1"


@pytest.mark.parametrize(
    "node",
    [
        {},
        {"resources": {"cpu": "500m", "memory": "1Gi"}},
        {"args": [1]},
        {"image": "acme/diamond:1"},
        {"runtimeEnv": {}},
    ],
)
def test_others_share_the_default_pool(node: dict[str, Any]) -> None:
    assert wish_of(make_spec(node=node)) == wish_of(make_spec())
    assert wish_of(make_spec()).pool == "default"


def test_it_shares_workers_that_have_what_it_needs() -> None:
    workers = {"resources": {"gpu": 1, "custom": {"licence": 2}}}
    node = {"resources": {"gpu": "500m", "custom": {"licence": 1}}}
    assert wish_of(make_spec(node=node, cluster={"workers": workers})).pool == "default"


@pytest.mark.parametrize("node", [{}, {"image": "acme/own:1"}])
def test_arguments_are_not_in_a_slot_and_the_service_account_is(node: dict[str, Any]) -> None:
    assert wish_of(make_spec(node={**node, "args": [1]})).digest == wish_of(make_spec(node=node)).digest
    other = make_spec(node=node, serviceAccountName="reader")
    assert wish_of(other).digest != wish_of(make_spec(node=node)).digest


def test_sizes_of_pods() -> None:
    assert pod_resources(wish_of(make_spec()).content) == {"cpu": "4", "memory": "16Gi"}
    own = make_spec(node={"image": "own", "resources": {"cpu": 0, "memory": "1Gi", "gpu": "500m"}})
    assert pod_resources(wish_of(own).content) == {"cpu": "100m", "memory": str(2 * 2**30), "gpu": "1"}
    assert pod_resources(wish_of(make_spec(node={"image": "own"})).content) == {"cpu": "1", "memory": str(4 * 2**30)}


def test_the_ingress_has_its_own_pool() -> None:
    wish = ingress_wish({"image": "i", "codes": [], "resources": {"cpu": "2"}}, make_spec())
    assert (wish.pool, wish.content) == ("ingress", {"image": "i", "replica": {"cpu": "2"}})


def test_equal_amounts_are_the_same_pods_and_the_same_head() -> None:
    def both(cpu: str, memory: str) -> Spec:
        size = {"resources": {"cpu": cpu, "memory": memory}}
        return make_spec(cluster={"workers": size, "head": size})

    one, other = both("2", "4Gi"), both("2000m", "4096Mi")
    assert wish_of(one).digest == wish_of(other).digest
    assert cluster_identity(one, "2.60.0", "i") == cluster_identity(other, "2.60.0", "i")


def test_how_a_removal_is_written_is_no_difference() -> None:
    """And it is the null that history has of pipelines whose templates had one before there was another form."""
    raw, mark = ({"spec": {"securityContext": {"runAsUser": gone}}} for gone in (None, {"$null": True}))

    def of(template: Any) -> Any:
        nodes = {"m1": {"import": "m:M", "template": template}, "m2": {"import": "m:M"}}
        cluster = {"head": {"template": template}, "workers": {"template": template}}
        spec = make_spec(nodes=nodes, cluster=cluster, image="i")
        identity = node_identity(spec.nodes["m1"], "i", ())
        other = node_wish("m2", node_identity(spec.nodes["m2"], "i", ()), spec, "i")
        head = cluster_identity(spec, "2.60.0", "i")
        return identity, node_wish("m1", identity, spec, "i").digest, other.digest, head

    assert of(raw) == of(mark)
    identity, *_, head = of(mark)
    assert identity["template"] == head["head"]["template"] == raw


def test_what_needs_another_cluster() -> None:
    same = cluster_identity(make_spec(), "2.60.0", "runtime:1")
    assert cluster_identity(make_spec(image="acme/diamond:2"), "2.60.0", "runtime:1") == same
    assert cluster_identity(make_spec(cluster={"workers": {"maxReplicas": 3}}), "2.60.0", "runtime:1") == same
    others = [
        cluster_identity(make_spec(), "2.61.0", "runtime:1"),
        cluster_identity(make_spec(), "2.60.0", "runtime:2"),
        cluster_identity(make_spec(cluster={"head": {"resources": {"cpu": 4}}}), "2.60.0", "runtime:1"),
        cluster_identity(make_spec(cluster={"gcsFaultTolerance": {"redisAddress": "r:1"}}), "2.60.0", "runtime:1"),
    ]
    assert all(other != same for other in others)
