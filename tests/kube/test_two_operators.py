"""The leader is stopped in the middle of an upgrade, another operator finishes it, and the first is continued."""

from __future__ import annotations

import pytest
from bed.audit import told, writes
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from end_state import end_state
from kuberay.control import KubeRay
from operator_process import OperatorProcess, StartOperator
from pipelines import ENV, Pipelines

NAMES = ("one", "two")


@pytest.fixture
def two(
    control_plane: ControlPlane, kuberay: KubeRay, namespace: str, start_operator: StartOperator
) -> tuple[Pipelines, OperatorProcess, OperatorProcess]:
    """Two pipelines that are Ready, the operator that leads, and one that waits for the Lease."""
    first = start_operator(namespace, namespaces=[namespace], env=ENV)
    first.wait_ready()
    second = start_operator(namespace, namespaces=[namespace], env=ENV)
    second.wait_ready(leading=False)
    pipelines = Pipelines(control_plane, kuberay, namespace, first)
    for name in NAMES:
        pipelines.apply(pipelines.resource(name, {"m1": ["good", 0], "m2": ["good"]}))
    for name in NAMES:
        pipelines.wait_settled(name)
    return pipelines, first, second


def test_a_leader_that_was_stopped_in_an_upgrade_sends_and_writes_nothing_any_more(
    two: tuple[Pipelines, OperatorProcess, OperatorProcess], control_plane: ControlPlane
) -> None:
    pipelines, first, second = two
    puts = _puts(pipelines)
    # Undisturbed, for comparison: there.
    _upgrade(pipelines, 1)
    there = {name: end_state(pipelines, name) for name in NAMES}
    most = {name: count - puts[name] for name, count in _puts(pipelines).items()}
    _upgrade(pipelines, 0)

    # There again. The first PUT of each is the candidate's, with several more to come.
    puts = _puts(pipelines)
    _ask(pipelines, 1)
    wait_for("a first PUT", lambda: any(count > puts[name] for name, count in _puts(pipelines).items()), 30, first.tail)
    first.freeze()
    try:
        pipelines.operator = second
        for name in NAMES:
            pipelines.wait_settled(name)
        ends = {name: end_state(pipelines, name) for name in NAMES}
        finished = _puts(pipelines)
        assert ends == there
        for name in NAMES:
            assert ends[name]["problems"] == []
            assert finished[name] - puts[name] <= most[name] + 1, "at most the PUT under way comes twice"
        second.wait_for_message("this process leads")
        versions = {name: pipelines.get(name)["metadata"]["resourceVersion"] for name in NAMES}
        before = control_plane.audit_log.end()
    finally:
        first.thaw()

    assert first.wait_exit() == 3
    assert first.messages("the Lease is lost")
    assert told(writes(control_plane.audit(first.user, before))) == []
    assert _puts(pipelines) == finished
    assert {name: pipelines.get(name)["metadata"]["resourceVersion"] for name in NAMES} == versions
    # It comes back as a candidate, and nothing is left for it to do.
    mark = control_plane.audit_log.end()
    first.start()
    first.wait_ready(leading=False)
    wait_for("it to say who leads", lambda: f"is held by {second.name}_" in first.ready()[1], 30, first.tail)
    assert told(writes(control_plane.audit(first.user, mark))) == []
    second.must_run()


def _ask(pipelines: Pipelines, number: int) -> None:
    for name in NAMES:
        pipelines.patch(name, nodes={"m1": {"args": ["good", number]}})


def _upgrade(pipelines: Pipelines, number: int) -> None:
    _ask(pipelines, number)
    for name in NAMES:
        pipelines.wait_settled(name)


def _puts(pipelines: Pipelines) -> dict[str, int]:
    return {name: pipelines.kuberay.puts(pipelines.namespace, pipelines.cluster(name)) for name in NAMES}
