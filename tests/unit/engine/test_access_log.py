"""Whose requests are logged one by one: a setting in place."""

from __future__ import annotations

from typing import Any

from simulated_world import World, node, resource


def pipeline(*, m1: bool = False, ingress: bool = False) -> Any:
    nodes = {"m1": node("good", accessLog=m1), "m2": node("good")}
    return resource(nodes, steps=["m1", "m2"], ingress={"accessLog": ingress})


def logged(world: World) -> set[str]:
    """The applications whose replicas log each request."""
    return {
        name.partition("--")[0]
        for name, application in world.serve.applications.items()
        if application.deployment["logging_config"]["enable_access_log"]
    }


def test_nothing_is_logged_that_nobody_asked_for() -> None:
    world = World()
    world.settle(pipeline())
    assert logged(world) == set()


def test_it_is_switched_in_place_one_by_one() -> None:
    world = World()
    world.settle(pipeline())
    names = sorted(world.serve.applications)
    replicas = {name: application.replicas for name, application in world.serve.applications.items()}
    world.settle(pipeline(m1=True))
    assert logged(world) == {"m1"}
    world.settle(pipeline(m1=True, ingress=True))
    assert logged(world) == {"m1", "ingress"}
    world.settle(pipeline(ingress=True))
    assert logged(world) == {"ingress"}
    assert sorted(world.serve.applications) == names
    assert {name: application.replicas for name, application in world.serve.applications.items()} == replicas
