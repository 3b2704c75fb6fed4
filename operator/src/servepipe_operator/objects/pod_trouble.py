"""Why a pod does not come: what its scheduler or its containers say.

KubeRay makes a pod that ended anew under another name, and a kubelet says now this and now that of one image that it
cannot pull. So that a trouble that lasts reads the same at each look, no name of a pod stands in it, and such words are
brought together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["PodTrouble", "ending", "first_trouble", "trouble_of"]

_ID = re.compile(r"\b[0-9a-f]{12,64}\b")
_COMING = frozenset({"", "PodInitializing", "ContainerCreating"})
_PULLING = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})


@dataclass(frozen=True, slots=True)
class PodTrouble:
    """``unschedulable``: no machine has room for it; its containers were not even tried."""

    message: str
    unschedulable: bool = False


def first_trouble(pods: Iterable[Mapping[str, Any]]) -> PodTrouble | None:
    """Of the pods that are not on their way out, what keeps the first one that has trouble."""
    return next((found for pod in pods if not ending(pod) and (found := trouble_of(pod))), None)


def trouble_of(pod: Mapping[str, Any]) -> PodTrouble | None:
    """What keeps a pod from starting, or None where it runs or is on its way."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            told = condition.get("message") or condition.get("reason")
            return PodTrouble(f"cannot be scheduled: {told}", unschedulable=True)
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = str(waiting.get("reason") or "")
        if reason in _PULLING:
            return PodTrouble(f"container {container.get('name')} cannot pull its image {container.get('image')}")
        if reason not in _COMING:
            told = f"{reason}: {_steady(waiting['message'])}" if waiting.get("message") else reason
            return PodTrouble(f"container {container.get('name')} does not start: {told}")
    return None


def _steady(message: str) -> str:
    """Without what is another at each attempt: how long the kubelet waits, ids of containers, names of pods."""
    if message.startswith("back-off "):
        return "it ends again and again"
    return _ID.sub("…", message)


def ending(pod: Mapping[str, Any]) -> bool:
    """Whether it has ended or is being deleted."""
    phase = (pod.get("status") or {}).get("phase")
    return bool(pod["metadata"].get("deletionTimestamp")) or phase in ("Failed", "Succeeded")
