"""What an ingress replica can say about the whole pipeline: which nodes are ready, and who uses which routing table.

Both answers need others. Serve's controller knows the replicas; the replicas of ingress and holders know their tables
and are asked directly, all of them, with Serve's broadcast.

A broadcast waits for a free slot of a busy replica, like any request. So one that is slow is not repeated but left
running, and the next question takes its answer: an acknowledgement is made when the replica gets to it, so it is as
fresh as if it had been asked for just then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from servepipe.runtime.routing import application_name
from servepipe.runtime.serve_caller import DEPLOYMENT

__all__ = ["Observer"]

READY_CACHE_S = 1.0
ANSWER_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Replicas:
    """One application's only deployment: Serve's status of it, and how many replicas run."""

    status: str
    running: int
    any: bool


class Observer:
    """Args:
    ingress_application: Name of the application that this replica belongs to; its deployment has the same name.
    """

    def __init__(self, ingress_application: str) -> None:
        self._ingress = ingress_application
        self._seen: dict[str, Replicas] = {}
        self._seen_at = -READY_CACHE_S
        self._looking: asyncio.Task[dict[str, Replicas]] | None = None
        self._handles: dict[str, DeploymentHandle[Any]] = {}
        self._asking: dict[str, asyncio.Task[list[dict[str, Any]]]] = {}
        self._no_holders: set[str] = set()

    async def not_ready(self, nodes: Mapping[str, Sequence[tuple[str, int]]]) -> list[str]:
        """The nodes that could not answer most requests now.

        Args:
            nodes: For each node that runs on replicas of its own its revisions with their weights, together 100.
        """
        seen = await self._replicas()
        return [
            node
            for node, routes in nodes.items()
            if sum(weight for revision, weight in routes if _serves(seen.get(application_name(node, revision)))) < 50
        ]

    async def acknowledgements(self) -> list[dict[str, Any]]:
        """What every replica of the ingress and of each holder says about its table; the silent are left out."""
        seen = await self._replicas(fresh=True)
        asked = [name for name in seen if "--" in name and seen[name].running and name not in self._no_holders]
        tasks = {name: self._ask(name, DEPLOYMENT) for name in asked}
        tasks[self._ingress] = self._ask(self._ingress, self._ingress)
        await asyncio.wait(tasks.values(), timeout=ANSWER_WITHIN_S)
        answers: list[dict[str, Any]] = []
        for name, task in tasks.items():
            if not task.done():
                continue
            del self._asking[name]
            found = [] if task.exception() else task.result()
            if name != self._ingress and found and not any(answer.pop("holds") for answer in found):
                # Which nodes it holds is part of a revision's identity: no need to ask it ever again.
                self._no_holders.add(name)
                continue
            answers += found
        self._forget(seen)
        return answers

    def _ask(self, application: str, deployment: str) -> asyncio.Task[list[dict[str, Any]]]:
        task = self._asking.get(application)
        if task is None:
            handle = self._handles.get(application)
            if handle is None:
                handle = self._handles[application] = DeploymentHandle(deployment, application)
            task = self._asking[application] = asyncio.create_task(_broadcast(handle))
        return task

    def _forget(self, seen: Iterable[str]) -> None:
        gone = self._handles.keys() - set(seen) - {self._ingress}
        for application in gone:
            del self._handles[application]
            if task := self._asking.pop(application, None):
                task.cancel()
        self._no_holders &= set(seen)

    async def _replicas(self, *, fresh: bool = False) -> dict[str, Replicas]:
        """By application. Cached: readiness is asked for by every load balancer, and the controller is one process."""
        if fresh or time.monotonic() - self._seen_at >= READY_CACHE_S:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(asyncio.to_thread(_look))
            self._seen = await asyncio.shield(self._looking)
            self._seen_at = time.monotonic()
        return self._seen


def _look() -> dict[str, Replicas]:
    found = {}
    for name, application in serve.status().applications.items():
        for deployment in application.deployments.values():
            states = {str(getattr(state, "value", state)): count for state, count in deployment.replica_states.items()}
            found[name] = Replicas(
                str(getattr(deployment.status, "value", deployment.status)), states.get("RUNNING", 0), bool(states)
            )
    return found


def _serves(replicas: Replicas | None) -> bool:
    if replicas is None:
        return False
    # Without any replica a healthy deployment is one that autoscaling has let go to zero: it starts on demand.
    return replicas.running > 0 or (replicas.status == "HEALTHY" and not replicas.any)


async def _broadcast(handle: DeploymentHandle[Any]) -> list[dict[str, Any]]:
    answers = await handle.broadcast("acknowledge").results_async(return_exceptions=True)
    return [answer for answer in answers if isinstance(answer, dict)]
