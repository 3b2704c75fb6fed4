"""Dashboards that hang hold up nobody but their own pipelines."""

from __future__ import annotations

from bed.control_plane import ControlPlane
from bed.processes import wait_for
from kuberay.control import KubeRay
from operator_process import OperatorProcess, StartOperator
from pipelines import ENV, Pipelines

WORKERS = 2
HUNG = WORKERS + 4


def test_a_change_reaches_its_dashboard_while_more_of_them_hang_than_there_are_workers(
    control_plane: ControlPlane, kuberay: KubeRay, namespace: str, start_operator: StartOperator
) -> None:
    env = {**ENV, "SERVEPIPE_WORKERS": str(WORKERS), "SERVEPIPE_LEASE_DURATION_S": "300"}
    operator = start_operator(namespace, namespaces=[namespace], env=env)
    operator.wait_ready()
    pipelines = Pipelines(control_plane, kuberay, namespace, operator)
    hung = [f"hung-{number}" for number in range(HUNG)]
    for name in ("good", *hung):
        pipelines.apply(pipelines.resource(name, {"m": ["good", 0]}))
    for name in ("good", *hung):
        pipelines.wait_settled(name)
    for name in hung:
        kuberay.behave(namespace, pipelines.cluster(name), "hang")
    # Each was looked at in vain, and most are being looked at again, in looks that last until they time out.
    wait_for("looks at all that hang", lambda: _long_looks(operator) >= HUNG, 120, operator.tail)
    for number in (1, 2):
        ended, before = _long_looks(operator), kuberay.puts(namespace, pipelines.cluster("good"))
        pipelines.patch("good", nodes={"m": {"args": ["good", number]}})
        wait_for(
            "a PUT for the one that answers",
            lambda before=before: kuberay.puts(namespace, pipelines.cluster("good")) > before,
            60,
            operator.tail,
        )
        # In a common line it would have to wait for all but the workers' own.
        assert _long_looks(operator) - ended < HUNG - WORKERS
        pipelines.wait_settled("good")
    for name in hung:
        assert pipelines.condition(pipelines.get(name), "Ready")["status"] != "True"


def _long_looks(operator: OperatorProcess) -> float:
    """How many looks of more than ten seconds have ended."""
    metrics = operator.metrics()
    name = "servepipe_reconcile_duration_seconds"
    found = {key: value for key, value in metrics.items() if key[0] in (f"{name}_bucket", f"{name}_count")}
    short = sum(value for key, value in found.items() if key[0].endswith("_bucket") and "10.0" in key)
    return sum(value for key, value in found.items() if key[0].endswith("_count")) - short
