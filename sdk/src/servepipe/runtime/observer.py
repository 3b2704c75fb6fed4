"""What an ingress replica can say about the whole pipeline: which nodes are ready, and who uses which routing table.

Both answers need others. A node that answered a moment ago is ready, whatever else is known; Serve's controller knows
the replicas of the others. While it is being started again, replicas tell by answering. They know their tables, too,
and are asked directly, all of them, with Serve's broadcast.

A broadcast waits for a free slot of a busy replica, like any request. So one that is slow is not repeated but left
running, and the next question takes its answer: an acknowledgement is made when the replica gets to it, so it is as
fresh as if it had been asked for just then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from ray import serve
from ray.serve.handle import DeploymentHandle

from servepipe.runtime.routing import application_name
from servepipe.runtime.serve_caller import INGRESS

__all__ = ["Observer"]

READY_CACHE_S = 1.0
#: After that replicas are asked themselves.
CONTROLLER_WITHIN_S = 1.0
ANSWER_WITHIN_S = 2.0
LOOK_WITHIN_S = 10.0
#: For how long an answer shows that the next request would be answered, unless one was lost since.
ANSWERED_S = 5.0
#: States of replicas that take requests: also while they are reconfigured, until others run that replace them on a node
#: that is being drained, and until a controller that was started again has heard from them.
_ALIVE = ("RUNNING", "UPDATING", "PENDING_MIGRATION", "RECOVERING")


@dataclass(frozen=True, slots=True)
class Replicas:
    """One application's only deployment: Serve's status of it, and how many of its replicas take requests."""

    status: str
    running: int
    any: bool

    @classmethod
    def of(cls, status: Any, replica_states: Mapping[Any, int]) -> Self:
        """From Serve's own account; states are its enumeration or their names."""
        states = {str(getattr(state, "value", state)): count for state, count in replica_states.items()}
        return cls(str(getattr(status, "value", status)), sum(states.get(one, 0) for one in _ALIVE), bool(states))


