"""What the operator's shell sees and tells, as a process on a real API server."""

from collections.abc import Callable

import pytest
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from bed.wire import Wire
from shell_bed import (
    KUBERAY,
    LEASES,
    OWN,
    PIPES,
    RULES,
    Start,
    allowed,
    delete,
    looks,
    make,
    make_service,
    used,
    wait_for_look,
)


@pytest.mark.parametrize("cluster_wide", [True, False])
def test_pipelines_and_children_are_seen_with_no_more_rights_than_needed(
    control_plane: ControlPlane, namespace: str, start: Start, cluster_wide: bool
) -> None:
    rules = [LEASES, *RULES]
    kubeconfig = control_plane.service_account(namespace, "operator", rules, cluster_wide=cluster_wide)
    make(control_plane, namespace, "one")
    operator = start(kubeconfig, namespaces=() if cluster_wide else (namespace,))
    operator.wait_ready()
    wait_for_look(operator, "one", r": 1 \{\}")
    make(control_plane, namespace, "two")
    wait_for_look(operator, "two", r": 1 \{\}")
    make_service(control_plane, namespace, "s", "two")
    wait_for_look(operator, "two", r"'Service': \['s'\]")
    control_plane.api.delete(f"/api/v1/namespaces/{namespace}/services/s")
    wait_for_look(operator, "two", r": 1 \{\}")
    delete(control_plane, namespace, "one")
    wait_for_look(operator, "one", ": gone")
    assert operator.stop() == 0
    done = used(control_plane, f"system:serviceaccount:{namespace}:operator")
    # A Lease that is not there yet is the only refusal.
    assert {what for what in done if what[-1] >= 400} <= {("coordination.k8s.io", "leases", "", "get", 404)}
    assert {what[:-1] for what in done} == allowed(rules), "rights that were used"
    assert not any("kopf" in record["logger"] for record in operator.logs())
    assert (
        control_plane.api.get(f"{PIPES}/namespaces/{namespace}/servepipelines/two")["metadata"].get("finalizers")
        is None
    )


def test_nothing_but_watches_and_the_lease_in_a_steady_state(
    control_plane: ControlPlane, namespace: str, start: Start
) -> None:
    kubeconfig = control_plane.service_account(namespace, "operator", [LEASES, *RULES])
    make(control_plane, namespace, "one")
    operator = start(kubeconfig)
    operator.wait_ready()
    before = used(control_plane, user := f"system:serviceaccount:{namespace}:operator")
    count = len(looks(operator, "one"))
    wait_for("five more looks", lambda: len(looks(operator, "one")) >= count + 5, 30, operator.tail)
    after = used(control_plane, user)
    assert {what[1] for what in after - before} <= {"leases"}


@pytest.mark.parametrize("name", [OWN, KUBERAY])
def test_a_crd_that_is_missing_is_waited_for_and_may_go_and_come_again(
    control_plane: ControlPlane, namespace: str, start: Start, without: Callable[[str], Callable[[], None]], name: str
) -> None:
    put_back = without(name)
    kubeconfig = control_plane.service_account(namespace, "operator", [LEASES, *RULES])
    operator = start(kubeconfig)
    operator.wait_for_message(f"waiting for {name}")
    code, text = operator.ready()
    assert code == 503
    assert f"{name}: the API server does not know it; is its CRD installed?" in text
    assert operator.metrics()["servepipe_waiting", name] == 1
    put_back()
    operator.wait_ready()
    assert ("servepipe_waiting", name) not in operator.metrics()
    make(control_plane, namespace, "one")
    wait_for_look(operator, "one", ": 1")
    put_back = without(name)
    operator.wait_for_message(f"waiting for {name}", 2)
    wait_for_look(operator, "one", ": gone" if name == OWN else ": 1")
    assert operator.ready()[0] == 503
    put_back()
    operator.wait_ready()
    make(control_plane, namespace, "two")
    wait_for_look(operator, "two", ": 1")
    assert operator.stop() == 0
    refused = {what for what in used(control_plane, f"system:serviceaccount:{namespace}:operator") if what[-1] == 403}
    assert refused == set()


