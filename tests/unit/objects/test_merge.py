"""Raw pod templates: what is merged by which key."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from servepipe_operator.objects.merge import merge_template, template_problems

_NAMES = st.sampled_from(["a", "b", "c"])
_SCALARS = st.none() | st.integers(0, 2) | _NAMES
_ENV = st.fixed_dictionaries({"name": _NAMES}, optional={"value": _NAMES, "valueFrom": st.just({"fieldRef": {}})})
_PORTS = st.fixed_dictionaries(
    {"containerPort": st.integers(1, 2)}, optional={"protocol": st.sampled_from(["TCP", "UDP"])}
)
_CONTAINERS = st.fixed_dictionaries(
    {"name": _NAMES},
    optional={
        "image": _SCALARS,
        "env": st.lists(_ENV, max_size=3),
        "ports": st.lists(_PORTS, max_size=3),
        "args": st.lists(_NAMES, max_size=2),
        "resources": st.dictionaries(_NAMES, st.dictionaries(_NAMES, _SCALARS, max_size=2), max_size=2),
    },
)
_TEMPLATES = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.none() | st.dictionaries(_NAMES, _SCALARS, max_size=2),
        "containers": st.none() | st.lists(_CONTAINERS, max_size=3),
        "tolerations": st.lists(st.dictionaries(_NAMES, _NAMES, max_size=1), max_size=2),
        "volumes": st.lists(st.one_of(st.fixed_dictionaries({"name": _NAMES}), st.just({})), max_size=2),
    },
)


@given(_TEMPLATES, _TEMPLATES)
def test_merging_twice_is_merging_once(base: Any, template: Any) -> None:
    once = merge_template(base, template)
    assert merge_template(once, template) == once


@given(_TEMPLATES)
def test_an_empty_template_changes_nothing(base: Any) -> None:
    assert merge_template(base, {}) == base


@given(st.lists(_CONTAINERS, min_size=1, max_size=3), st.lists(_CONTAINERS, max_size=3))
def test_the_first_container_stays_the_first(base: Any, template: Any) -> None:
    merged = merge_template({"containers": base}, {"containers": template})
    assert merged["containers"][0]["name"] == base[0]["name"]


def test_each_list_by_its_key() -> None:
    base = {
        "containers": [
            {"name": "ray", "image": "i", "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 1}]}
        ],
        "volumes": [{"name": "v", "emptyDir": {}}],
        "tolerations": [{"key": "x"}],
    }
    template = {
        "containers": [
            {
                "name": "ray",
                "env": [{"name": "A", "valueFrom": {"fieldRef": {}}}, {"name": "B", "value": "2"}],
                "ports": [
                    {"containerPort": 1, "protocol": "TCP", "name": "p"},
                    {"containerPort": 1, "protocol": "UDP"},
                ],
            },
            {"name": "side"},
        ],
        "volumes": [{"name": "v", "configMap": {"name": "c"}}],
        "tolerations": [{"key": "y"}],
    }
    assert merge_template(base, template) == {
        "containers": [
            {
                "name": "ray",
                "image": "i",
                "env": [{"name": "A", "valueFrom": {"fieldRef": {}}}, {"name": "B", "value": "2"}],
                "ports": [
                    {"containerPort": 1, "protocol": "TCP", "name": "p"},
                    {"containerPort": 1, "protocol": "UDP"},
                ],
            },
            {"name": "side"},
        ],
        "volumes": [{"name": "v", "configMap": {"name": "c"}}],
        "tolerations": [{"key": "y"}],
    }
    assert base["volumes"] == [{"name": "v", "emptyDir": {}}]


def test_what_cannot_be_merged_is_named() -> None:
    template = {
        "spec": {
            "$patch": "replace",
            "containers": [{"image": "i"}, 7, {"name": "c", "ports": [{"name": "p"}, {"containerPort": 1}]}],
        }
    }
    assert [problem.partition(":")[0] for problem in template_problems(template)] == [
        "template.spec.$patch",
        "template.spec.containers[0]",
        "template.spec.containers[1]",
        "template.spec.containers[2].ports[0]",
    ]
