"""Where nothing changes nothing is written, however often it is looked at; and looking has a price that is known."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from bed.audit import told, writes
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from kuberay.control import KubeRay
from operator_process import OperatorProcess, StartOperator
from pipelines import ENV, Pipelines

RENEW_S = 1.0
#: Everything is listed and looked at anew ten times a second, and what is kept of history is as old as that at most.
OFTEN = {
    **ENV,
    "SERVEPIPE_RESYNC_S": "0.1",
    "SERVEPIPE_STEADY_S": "0.2",
    "SERVEPIPE_API_PER_S": "1000",
    "SERVEPIPE_LEASE_RENEW_S": str(RENEW_S),
    "SERVEPIPE_LEASE_DURATION_S": "30",
}
RESYNCS = 100
#: Nothing but a watch can tell of a change within a test.
SELDOM = {**ENV, "SERVEPIPE_RESYNC_S": "600", "SERVEPIPE_STEADY_S": "600", "SERVEPIPE_LEASE_DURATION_S": "30"}
AT_ONCE_S = 30.0
#: In the middle of a change it would look ten times meanwhile.
AT_REST_S = 3.0
#: The pipelines and the six kinds of `kinds.CHILDREN`.
KINDS = {
    "servepipelines",
    "rayclusters",
    "services",
    "networkpolicies",
    "poddisruptionbudgets",
    "pods",
    "events",
}


@pytest.fixture
def settled(control_plane: ControlPlane, kuberay: KubeRay, namespace: str, start_operator: StartOperator) -> Pipelines:
    """Three pipelines, applied in two ways, of which one is turned off in part, and none has anything left to do."""
    operator = start_operator(namespace, namespaces=[namespace], env=OFTEN)
    operator.wait_ready()
    pipelines = Pipelines(control_plane, kuberay, namespace, operator)
    pipelines.apply(_plain(pipelines), server_side=False)
    pipelines.apply(_server_side(pipelines))
    pipelines.apply(pipelines.resource("off", {"m1": {"import": "m:M", "replicas": 0}, "m2": ["good"]}))
    for name in ("plain", "server-side", "off"):
        pipelines.wait_settled(name)
    return pipelines


def _plain(pipelines: Pipelines) -> dict[str, object]:
    return pipelines.resource("plain", {"m1": ["good"], "m2": ["good", 2]})


def _server_side(pipelines: Pipelines) -> dict[str, object]:
    return pipelines.resource("server-side", {"m1": {"import": "m:M", "replicas": 2}}, ingress={"replicas": 2})


def test_nothing_is_written_and_a_resync_costs_a_list_of_each_kind(
    settled: Pipelines, control_plane: ControlPlane, summary: list[str]
) -> None:
    operator, names = settled.operator, ("plain", "server-side", "off")
    before = {name: settled.get(name)["metadata"]["resourceVersion"] for name in names}
    puts = {name: settled.kuberay.puts(settled.namespace, settled.cluster(name)) for name in names}
    looks = _looks(operator)
    mark, began = control_plane.audit_log.end(), time.monotonic()

    # The same again, in both ways.
    settled.apply(_plain(settled), server_side=False)
    settled.apply(_server_side(settled))

    def resyncs() -> bool:
        operator.must_run()
        return _counts(control_plane, operator, mark)["list", "servepipelines"] >= RESYNCS

    wait_for(f"{RESYNCS} resyncs", resyncs, 180, operator.tail)
    seconds = time.monotonic() - began
    events = control_plane.audit(operator.user, mark)
    assert told(writes(events)) == []
    assert {name: settled.get(name)["metadata"]["resourceVersion"] for name in names} == before
    assert {name: settled.kuberay.puts(settled.namespace, settled.cluster(name)) for name in names} == puts
    # A resync asks for a look at each; one that is due anyway serves for both.
    assert _looks(operator) - looks >= RESYNCS * len(names) / 2

    counts = _counts(control_plane, operator, mark)
    leases = {verb: count for (verb, resource), count in counts.items() if resource == "leases"}
    assert set(leases) == {"get", "update"}
    assert max(leases.values()) <= seconds / RENEW_S + 2
    rest = {what: count for what, count in counts.items() if what[1] not in ("leases",)}
    # A list and a watch of each kind, and history of each pipeline, which is not watched.
    assert set(rest) == {(verb, kind) for verb in ("list", "watch") for kind in KINDS} | {
        ("list", "controllerrevisions")
    }
    rounds = counts["list", "servepipelines"]
    slack = max(rounds // 5, 3)
    for kind in KINDS:
        # Each kind keeps its own time.
        assert abs(counts["list", kind] - rounds) <= slack, f"lists of {kind} in {rounds} resyncs: {counts}"
        assert abs(counts["watch", kind] - rounds) <= slack, f"watches of {kind} in {rounds} resyncs: {counts}"
    assert counts["list", "controllerrevisions"] <= len(names) * (rounds + slack)
    reads = sum(rest.values()) / rounds
    summary.append(
        f"steady state: {rounds} resyncs of {len(names)} pipelines in {seconds:.0f} s without a write; each costs "
        f"{reads:.0f} reads: {2 * len(KINDS)} for the kinds, the rest for the pipelines' history"
    )


def test_a_changed_spec_is_sent_to_serve_although_the_next_look_is_far_away(
    control_plane: ControlPlane, kuberay: KubeRay, namespace: str, start_operator: StartOperator, summary: list[str]
) -> None:
    operator = start_operator(namespace, namespaces=[namespace], env=SELDOM)
    operator.wait_ready()
    pipelines = Pipelines(control_plane, kuberay, namespace, operator)
    pipelines.apply(_plain(pipelines))
    pipelines.wait_settled("plain")
    cluster = pipelines.cluster("plain")

    seen, since = 0.0, time.monotonic()

    def at_rest() -> bool:
        nonlocal seen, since
        if (looks := _looks(operator, "ok", "changing")) != seen:
            seen, since = looks, time.monotonic()
        return time.monotonic() - since > AT_REST_S

    wait_for(f"{AT_REST_S} s without a look", at_rest, 120, operator.tail)
    puts = kuberay.puts(namespace, cluster)
    began = time.monotonic()
    pipelines.patch("plain", nodes={"m1": {"replicas": 2}})
    wait_for("the PUT", lambda: kuberay.puts(namespace, cluster) > puts, AT_ONCE_S, operator.tail)
    took = time.monotonic() - began
    (m1,) = [
        one for one in kuberay.last_puts(namespace, cluster)[-1].config["applications"] if one["name"][:4] == "m1--"
    ]
    assert m1["deployments"][0]["autoscaling_config"]["min_replicas"] == 2
    summary.append(f"a changed spec was sent to Serve after {took:.1f} s, the next look would have been after 600 s")


def _counts(plane: ControlPlane, operator: OperatorProcess, mark: int) -> Counter[tuple[str, str]]:
    """Requests by verb and resource; a watch counts once."""
    return Counter(
        (event["verb"], event["objectRef"]["resource"])
        for event in plane.audit(operator.user, mark)
        if "objectRef" in event and event["stage"] == "ResponseComplete"
    )


def _looks(operator: OperatorProcess, *results: str) -> float:
    """How many looks at pipelines ended so far, by default those that ended well and found nothing to do."""
    metrics = operator.metrics()
    return sum(metrics.get(("servepipe_reconciles_total", result), 0.0) for result in results or ("ok",))
