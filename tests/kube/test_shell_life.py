"""How the operator's process lives and ends: the Lease, signals, what hangs, what it says."""

from bed.control_plane import ControlPlane
from bed.processes import wait_for
from operator_process import StartOperator
from shell_bed import Start, looks, make, seen_map, wait_for_look, written_by


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


def test_wrong_settings_a_taken_port_and_no_login_end_it_at_once(
    control_plane: ControlPlane, namespace: str, start: Start
) -> None:
    wrong = start(env={"SERVEPIPE_WORKERS": "many", "SERVEPIPE_LOG_LEVEL": "loud"})
    assert wrong.wait_exit() == 2
    assert "SERVEPIPE_WORKERS" in wrong.tail()
    assert "SERVEPIPE_LOG_LEVEL" in wrong.tail()
    first = start()
    taken = start(env={"SERVEPIPE_HTTP_PORT": first.url.rpartition(":")[2]})
    assert taken.wait_exit() == 1
    (told,) = taken.messages("the operator ends")
    assert "address already in use" in told["message"].lower()
    assert "SERVEPIPE_HTTP_PORT" in told["message"]
    assert "Traceback" not in taken.tail()
    stranger = start(env={"KUBECONFIG": "/nowhere/config"})
    assert stranger.wait_exit() == 1
    assert "no way to log in to Kubernetes" in stranger.messages("the operator ends")[0]["message"]
    assert "Traceback" not in stranger.tail()


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
