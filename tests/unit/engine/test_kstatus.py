"""What kstatus, and with it Flux, Argo CD and kpt, makes of a pipeline, for every reason that the operator can give.

Stories are played on the engine, the status of every look is recorded, and all of them are judged. A reason that is
new in the code fails here until it has a verdict and a story in which it appears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from argocd import health
from kstatus import Verdict, kstatus
from reasons import problems_in_the_code, reasons_in_the_code
from simulated_cluster import ClusterWorld
from simulated_world import node, resource

from servepipe.api.problem import Problem
from servepipe.api.v1alpha1 import ServePipeline
from servepipe_operator.adapters.kube_errors import Forbidden, Invalid, NamespaceTerminating, NotFound, QuotaExceeded
from servepipe_operator.adapters.refusals import problem_of
from servepipe_operator.adapters.revision_history import RecordError
from servepipe_operator.engine.history import HistoryError
from servepipe_operator.engine.plan import refused_status
from servepipe_operator.engine.state import ClusterProblem, Json, Plan
from servepipe_operator.ports import ServeRejectedError

Said = Iterator[Json]

#: By the reason of the condition that decides: Stalled, else Reconciling, else Ready.
VERDICTS: dict[str, Verdict] = {
    "Ready": "Current",
    # It goes on by itself.
    "Applying": "InProgress",
    "ChangingGraph": "InProgress",
    "Creating": "InProgress",
    "Deleting": "InProgress",
    "Draining": "InProgress",
    "HeadPodNotReady": "InProgress",
    "IngressNotReady": "InProgress",
    "IngressWaits": "InProgress",
    "InsufficientCapacity": "InProgress",
    "NoAnswer": "InProgress",
    "NodesNotAnswering": "InProgress",
    "NodesNotReady": "InProgress",
    "NotStarted": "InProgress",
    "PodsNotReady": "InProgress",
    "PreviousDeletionPending": "InProgress",
    "ReplacingIngress": "InProgress",
    "Starting": "InProgress",
    "Suspended": "InProgress",
    "Unreachable": "InProgress",
    "Upgrading": "InProgress",
    "WaitingForKubeRay": "InProgress",
    # Somebody has to do something.
    "BuildFailed": "Failed",
    "ClusterReplacementRequired": "Failed",
    "ConfigurationRefused": "Failed",
    "FailedCreateHeadPod": "Failed",
    "FailedCreateWorkerPod": "Failed",
    "FailedDeleteAllPods": "Failed",
    "FailedDeleteHeadPod": "Failed",
    "FailedDeleteWorkerPod": "Failed",
    "Forbidden": "Failed",
    "HistoryTooLarge": "Failed",
    "HistoryUnreadable": "Failed",
    "TooLarge": "Failed",
    "InvalidRayCluster": "Failed",
    "InvalidSpec": "Failed",
    "KindMissing": "Failed",
    "KubeRayMissing": "Failed",
    "NameTaken": "Failed",
    "NamespaceTerminating": "Failed",
    "ProgressDeadlineExceeded": "Failed",
    "QuotaExceeded": "Failed",
    "RayVersionMismatch": "Failed",
    "Refused": "Failed",
    "ReplicaFailed": "Failed",
    "RuntimeMismatch": "Failed",
    "ReplicaFailure": "Failed",
    "ServeRejected": "Failed",
    "TokenMissing": "Failed",
    "TokenRefused": "Failed",
}
#: It says the same as Ready of a condition that never decides, or decides once this way and once that way.
BESIDE = frozenset({"Accepted", "Answering", "NodesReady", "NotAccepted", "Running"})
BOTH = frozenset({"RoutingNotAcknowledged"})


class Recorder(ClusterWorld):
    """A world that keeps the status of every look."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.said: list[Json] = []

    def look(self, pipeline: ServePipeline) -> Plan | None:
        plan = super().look(pipeline)
        if plan is not None:
            self.said.append(plan.status)
        return plan


def two(**m1: Any) -> ServePipeline:
    return resource({"m1": node("good", **m1), "m2": node("good")}, progressDeadlineSeconds=60)


