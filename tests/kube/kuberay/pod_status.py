"""What a kubelet and a scheduler report about a pod, for each way that it can go. Pure."""

from __future__ import annotations

from typing import Any, Literal, get_args

Object = dict[str, Any]

Outcome = Literal[
    "ok",
    "unschedulable",
    "crash",
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "CreateContainerConfigError",
    "Failed",
]
OUTCOMES: tuple[str, ...] = get_args(Outcome)

MESSAGES = {
    "ImagePullBackOff": 'Back-off pulling image "{image}"',
    "ErrImagePull": 'failed to pull and unpack image "{image}": not found',
    "CreateContainerConfigError": 'secret "{secret}" not found',
    "CrashLoopBackOff": "back-off 10s restarting failed container={name} pod={pod}",
}
HOST_IP = "10.0.0.1"


def unscheduled(pod: Object, now: str) -> Object:
    """Nothing has room for it."""
    message = "0/3 nodes are available: 3 Insufficient cpu. preemption: 0/3 nodes are available."
    return {
        "phase": "Pending",
        "conditions": _conditions(pod, now, PodScheduled=("False", "Unschedulable", message)),
    }


def starting(pod: Object, ip: str, now: str) -> Object:
    """It has a node; its containers are being made."""
    waiting = {"waiting": {"reason": "PodInitializing" if pod["spec"].get("initContainers") else "ContainerCreating"}}
    return _placed(pod, ip, now, "Pending", dict.fromkeys(_names(pod), (waiting, False)))


def waiting(pod: Object, ip: str, now: str, reason: str, secret: str = "") -> Object:
    """Its first container cannot start, for ``reason``."""
    container = pod["spec"]["containers"][0]
    texts = {"image": container["image"], "name": container["name"], "secret": secret, "pod": pod["metadata"]["name"]}
    state = {"waiting": {"reason": reason, "message": MESSAGES[reason].format(**texts)}}
    states = {name: ({"running": {"startedAt": now}}, True) for name in _names(pod)}
    states[container["name"]] = (state, False)
    crashed = reason == "CrashLoopBackOff"
    status = _placed(pod, ip, now, "Running" if crashed else "Pending", states)
    if crashed:
        ended = {"exitCode": 1, "reason": "Error", "startedAt": now, "finishedAt": now}
        status["containerStatuses"][0] |= {"restartCount": 3, "lastState": {"terminated": ended}}
    return status


def failed(pod: Object, ip: str, now: str) -> Object:
    """All its containers have ended and none is started again."""
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "startedAt": now, "finishedAt": now}}
    return _placed(pod, ip, now, "Failed", dict.fromkeys(_names(pod), (ended, False)))


def running(pod: Object, ip: str, now: str, *, ready: bool) -> Object:
    """All containers run.

    Args:
        ready: Whether the first one passes its readiness probe.
    """
    names = _names(pod)
    up = {"running": {"startedAt": now}}
    return _placed(pod, ip, now, "Running", {name: (up, ready or name != names[0]) for name in names})


def _placed(pod: Object, ip: str, now: str, phase: str, states: dict[str, tuple[Object, bool]]) -> Object:
    unready = [name for name, (_, ready) in states.items() if not ready]
    initialized = "True" if phase != "Pending" or not pod["spec"].get("initContainers") else "False"
    verdict = ("True", "", "")
    if unready:
        verdict = ("False", "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    return {
        "phase": phase,
        "hostIP": HOST_IP,
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "startTime": pod["status"].get("startTime", now),
        "conditions": _conditions(
            pod,
            now,
            PodScheduled=("True", "", ""),
            Initialized=(initialized, "", ""),
            ContainersReady=verdict,
            Ready=verdict,
        ),
        "containerStatuses": [_container(pod, name, *state) for name, state in states.items()],
    }


def _container(pod: Object, name: str, state: Object, ready: bool) -> Object:
    spec = next(one for one in pod["spec"]["containers"] if one["name"] == name)
    before = next((one for one in pod["status"].get("containerStatuses", []) if one["name"] == name), {})
    # The same state keeps the time at which it began.
    if before.get("state", {}).keys() == state.keys() and "waiting" not in state:
        state = before["state"]
    return {
        "name": name,
        "image": spec["image"],
        "imageID": "",
        "ready": ready,
        "started": "running" in state,
        "restartCount": before.get("restartCount", 0),
        "state": state,
    }


def _conditions(pod: Object, now: str, **wanted: tuple[str, str, str]) -> list[Object]:
    before = {one["type"]: one for one in pod["status"].get("conditions", [])}
    conditions = []
    for kind, (status, reason, message) in wanted.items():
        same = before.get(kind, {}).get("status") == status
        condition = {
            "type": kind,
            "status": status,
            "lastTransitionTime": before[kind]["lastTransitionTime"] if same else now,
        }
        conditions.append(
            condition | ({"reason": reason} if reason else {}) | ({"message": message} if message else {})
        )
    return conditions


def _names(pod: Object) -> list[str]:
    return [container["name"] for container in pod["spec"]["containers"]]