@pytest.mark.parametrize("restarted", [False, True], ids=["cut", "version too old"])
def test_what_vanishes_while_the_connection_is_cut_is_noticed(
    control_plane: ControlPlane, namespace: str, start: Start, wire: Wire, restarted: bool
) -> None:
    for name in ("one", "two"):
        make(control_plane, namespace, name)
        make_service(control_plane, namespace, f"{name}-s", name)
    kubeconfig = wire.kubeconfig(control_plane.service_account(namespace, "operator", [LEASES, *RULES]))
    operator = start(kubeconfig, env={"SERVEPIPE_STEADY_S": "600", "SERVEPIPE_LEASE_DURATION_S": "120"})
    operator.wait_ready()
    for name in ("one", "two"):
        wait_for_look(operator, name, rf"'Service': \['{name}-s'\]")
    user = f"system:serviceaccount:{namespace}:operator"
    lists = sum(count for what, count in used(control_plane, user).items() if what[3] == "list")
    wire.cut()
    try:
        delete(control_plane, namespace, "one")
        for name in ("one", "two"):
            control_plane.api.delete(f"/api/v1/namespaces/{namespace}/services/{name}-s")
        make(control_plane, namespace, "three")
        if restarted:  # it knows nothing of what happened before
            control_plane.restart_api_server()
    finally:
        wire.mend()
    wait_for_look(operator, "one", ": gone")
    wait_for_look(operator, "two", r": 1 \{\}")
    wait_for_look(operator, "three", ": 1")
    operator.wait_ready()
    more = sum(count for what, count in used(control_plane, user).items() if what[3] == "list") - lists
    assert (more > 0) == restarted, "lists, which only a version that is too old takes"
    assert operator.stop() == 0


def test_an_api_server_that_dies_is_waited_for(control_plane: ControlPlane, namespace: str, start: Start) -> None:
    make(control_plane, namespace, "one")
    operator = start(env={"SERVEPIPE_LEASE_DURATION_S": "120"})
    operator.wait_ready()
    control_plane.api_server.kill()
    try:
        wait_for("the loss to be said", lambda: operator.ready()[0] == 503, 30, operator.tail)
    finally:
        control_plane.api_server.start()
        control_plane.wait_until_ready()
    operator.wait_ready()
    make(control_plane, namespace, "two")
    wait_for_look(operator, "two", ": 1")
    assert not operator.messages("does not know it"), "a server that just started was believed"
    assert looks(operator, "one")[-1].endswith(": 1 {}")


def test_another_installations_pipelines_are_left_alone(
    control_plane: ControlPlane, namespace: str, start: Start
) -> None:
    make(control_plane, namespace, "foreign", installation="theirs")
    make(control_plane, namespace, "free")
    make(control_plane, namespace, "named", installation="ours")
    operator = start(env={"SERVEPIPE_INSTALLATION": "ours"})
    for name in ("free", "named"):
        wait_for_look(operator, name, ": 1")
    path = f"{PIPES}/namespaces/{namespace}/servepipelines/named"
    control_plane.api.merge(path, {"metadata": {"labels": {"servepipe.dev/installation": "theirs"}}})
    wait_for_look(operator, "named", ": gone")
    path = f"{PIPES}/namespaces/{namespace}/servepipelines/foreign"
    control_plane.api.merge(path, {"metadata": {"labels": {"servepipe.dev/installation": "ours"}}})
    wait_for_look(operator, "foreign", ": 1")
    first = looks(operator, "foreign")[0]
    assert ": 1" in first, "it was looked at before it was ours"


def test_a_missing_right_is_said_and_waited_for(control_plane: ControlPlane, namespace: str, start: Start) -> None:
    make(control_plane, namespace, "one")
    kubeconfig = control_plane.service_account(namespace, "operator", [LEASES, *RULES[1:]])
    operator = start(kubeconfig)
    wait_for(
        "the missing right to be named",
        lambda: 'cannot list resource "servepipelines"' in operator.ready()[1],
        30,
        operator.tail,
    )
    role = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/{namespace}-operator"
    live = control_plane.api.get(role)
    control_plane.api.replace(role, {**live, "rules": [LEASES, *RULES]})
    wait_for_look(operator, "one", ": 1", timeout=60)
    operator.wait_ready()
