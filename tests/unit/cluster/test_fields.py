"""Reading and handing over who set which field."""

from __future__ import annotations

from typing import Any

import pytest

from servepipe_operator.cluster.fields import MISSING, applied, handed_over, holders, leaves, value_at

OURS = {"f:spec": {"f:nodes": {"f:m1": {".": {}, "f:import": {}}, "f:m2": {".": {}, "f:import": {}}}}}
THEIRS = {
    "f:spec": {"f:suspend": {}, "f:nodes": {"f:m2": {"f:replicas": {}, "f:env": {'k:{"name":"A"}': {"f:value": {}}}}}}
}


def entry(manager: str, fields: dict[str, Any], operation: str = "Update", **more: Any) -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "fieldsType": "FieldsV1", "fieldsV1": fields, **more}


def live(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "servepipe.dev/v1alpha1", "metadata": {"managedFields": list(entries)}}


BOTH = live(entry("us", OURS, "Apply"), entry("them", THEIRS), entry("op", {"f:status": {}}, subresource="status"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("spec", "suspend"), ("them",)),
        (("spec", "nodes", "m2", "replicas"), ("them",)),
        (("spec", "nodes", "m2", "env"), ("them",)),
        (("spec", "nodes", "m2"), ("them", "us")),
        (("spec", "nodes", "m1"), ("us",)),
        (("spec", "nodes", "m3"), ()),
        (("status",), ()),
    ],
)
def test_holders_of_a_field_or_a_part_of_it(path: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert holders(BOTH, path) == expected
    assert holders(BOTH, path, apart_from="us") == tuple(name for name in expected if name != "us")
    assert applied(BOTH, path, "us") == ("us" in expected)


def test_what_we_did_otherwise_than_by_apply_counts_as_anothers() -> None:
    obj = live(entry("us", THEIRS, "Update"))
    assert holders(obj, ("spec", "suspend"), apart_from="us") == ("us",)
    assert not applied(obj, ("spec", "suspend"), "us")


def test_handing_over_moves_only_what_is_named() -> None:
    mine, theirs, operators = handed_over(BOTH, [("spec", "nodes", "m2")], "us")
    assert theirs["fieldsV1"] == {"f:spec": {"f:suspend": {}}}
    m2 = {".": {}, "f:import": {}, "f:replicas": {}, "f:env": {'k:{"name":"A"}': {"f:value": {}}}}
    assert mine["fieldsV1"]["f:spec"]["f:nodes"] == {"f:m1": {".": {}, "f:import": {}}, "f:m2": m2}
    assert operators == BOTH["metadata"]["managedFields"][2]
    assert BOTH["metadata"]["managedFields"][1]["fieldsV1"] == THEIRS, "the object itself stays as it is"


def test_handing_over_to_who_never_applied_makes_an_entry_and_drops_empty_ones() -> None:
    (mine,) = handed_over(live(entry("them", {"f:spec": {"f:suspend": {}}})), [("spec", "suspend")], "us")
    assert (mine["manager"], mine["operation"]) == ("us", "Apply")
    assert mine["apiVersion"] == "servepipe.dev/v1alpha1"
    assert mine["fieldsV1"] == {"f:spec": {"f:suspend": {}}}


def test_values_and_leaves() -> None:
    value = {"a": {"b": 1, "c": [{"d": 2}], "e": {}}, "f": None}
    assert list(leaves(value)) == [(("a", "b"), 1), (("a", "c"), [{"d": 2}]), (("a", "e"), {}), (("f",), None)]
    assert value_at(value, ("a", "b")) == 1
    assert value_at(value, ("f",)) is None
    assert value_at(value, ("a", "x")) is MISSING
    assert value_at(None, ("a",)) is MISSING
