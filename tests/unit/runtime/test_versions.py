"""A replica knows whether it runs what its application was built with."""

from __future__ import annotations

from typing import Any

import pytest

import servepipe
from servepipe.errors import RuntimeMismatchError
from servepipe.runtime import versions

ARGS = {"node": "m1"}


@pytest.fixture
def in_head(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"NodeID": "h", "Resources": {"CPU": 1.0, "node:__internal_head__": 1.0}},
        {"NodeID": "w", "Resources": {"CPU": 1.0}},
    ]
    monkeypatch.setattr(versions.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(versions.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(versions.ray, "get_runtime_context", lambda: Context("h"))


class Context:
    def __init__(self, node: str) -> None:
        self._node = node

    def get_node_id(self) -> str:
        return self._node


@pytest.mark.usefixtures("in_head")
def test_the_same_versions_are_fine() -> None:
    args = versions.built_with(ARGS)
    assert args[versions.RUNTIME]["servepipe"] == servepipe.__version__
    versions.verify(args)
    assert ARGS == {"node": "m1"}


@pytest.mark.usefixtures("in_head")
@pytest.mark.parametrize(("module", "name"), [(servepipe, "servepipe"), (versions.ray, "ray")])
def test_another_version_is_refused_and_both_are_named(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    args, before = versions.built_with(ARGS), module.__version__
    monkeypatch.setattr(module, "__version__", "9.8.7")
    with pytest.raises(RuntimeMismatchError) as caught:
        versions.verify(args)
    assert str(caught.value).startswith(
        f"this replica has {name} 9.8.7, Ray's head has {name} {before}: build its image"
    )
    assert "\n" not in str(caught.value), "a status has one line for it"


@pytest.mark.usefixtures("in_head")
def test_what_was_built_elsewhere_or_by_an_older_version_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions.ray, "get_runtime_context", lambda: Context("w"))
    assert versions.built_with(ARGS) == ARGS
    versions.verify(ARGS)
    versions.verify({**ARGS, versions.RUNTIME: {}})
