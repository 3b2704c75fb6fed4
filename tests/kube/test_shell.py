"""The operator's shell as a process on a real API server, around a reconciler that only looks."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bed.control_plane import ControlPlane
from bed.processes import wait_for
from bed.wire import Wire
from operator_process import OperatorProcess, StartOperator

PIPES = "/apis/servepipe.dev/v1alpha1"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
OWN, KUBERAY = "servepipelines.servepipe.dev", "rayclusters.ray.io"
SPEC = {"graph": {"steps": [{"name": "s", "node": "n"}], "output": 1}, "nodes": {"n": {"import": "m:N"}}}
WATCH = ["list", "watch"]
#: All that the shell itself needs; what a reconciler needs comes on top.
LEASES = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
RULES = [
    {"apiGroups": ["servepipe.dev"], "resources": ["servepipelines"], "verbs": WATCH},
    {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": WATCH},
    {"apiGroups": [""], "resources": ["services", "pods", "events"], "verbs": WATCH},
    {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": WATCH},
    {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "verbs": WATCH},
]
FAKE = (sys.executable, str(Path(__file__).parent / "fake_operator.py"))

Start = Callable[..., OperatorProcess]


@pytest.fixture
def start(start_operator: StartOperator, control_plane: ControlPlane, namespace: str) -> Start:
    """Starts the shell around the stand-in, watching this test's namespace only; by default as the administrator."""

    def begin(kubeconfig: Path = control_plane.kubeconfig, **more: Any) -> OperatorProcess:
        return start_operator(namespace, kubeconfig, **{"namespaces": (namespace,), "program": FAKE} | more)

    return begin


@pytest.fixture
def without(control_plane: ControlPlane) -> Iterator[Callable[[str], Callable[[], None]]]:
    """Takes a CRD away; calling the answer puts it back, which happens at the end in any case."""
    taken: dict[str, dict[str, Any]] = {}

    def back(name: str) -> None:
        if name in taken:
            control_plane.install_crd(taken.pop(name))

    def take(name: str) -> Callable[[], None]:
        live = control_plane.api.get(f"{CRDS}/{name}")
        taken[name] = {**live, "metadata": {"name": name, "annotations": live["metadata"].get("annotations") or {}}}
        control_plane.api.delete(f"{CRDS}/{name}")
        wait_for(f"{name} to go", lambda: control_plane.api.find(f"{CRDS}/{name}") is None)
        return lambda: back(name)

    yield take
    for name in list(taken):
        back(name)


def make(plane: ControlPlane, namespace: str, name: str, **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "labels": {f"servepipe.dev/{key}": value for key, value in labels.items()}}
    body = {"apiVersion": "servepipe.dev/v1alpha1", "kind": "ServePipeline", "metadata": metadata, "spec": SPEC}
    return plane.api.create(f"{PIPES}/namespaces/{namespace}/servepipelines", body)


def delete(plane: ControlPlane, namespace: str, name: str) -> None:
    plane.api.delete(f"{PIPES}/namespaces/{namespace}/servepipelines/{name}")


def make_service(plane: ControlPlane, namespace: str, name: str, pipeline: str) -> None:
    metadata = {"name": name, "labels": {"servepipe.dev/pipeline": pipeline}}
    plane.api.create(
        f"/api/v1/namespaces/{namespace}/services", {"metadata": metadata, "spec": {"ports": [{"port": 80}]}}
    )


def looks(operator: OperatorProcess, name: str) -> list[str]:
    """What the reconciler saw of a pipeline, look by look."""
    return [record["message"] for record in operator.messages(rf"^looked at [^ ]*/{name}: ")]


def wait_for_look(operator: OperatorProcess, name: str, pattern: str, timeout: float = 30.0) -> None:
    def seen() -> bool:
        operator.must_run()
        return bool((found := looks(operator, name)) and re.search(pattern, found[-1]))

    wait_for(f"a look at {name} that sees {pattern!r}", seen, timeout, operator.tail)


def used(plane: ControlPlane, user: str) -> Counter[tuple[str, str, str, str, int]]:
    """(group, resource, subresource, verb, code) of each request of a service account."""
    counts: Counter[tuple[str, str, str, str, int]] = Counter()
    for event in plane.audit(user):
        if what := event.get("objectRef"):
            group, kind, sub = what.get("apiGroup", ""), what["resource"], what.get("subresource", "")
            counts[group, kind, sub, event["verb"], event["responseStatus"]["code"]] += 1
    return counts


def allowed(rules: list[dict[str, Any]]) -> set[tuple[str, str, str, str]]:
    return {
        (g, r, "", v) for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]
    }


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


@pytest.fixture
def wire(control_plane: ControlPlane) -> Iterator[Wire]:
    """A connection to the API server that can be cut."""
    wire = Wire(control_plane.url)
    yield wire
    wire.close()


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


def test_a_lease_that_cannot_be_renewed_ends_it_and_a_new_start_works(
    control_plane: ControlPlane, namespace: str, start: Start
) -> None:
    make(control_plane, namespace, "one")
    operator = start()
    wait_for_look(operator, "one", ": 1")
    control_plane.api_server.kill()
    try:
        assert operator.wait_exit() == 3
        operator.start()
        wait_for("what it waits for", lambda: "lease: get /apis/coordination" in operator.ready()[1], 30, operator.tail)
    finally:
        control_plane.api_server.start()
        control_plane.wait_until_ready()
    before = len(looks(operator, "one"))
    wait_for("a look after the new start", lambda: len(looks(operator, "one")) > before, 60, operator.tail)
    operator.wait_ready()