class Observer:
    """Args:
    application: Name of the application that this replica of the ingress belongs to.
    handle: Gives the handle to a node's application.
    answered: When each application last answered, by `time.monotonic`; those that failed to since are left out.
    """

    def __init__(
        self,
        application: str,
        handle: Callable[[str], DeploymentHandle[Any]],
        answered: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._ingress = application
        self._own = DeploymentHandle[Any](INGRESS, application)
        self._handle = handle
        self._answered = answered
        self._seen: dict[str, Replicas] = {}
        self._seen_at = -READY_CACHE_S
        self._looking: asyncio.Task[dict[str, Replicas]] | None = None
        self._asking: dict[str, asyncio.Task[tuple[float, list[dict[str, Any]]]]] = {}
        self._no_holders: set[str] = set()

    async def not_ready(self, nodes: Mapping[str, Sequence[tuple[str, int]]]) -> list[str]:
        """The nodes that could not answer most requests now.

        Args:
            nodes: For each node that runs on replicas of its own its revisions with their weights, together 100.

        Raises whatever Serve's controller says instead of an answer, ``TimeoutError`` where it says nothing, unless all
        nodes answer by themselves.
        """
        lately = time.monotonic() - ANSWERED_S
        asked = _failing(nodes, lambda application: self._answered.get(application, 0.0) > lately)
        if not asked:
            return []
        look = asyncio.create_task(self._replicas())
        await asyncio.wait([look], timeout=CONTROLLER_WITHIN_S)
        seen = look.result() if look.done() and not look.exception() else {}
        left = _failing(asked, lambda application: _serves(seen.get(application)))
        if not left:
            return []
        # It may be starting again, while replicas answer as ever.
        applications = {application_name(node, revision) for node, routes in left.items() for revision, _ in routes}
        answers = await self._collect(applications, applications)
        if not (left := _failing(left, lambda application: bool(answers.get(application)))):
            look.cancel()
            return []
        seen = await look
        return list(
            _failing(left, lambda application: bool(answers.get(application)) or _serves(seen.get(application)))
        )

    async def acknowledgements(self) -> list[dict[str, Any]]:
        """What the replicas of the ingress and of all nodes say; those that are silent for long are left out.

        It waits for the ingress and for holders, whose tables somebody waits for, and takes along what others say.
        """
        seen = await self._replicas(fresh=True)
        self._forget(seen)
        asked = [self._ingress, *(name for name in seen if "--" in name and seen[name].running)]
        found = await self._collect(asked, set(asked) - self._no_holders)
        for name, answers in found.items():
            for answer in answers:
                # Which nodes a revision holds is part of its identity: this never changes.
                if not answer.pop("holds", True):
                    self._no_holders.add(name)
        return [answer for answers in found.values() for answer in answers]

    async def _collect(self, asked: Iterable[str], awaited: Collection[str]) -> dict[str, list[dict[str, Any]]]:
        """What the replicas of applications answer within `ANSWER_WITHIN_S`, waiting for some of them only."""
        tasks = {name: self._ask(name) for name in asked}
        if awaited:
            await asyncio.wait([tasks[name] for name in awaited], timeout=ANSWER_WITHIN_S)
        answers = {}
        for name, task in tasks.items():
            if not task.done():
                continue
            if self._asking.get(name) is task:  # somebody else who waited for it may have been faster
                del self._asking[name]
            # Cancelled: the application has gone meanwhile.
            at, found = (0.0, []) if task.cancelled() or task.exception() else task.result()
            if time.monotonic() - at <= ANSWER_WITHIN_S:  # not from long before this question
                answers[name] = found
        return answers

    def _ask(self, application: str) -> asyncio.Task[tuple[float, list[dict[str, Any]]]]:
        task = self._asking.get(application)
        if task is None:
            handle = self._own if application == self._ingress else self._handle(application)
            task = self._asking[application] = asyncio.create_task(_broadcast(handle))
        return task

    def _forget(self, seen: Mapping[str, Replicas]) -> None:
        for application in self._asking.keys() - seen.keys() - {self._ingress}:
            self._asking.pop(application).cancel()
        self._no_holders &= seen.keys()

    async def _replicas(self, *, fresh: bool = False) -> dict[str, Replicas]:
        """By application. Cached: readiness is asked for by every load balancer, and the controller is one process."""
        if fresh or time.monotonic() - self._seen_at >= READY_CACHE_S:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(asyncio.to_thread(_look))
            async with asyncio.timeout(LOOK_WITHIN_S):
                self._seen = await asyncio.shield(self._looking)
            self._seen_at = time.monotonic()
        return self._seen


def _look() -> dict[str, Replicas]:
    found = {}
    for name, application in serve.status().applications.items():
        for deployment in application.deployments.values():
            found[name] = Replicas.of(deployment.status, deployment.replica_states)
    return found


def _failing(
    nodes: Mapping[str, Sequence[tuple[str, int]]], serves: Callable[[str], bool]
) -> dict[str, Sequence[tuple[str, int]]]:
    """Those whose applications that serve have less than half of the weight."""
    return {
        node: routes
        for node, routes in nodes.items()
        if sum(weight for revision, weight in routes if serves(application_name(node, revision))) < 50
    }


def _serves(replicas: Replicas | None) -> bool:
    if replicas is None:
        return False
    # Without any replica a healthy deployment is one that autoscaling has let go to zero: it starts on demand.
    return replicas.running > 0 or (replicas.status == "HEALTHY" and not replicas.any)


async def _broadcast(handle: DeploymentHandle[Any]) -> tuple[float, list[dict[str, Any]]]:
    """When the answers came, and the answers of those that gave one."""
    answers = await handle.broadcast("acknowledge").results_async(return_exceptions=True)
    return time.monotonic(), [answer for answer in answers if isinstance(answer, dict)]