def ready(**more: Any) -> Recorder:
    world = Recorder(**more)
    world.settle(two())
    return world


# --- Stories ----------------------------------------------------------------------------------------------------------


def changes() -> Said:
    world = ready()
    for pipeline in (
        two(userConfig={"a": 1}),
        resource({"m1": node("good", 2), "m2": node("good")}),
        resource({"m1": node("good", 2), "m3": node("good")}),
        resource({"m1": node("good", 2), "m3": node("good")}, preprocessor="m:f"),
        resource(
            {"m1": node("good", 2), "m3": node("good")}, preprocessor="m:f", preprocessor_code="sha256:" + "b" * 64
        ),
    ):
        world.settle(pipeline)
    # Without an empty worker group the next ingress has to wait.
    world.cluster.stuck_pods = dict.fromkeys(("ingress-a", "ingress-b", "ingress-c"), 1)
    for number in (2, 3, 4):
        world.run(resource({"m1": node("good", 2), "m3": node("good")}, ingress={"template": tagged(number)}), 60)
    yield from world.said


def tagged(number: int) -> Json:
    return {"metadata": {"annotations": {"number": str(number)}}}


def failures() -> Said:
    for how in ("build-fails", "crashes", "mismatches", "hangs"):
        world = ready()
        world.run(resource({"m1": node(how), "m2": node("good")}, progressDeadlineSeconds=60), 120)
        yield from world.said
    world = ready()
    world.run(two(userConfig={"refused": True}), 60)
    yield from world.said


def an_inline_node_that_cannot_be_built() -> Said:
    world = Recorder()
    world.settle(resource({"m1": node("good"), "f": {"import": "m:f", "placement": "Inline"}}))
    broken = {"import": "m:f", "placement": "Inline", "kwargs": {"a": "build-fails"}}
    world.run(resource({"m1": node("good"), "f": broken}), 60)
    yield from world.said


def outages() -> Said:
    world = ready()
    world.serve.kill_replica("ingress")
    world.run(two(), 30)
    (name,) = world.node_applications("m1")
    world.serve.stuck.add(name)
    world.serve.kill_replica(name)
    world.run(two(), 90, requests=False)
    yield from world.said
    for call in ("applications", "ready"):
        world = ready()
        world.fault = lambda asked, call=call: "unreachable" if asked == call else ""
        world.run(two(), 10)
        yield from world.said


def a_replica_that_takes_no_table() -> Said:
    world = ready()
    replica = world.serve.applications["ingress"].replicas[0].id
    world.serve.deaf.add(replica)
    world.run(resource({"m1": node("good", 2), "m2": node("good")}, progressDeadlineSeconds=60), 120)
    yield from world.said


def no_room() -> Said:
    world = Recorder(cpus=2.0)
    world.run(resource({"m1": node("good", resources={"cpu": "4"})}), 30)
    yield from world.said


def a_put_that_serve_refuses() -> Said:
    world = ready()

    def refuse(config: Json) -> None:
        raise ServeRejectedError("no")

    world.serve.put = refuse  # type: ignore[method-assign]
    world.run(resource({"m1": node("good", 2), "m2": node("good")}), 10)
    yield from world.said


def suspension() -> Said:
    world = ready()
    world.run(resource({"m1": node("good"), "m2": node("good")}, suspend=True), 120)
    yield from world.said


def refusals() -> Said:
    world = ready()
    world.run(resource({"m1": node("good"), "m2": node("good")}, rayVersion="2.61.0"), 10)
    world.run(resource({"m1": node("good"), "m2": node({"$input": [0]})}), 10)
    yield from world.said
    yield refused_status([Problem("spec.nodes", "is no map")], {}, 0.0, 1)
    world = Recorder()
    world.run(resource({"m1": node("good")}, rayVersion="2.40.0"), 10)
    yield from world.said