def test_a_slow_etcd_is_borne(control_plane: ControlPlane, namespace: str, start: Start) -> None:
    make(control_plane, namespace, "one")
    operator = start(env={"FAKE_WRITES": "1", "SERVEPIPE_LEASE_DURATION_S": "120", "SERVEPIPE_STEADY_S": "0.2"})
    wait_for("a write", lambda: written_by(control_plane, namespace) == operator.name, 30, operator.tail)
    control_plane.etcd.freeze()
    try:
        operator.wait_for_message("looking again in")
    finally:
        control_plane.etcd.thaw()
    make(control_plane, namespace, "two")
    wait_for_look(operator, "two", ": 1")
    wait_for(
        "a write for it",
        lambda: control_plane.api.find(f"/api/v1/namespaces/{namespace}/configmaps/two-seen"),
        60,
        operator.tail,
    )
    operator.must_run()


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


def test_sigterm_lets_go_of_the_lease_and_the_second_follows_at_once(
    control_plane: ControlPlane, namespace: str, start: Start
) -> None:
    make(control_plane, namespace, "one")
    slow = {"SERVEPIPE_LEASE_DURATION_S": "600"}
    first = start(env=slow)
    first.wait_ready()
    second = start(env=slow)
    second.wait_ready(leading=False)
    wait_for("the second to say who leads", lambda: "is held by operator-0_" in second.ready()[1], 30, second.tail)
    assert looks(second, "one") == []
    assert second.metrics()[("servepipe_leader",)] == 0
    assert first.metrics()[("servepipe_leader",)] == 1
    assert first.stop() == 0
    second.wait_ready()
    wait_for_look(second, "one", ": 1")


def test_a_leader_that_was_stopped_for_long_writes_nothing_and_ends(
    control_plane: ControlPlane, namespace: str, start: Start
) -> None:
    make(control_plane, namespace, "one")
    writes = {"FAKE_WRITES": "1", "SERVEPIPE_STEADY_S": "0.1"}
    first = start(env=writes)
    wait_for("a write of the first", lambda: written_by(control_plane, namespace) == first.name, 30, first.tail)
    second = start(env=writes)
    second.wait_ready(leading=False)
    first.freeze()
    try:
        wait_for("a write of the second", lambda: written_by(control_plane, namespace) == second.name, 60, second.tail)
        version = seen_map(control_plane, namespace)["metadata"]["resourceVersion"]
    finally:
        first.thaw()
    assert first.wait_exit() == 3
    assert first.messages("the Lease is lost")
    assert seen_map(control_plane, namespace)["metadata"]["resourceVersion"] == version
    second.must_run()


def seen_map(plane: ControlPlane, namespace: str) -> dict[str, Any]:
    found = plane.api.find(f"/api/v1/namespaces/{namespace}/configmaps/one-seen")
    assert found is not None
    return found


def written_by(plane: ControlPlane, namespace: str) -> str:
    return str(seen_map(plane, namespace)["data"]["by"])


def test_looks_that_hang_delay_no_other_and_end_with_the_process(
    control_plane: ControlPlane, namespace: str, start: Start
) -> None:
    for number in range(4):
        make(control_plane, namespace, f"hang-{number}")
    operator = start(env={"SERVEPIPE_WORKERS": "2", "SERVEPIPE_STOP_S": "0.5"})
    operator.wait_ready()
    make(control_plane, namespace, "one")
    wait_for_look(operator, "one", ": 1")
    wait_for("looks that go on", lambda: len(looks(operator, "one")) > 2, 30, operator.tail)
    assert operator.stop() == 0
    assert operator.messages("cancelled")


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


def test_wrong_settings_and_a_taken_port_end_it_at_once(
    control_plane: ControlPlane, namespace: str, start: Start
) -> None:
    wrong = start(env={"SERVEPIPE_WORKERS": "many", "SERVEPIPE_LOG_LEVEL": "loud"})
    assert wrong.wait_exit() == 2
    assert "SERVEPIPE_WORKERS" in wrong.tail()
    assert "SERVEPIPE_LOG_LEVEL" in wrong.tail()
    first = start()
    taken = start(env={"SERVEPIPE_HTTP_PORT": first.url.rpartition(":")[2]})
    assert taken.wait_exit() == 1
    assert "address already in use" in taken.messages("the operator ends")[0]["message"].lower()


def test_each_record_says_what_it_is_about(control_plane: ControlPlane, namespace: str, start: Start) -> None:
    make(control_plane, namespace, "one")
    operator = start()
    wait_for_look(operator, "one", ": 1")
    record = operator.messages("^looked at")[0]
    assert record["pipeline"] == f"{namespace}/one"
    assert {"time", "level", "message", "logger"} <= record.keys()
    counted = operator.metrics()
    assert counted["servepipe_reconciles_total", "ok"] >= 1
    assert counted["servepipe_kubernetes_requests_total", "200", "servepipelines", "watch"] >= 1
    assert any(key[0] == "servepipe_build_info" for key in counted)


def test_the_operator_itself_starts_and_stops(
    control_plane: ControlPlane, namespace: str, start_operator: StartOperator
) -> None:
    operator = start_operator(namespace, namespaces=(namespace,))
    operator.wait_ready()
    assert operator.stop() == 0
    assert [record for record in operator.logs() if record["level"] not in ("debug", "info")] == []
