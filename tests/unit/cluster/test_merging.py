"""What `servepipe apply` sends, decided from the file and the managed fields of what is there."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from servepipe_operator.cluster.fields import MISSING
from servepipe_operator.cluster.merging import MANAGER, Kept, decide

Json = dict[str, Any]


def spec(image: str = "shop:1", /, spec_fields: Json | None = None, ingress: Json | None = None, **m1: Any) -> Json:
    whole: Json = {
        "image": image,
        "graph": {"steps": [{"name": "first", "node": "m1"}], "output": {"$step": "first"}},
        "nodes": {"m1": {"import": "shop:M1", **m1}, "m2": {"import": "shop:M2"}},
        **(spec_fields or {}),
    }
    if ingress is not None:
        whole["ingress"] = ingress
    return whole


def resource(body: Json) -> Json:
    return {"apiVersion": "v", "kind": "ServePipeline", "metadata": {"name": "shop", "namespace": "ns"}, "spec": body}


def tree(value: Any) -> Json:
    """The managed fields of somebody who set all of ``value``."""
    if not isinstance(value, dict):
        return {}
    return {f"f:{key}": tree(item) for key, item in value.items()}


def live(body: Json, **owners: Json) -> Json:
    """``body`` as it is in the cluster; ``owners`` by name (``us``: servepipe apply) with what they set."""
    entries = [
        {
            "manager": MANAGER if name == "us" else name.replace("_", "-"),
            "operation": "Apply" if name == "us" else "Update",
            "fieldsV1": {"f:spec": tree(fields)},
        }
        for name, fields in owners.items()
    ]
    return {**resource(body), "metadata": {"name": "shop", "namespace": "ns", "managedFields": entries}}


def test_a_new_object_is_the_file() -> None:
    file = resource(spec())
    decision = decide(file, None)
    assert (decision.body, decision.kept, decision.handed) == (file, (), ())
    assert decision.rehearsed(decision.body) == file


def test_what_only_we_set_follows_the_file() -> None:
    there = live(spec(replicas=3), us=spec(replicas=3))
    for file in (resource(spec(replicas=5)), resource(spec())):
        assert decide(file, there).body == file
        assert decide(file, there).kept == ()


def ops(**m1: Any) -> Json:
    return {"nodes": {"m1": m1}}


def test_replicas_of_others_stay_and_are_told() -> None:
    there = live(spec(replicas=7), us=spec(), kubectl_patch=ops(replicas=7))
    decision = decide(resource(spec("shop:2", replicas=3)), there)
    assert decision.body == resource(spec("shop:2"))
    assert decision.kept == (Kept("spec.nodes.m1.replicas", 7, 3, ("kubectl-patch",)),)


def test_an_equal_value_is_said_by_both() -> None:
    there = live(spec(replicas=7), us=spec(), ops=ops(replicas=7))
    decision = decide(resource(spec(replicas=7)), there)
    assert (decision.body, decision.kept) == (resource(spec(replicas=7)), ())


def test_a_file_that_says_nothing_has_nothing_to_keep() -> None:
    there = live(spec(replicas=7), us=spec(), ops=ops(replicas=7))
    assert decide(resource(spec()), there).kept == ()


@pytest.mark.parametrize("ours", [True, False])
def test_the_file_says_replicas_where_others_went_over_to_autoscaling(ours: bool) -> None:
    auto = {"minReplicas": 1, "maxReplicas": 4}
    there = live(spec(autoscaling=auto), us=spec(replicas=3) if ours else spec(), ops=ops(autoscaling=auto))
    decision = decide(resource(spec(replicas=3)), there)
    assert decision.body == resource(spec())
    assert decision.kept == (
        Kept("spec.nodes.m1.replicas", MISSING, 3, ("ops",)),
        Kept("spec.nodes.m1.autoscaling", auto, MISSING, ("ops",)),
    )


def test_of_what_is_kept_we_go_on_saying_our_own_part() -> None:
    """Not to name it any more would remove it."""
    there = live(
        spec(autoscaling={"minReplicas": 2, "maxReplicas": 4}),
        us=spec(autoscaling={"maxReplicas": 4}),
        ops=ops(autoscaling={"minReplicas": 2}),
    )
    decision = decide(resource(spec(autoscaling={"minReplicas": 1, "maxReplicas": 8})), there)
    assert decision.body["spec"]["nodes"]["m1"] == {"import": "shop:M1", "autoscaling": {"maxReplicas": 4}}


def test_a_retry_token_of_others_does_not_hold_the_strategy() -> None:
    canary = {"strategy": "Canary", "steps": [{"weight": 10}]}
    there = live(
        spec(upgrade={"strategy": "BlueGreen", "retryToken": "x"}),
        us=spec(upgrade={"strategy": "BlueGreen"}),
        ops=ops(upgrade={"retryToken": "x"}),
    )
    decision = decide(resource(spec(upgrade={**canary, "retryToken": "y"})), there)
    assert decision.body["spec"]["nodes"]["m1"]["upgrade"] == canary
    assert [one.where for one in decision.kept] == ["spec.nodes.m1.upgrade.retryToken"]


def test_steps_of_others_hold_the_strategy_with_them() -> None:
    theirs = {"strategy": "Canary", "steps": [{"weight": 50}]}
    there = live(spec(upgrade=theirs), us=spec(), ops=ops(upgrade=theirs))
    decision = decide(resource(spec(upgrade={"strategy": "BlueGreen"})), there)
    assert "upgrade" not in decision.body["spec"]["nodes"]["m1"]


def test_suspend_paused_and_the_ingress() -> None:
    there = live(
        spec(spec_fields={"suspend": True, "paused": True}, ingress={"replicas": 5}),
        us=spec(ingress={}),
        ops={"suspend": True, "paused": True, "ingress": {"replicas": 5}},
    )
    file = resource(spec(spec_fields={"suspend": False}, ingress={"replicas": 2}))
    decision = decide(file, there)
    assert decision.body == resource(spec())
    assert [one.where for one in decision.kept] == ["spec.suspend", "spec.ingress.replicas"]


def test_taking_ownership_sends_the_file() -> None:
    there = live(spec(replicas=7), us=spec(), ops=ops(replicas=7))
    file = resource(spec(replicas=3))
    decision = decide(file, there, take_ownership=True)
    assert (decision.body, decision.kept, decision.handed) == (file, (), ())


def test_taking_ownership_takes_away_what_the_file_cannot_have_beside_it() -> None:
    auto = {"minReplicas": 1, "maxReplicas": 4}
    there = live(spec(autoscaling=auto), us=spec(), ops=ops(autoscaling=auto))
    file = resource(spec(replicas=3))
    decision = decide(file, there, take_ownership=True)
    assert decision.handed == (("spec", "nodes", "m1", "autoscaling"),)
    assert decision.body == file
    # A dry run of both together would be refused, so it is rehearsed without, and put into the answer.
    assert decision.rehearsal == resource(spec())
    assert decision.rehearsed(resource(spec(autoscaling=auto))) == file


def without(body: Json, node: str) -> Json:
    body = copy.deepcopy(body)
    del body["nodes"][node]
    return body


def test_a_node_that_left_the_file() -> None:
    file = resource(without(spec(), "m2"))
    alone = decide(file, live(spec(), us=spec()))
    assert (alone.removed, alone.handed, alone.body) == (("m2",), (), file)
    shared = decide(file, live(spec(), us=spec(), ops={"nodes": {"m2": {"replicas": 4}}}))
    assert (shared.removed, shared.handed, shared.body) == (("m2",), (("spec", "nodes", "m2"),), file)
    assert shared.rehearsal is not None
    assert shared.rehearsal["spec"]["nodes"]["m2"] == {"import": "shop:M2"}
    assert shared.rehearsed(shared.rehearsal) == file


def test_a_node_of_others_is_none_of_ours() -> None:
    theirs = {"nodes": {"m3": {"import": "theirs:M3"}}}
    body = spec()
    body["nodes"]["m3"] = {"import": "theirs:M3"}
    decision = decide(resource(spec()), live(body, us=spec(), kubectl_edit=theirs))
    assert (decision.foreign, decision.removed, decision.handed) == ((("m3", ("kubectl-edit",)),), (), ())


def test_neither_the_file_nor_the_object_is_changed() -> None:
    there = live(spec(replicas=7), us=spec(), ops=ops(replicas=7))
    file = resource(without(spec(replicas=3), "m2"))
    before = copy.deepcopy((file, there))
    decide(file, there)
    decide(file, there, take_ownership=True)
    assert (file, there) == before