def problems_of_the_cluster() -> Said:
    for reason, stalled in problems_in_the_code().items():
        for blocking in (True, False):
            world = ready()
            world.cluster.problem = ClusterProblem(reason, "is so", stalled, blocking)
            world.run(two(), 4)
            yield from world.said[-1:]
            world = ready()
            world.cluster.troubles = (ClusterProblem(reason, "is so", stalled, blocking),)
            world.run(two(), 4)
            yield from world.said[-1:]


def refusals_of_the_api_server() -> Said:
    missing = NotFound("no", 404)
    missing.kind_missing = True
    errors = (Forbidden("no", 403), QuotaExceeded("no", 403), NamespaceTerminating("no", 403), Invalid("no", 422))
    for error in (*errors, Invalid("no", 413), missing, RecordError("no"), HistoryError("no")):
        world = ready()
        world.cluster.troubles = (problem_of(error),)
        world.run(two(), 4)
        yield from world.said[-1:]


STORIES: tuple[Callable[[], Said], ...] = (
    changes,
    failures,
    an_inline_node_that_cannot_be_built,
    outages,
    a_replica_that_takes_no_table,
    no_room,
    a_put_that_serve_refuses,
    suspension,
    refusals,
    problems_of_the_cluster,
    refusals_of_the_api_server,
)


# --- What is made of them ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded() -> list[Json]:
    return [status for story in STORIES for status in story()]


def deciding(status: Json) -> str:
    """The reason of the condition by which kstatus decides."""
    conditions = {one["type"]: one for one in status["conditions"]}
    return str((conditions.get("Stalled") or conditions.get("Reconciling") or conditions["Ready"])["reason"])


def verdict(status: Json) -> Verdict:
    generation = status.get("observedGeneration", 1)
    return kstatus({"metadata": {"generation": generation}, "status": status})


def test_every_reason_in_the_code_has_a_verdict_and_a_story(recorded: list[Json]) -> None:
    assert reasons_in_the_code() == VERDICTS.keys() | BESIDE | BOTH
    said = {one["reason"] for status in recorded for one in status["conditions"]}
    assert reasons_in_the_code() - said == set(), "no story tells of these"
    assert said - reasons_in_the_code() == set(), "these are not found in the code"


def test_kstatus_makes_of_every_reason_what_it_means(recorded: list[Json]) -> None:
    wrong = {
        (deciding(status), verdict(status))
        for status in recorded
        if deciding(status) not in BOTH and verdict(status) != VERDICTS.get(deciding(status))
    }
    assert not wrong


def test_every_verdict_that_is_promised_is_seen(recorded: list[Json]) -> None:
    seen = {deciding(status) for status in recorded}
    # What other conditions say first decides never alone.
    never = {reason for reason, expected in VERDICTS.items() if expected == "Failed"} - seen
    assert not never


def test_current_means_that_callers_get_what_the_spec_asks_for(recorded: list[Json]) -> None:
    for status in recorded:
        if verdict(status) == "Current":
            conditions = {one["type"]: one["status"] for one in status["conditions"]}
            # A pod that nothing needs may be in trouble.
            conditions.pop("ClusterReady")
            assert conditions == dict.fromkeys(("Accepted", "NodesReady", "Available", "Ready"), "True")


def test_a_status_of_an_older_generation_is_no_verdict(recorded: list[Json]) -> None:
    for status in recorded:
        if "observedGeneration" in status:
            later = {"metadata": {"generation": status["observedGeneration"] + 1}, "status": status}
            assert kstatus(later) == "InProgress"


def test_argo_cd_sees_what_kstatus_sees_and_tells_what_is_suspended(recorded: list[Json]) -> None:
    same = {"Current": "Healthy", "InProgress": "Progressing", "Failed": "Degraded"}
    suspended = set()
    for status in recorded:
        live = {"metadata": {"generation": status.get("observedGeneration", 1)}, "status": status}
        seen, message = health(live)
        assert message.startswith(f"{deciding(status)}: ")
        if seen == "Suspended":
            suspended.add(deciding(status))
        else:
            assert seen == same[verdict(status)], status["conditions"]
    assert suspended == {"Suspended"}
