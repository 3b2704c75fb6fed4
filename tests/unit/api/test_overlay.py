"""Overlays: what they may change, how they merge, and what they say about mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from servepipe import api
from servepipe.api.v1alpha1 import ServePipeline


def merged(diamond: ServePipeline, spec: Any) -> dict[str, Any]:
    content: dict[str, Any] = api.merge(diamond, {"spec": spec}).to_json()["spec"]
    return content


def test_nodes_are_merged_by_name_and_field(diamond: ServePipeline) -> None:
    got = merged(diamond, {"image": "x:2", "nodes": {"m1": {"replicas": 7, "resources": {"cpu": "2"}}}})
    assert got["image"] == "x:2"
    assert got["nodes"]["m1"]["replicas"] == 7
    assert got["nodes"]["m1"]["resources"] == {"cpu": "2", "memory": "1Gi", "gpu": "1"}
    assert got["nodes"]["m1"]["args"] == [1]
    assert list(got["nodes"]) == ["m1", "m2", "ensemble"]


def test_a_null_in_a_template_takes_a_field_out_of_the_file_else_out_of_the_pods(diamond: ServePipeline) -> None:
    mark = {"$null": True}
    given = {"spec": {"securityContext": {"runAsUser": 5, "fsGroup": 6}, "hostname": "x"}}
    first = api.merge(diamond, {"spec": {"nodes": {"m1": {"template": given}}}})
    change = {"spec": {"securityContext": {"runAsUser": None, "runAsGroup": None}, "subdomain": None}}

    there = merged(first, {"nodes": {"m1": {"template": change}}})["nodes"]["m1"]["template"]["spec"]
    assert there == {"hostname": "x", "securityContext": {"fsGroup": 6, "runAsGroup": mark}, "subdomain": mark}
    absent = merged(diamond, {"nodes": {"m1": {"template": change}}})["nodes"]["m1"]["template"]["spec"]
    assert absent == {"securityContext": {"runAsUser": mark, "runAsGroup": mark}, "subdomain": mark}
    gone = merged(first, {"nodes": {"m1": {"template": {"spec": {"securityContext": mark}}}}})
    assert gone["nodes"]["m1"]["template"]["spec"] == {"hostname": "x", "securityContext": mark}
    assert "template" not in merged(first, {"nodes": {"m1": {"template": None}}})["nodes"]["m1"]


def test_later_overlays_win(diamond: ServePipeline) -> None:
    first = api.merge(diamond, {"spec": {"nodes": {"m1": {"replicas": 7}, "m2": {"replicas": 5}}}})
    second = api.merge(first, {"spec": {"nodes": {"m1": {"replicas": 8}}}})
    assert (second.spec.nodes["m1"].replicas, second.spec.nodes["m2"].replicas) == (8, 5)


def test_an_overlay_may_say_what_it_is_and_name_the_pipeline(diamond: ServePipeline) -> None:
    overlay = api.load_yaml(
        "apiVersion: servepipe.dev/v1alpha1\nkind: ServePipeline\nmetadata: {name: staging, labels: {a: b}}\n"
    )
    got = api.merge(diamond, overlay)
    assert (got.name, got.metadata.labels, got.spec) == ("staging", {"a": "b"}, diamond.spec)


def test_an_overlay_that_contradicts_itself_loses_nothing(diamond: ServePipeline) -> None:
    both = {"replicas": 2, "autoscaling": {"minReplicas": 1, "maxReplicas": 2}}
    for settings in (both, dict(reversed(both.items()))):
        found = api.problems(api.merge(diamond, {"spec": {"nodes": {"m1": settings}}}))
        assert [problem.what for problem in found] == ["replicas and autoscaling exclude each other"]


def test_null_removes_a_field(diamond: ServePipeline) -> None:
    got = merged(diamond, {"cluster": None, "nodes": {"m1": {"upgrade": None, "resources": {"gpu": None}}}, "x": None})
    assert "cluster" not in got
    assert "upgrade" not in got["nodes"]["m1"]
    assert "gpu" not in got["nodes"]["m1"]["resources"]


def test_replicas_and_autoscaling_replace_each_other(diamond: ServePipeline) -> None:
    scaled = api.merge(diamond, {"spec": {"nodes": {"m1": {"autoscaling": {"maxReplicas": 4}}}}})
    assert scaled.spec.nodes["m1"].replicas is None
    fixed = api.merge(
        scaled, {"spec": {"nodes": {"m1": {"replicas": 2}}, "ingress": {"autoscaling": {"maxReplicas": 4}}}}
    )
    assert fixed.spec.nodes["m1"].autoscaling is None
    assert fixed.spec.ingress is not None
    assert fixed.spec.ingress.replicas is None


def test_lists_of_named_entries_are_merged_and_others_replaced(diamond: ServePipeline) -> None:
    base = api.merge(
        diamond,
        {
            "spec": {
                "nodes": {
                    "m1": {
                        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                        "volumes": [{"name": "v", "mountPath": "/v", "source": {"emptyDir": {}}}],
                        "tolerations": [{"key": "a"}],
                    }
                }
            }
        },
    )
    got = merged(
        base,
        {
            "nodes": {
                "m1": {
                    "env": [{"name": "B", "valueFrom": {"fieldRef": {}}}, {"name": "C", "value": "3"}],
                    "volumes": [{"name": "v", "mountPath": "/w"}],
                    "tolerations": [{"key": "b"}],
                    "args": [9],
                }
            }
        },
    )["nodes"]["m1"]
    assert got["env"] == [
        {"name": "A", "value": "1"},
        {"name": "B", "valueFrom": {"fieldRef": {}}},
        {"name": "C", "value": "3"},
    ]
    assert got["volumes"] == [{"name": "v", "mountPath": "/w", "source": {"emptyDir": {}}}]
    assert (got["tolerations"], got["args"]) == ([{"key": "b"}], [9])


def test_free_form_objects_are_merged_by_their_top_level_keys(diamond: ServePipeline) -> None:
    base = api.merge(diamond, {"spec": {"nodes": {"m1": {"userConfig": {"a": {"x": 1}, "b": 2, "d": 0}}}}})
    got = merged(base, {"nodes": {"m1": {"userConfig": {"a": {"$float": "1.0"}, "c": 3, "d": None}}}})
    assert got["nodes"]["m1"]["userConfig"] == {"a": {"$float": "1.0"}, "b": 2, "c": 3}
    got = merged(base, {"nodes": {"m1": {"userConfig": {"$value": {"$a": 1}}}}})
    assert got["nodes"]["m1"]["userConfig"] == {"$value": {"$a": 1}}


def test_an_object_may_take_the_place_of_nothing(diamond: ServePipeline) -> None:
    got = merged(diamond, {"nodes": {"m2": {"resources": {"cpu": 2}, "kwargs": {"a": 1}, "env": []}}})
    assert got["nodes"]["m2"]["resources"] == {"cpu": "2"}
    assert got["nodes"]["m2"]["kwargs"] == {"a": 1}


@pytest.mark.parametrize(
    ("overlay", "wanted"),
    [
        (None, "expected an overlay"),
        ([], "expected an overlay"),
        ({"kind": "Deployment"}, "kind: expected ServePipeline, not 'Deployment'"),
        ({"apiVersion": "v1"}, "apiVersion: expected servepipe.dev/v1alpha1, not 'v1'"),
        ({"nodes": {}}, "unknown field 'nodes'"),
        ({"spec": []}, "spec: expected an object, not a list"),
        ({"spec": None}, "spec: expected an object, not null"),
        ({"spec": {"graph": {}}}, "spec.graph: an overlay cannot change the graph"),
        ({"spec": {"nodes": []}}, "spec.nodes: expected an object, not a list"),
        ({"spec": {"nodes": {"m11": {}}}}, "spec.nodes.m11: the pipeline has no node 'm11'\n  Did you mean \"m1\"?"),
        ({"spec": {"nodes": {"m1": None}}}, "spec.nodes.m1: expected an object, not null"),
        ({"spec": {"nodes": {"m1": {"replicsa": 3}}}}, "spec.nodes.m1: unknown field 'replicsa'"),
        ({"spec": {"nodes": {"m1": {"env": [3]}}}}, "spec.nodes.m1.env[0]: expected an object, not 3"),
        ({"spec": {"nodes": {"m1": {"import": None}}}}, 'spec.nodes.m1: the field "import" is missing'),
    ],
)
def test_mistakes_are_named(overlay: Any, wanted: str, diamond: ServePipeline) -> None:
    with pytest.raises(api.InvalidResourceError) as caught:
        api.merge(diamond, overlay)
    assert wanted in str(caught.value)


def test_an_entry_without_a_name_is_named_where_it_stands_in_the_result(diamond: ServePipeline) -> None:
    base = api.merge(diamond, {"spec": {"nodes": {"m1": {"env": [{"name": "A", "value": "1"}]}}}})
    with pytest.raises(api.InvalidResourceError, match=r"spec.nodes.m1.env\[1\]: expected an object, not 3"):
        api.merge(base, {"spec": {"nodes": {"m1": {"env": [3]}}}})
