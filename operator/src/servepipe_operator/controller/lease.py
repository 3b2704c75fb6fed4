"""One writer: leader election by a Lease of coordination.k8s.io/v1, always on.

Two clocks matter. Other candidates take the Lease over when they have watched it unchanged for its whole duration, by
their own monotonic clock. So the holder's right ends `duration_s` after the **begin** of its latest renewal that
succeeded, less a margin for a request that is already under way. `holds` compares clocks at each call; a process that
was stopped and continued finds its right run out before its next write, without any timer having to fire first.

A clock that stands still while the machine sleeps would hide a suspended machine, hence CLOCK_BOOTTIME where there is
one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from servepipe_operator.adapters.kube import Kube, Resource
from servepipe_operator.adapters.kube_errors import AlreadyExists, Conflict, KubeError, NotFound
from servepipe_operator.engine.state import Json

__all__ = ["LEASES", "Elector", "LeaseLostError", "LeaseTimes", "steady_clock"]

LEASES = Resource("coordination.k8s.io/v1", "Lease", "leases")


def steady_clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system can tell."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class LeaseLostError(Exception):
    """This process may not write any more; it has to end and begin as a candidate again."""


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds.

    Args:
        duration_s: Unchanged for so long, a Lease may be taken over. Whole seconds, as the API has it.
        margin_s: The right to write ends so much earlier: the longest that a write may be under way.
        renew_s: Between renewals.
        retry_s: Between looks of a candidate, and after a renewal that failed.
    """

    duration_s: int = 30
    margin_s: float = 10.0
    renew_s: float = 5.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.retry_s <= self.renew_s < self.duration_s - self.margin_s or self.margin_s < 0:
            raise ValueError(
                f"lease durations do not fit: {self}; retry_s must be above 0 and at most renew_s, "
                "and renew_s less than duration_s - margin_s"
            )


class Elector:
    """One candidate for one Lease.

    Args:
        kube: A client whose writes do not themselves depend on this Lease (see `Kube`'s ``allowed``), with a time-out
            of less than ``times.margin_s``.
        identity: Unlike that of any other process, also of a former one of the same pod.
        clock: Monotonic seconds.
        sleep: Waits by that clock.
        wall: For the times in the Lease, which are for people only.
    """

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        identity: str,
        times: LeaseTimes | None = None,
        *,
        clock: Callable[[], float] = steady_clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._kube, self._namespace, self._name, self._identity = kube, namespace, name, identity
        self._times = times or LeaseTimes()
        self._clock, self._sleep, self._wall, self._chance = clock, sleep, wall, chance
        self._until: float | None = None  # when the right to write ends; None before and after
        self._lost = False
        self._seen: tuple[str, float] = ("", 0.0)  # the Lease's latest version, and when it was first seen
        self._holder = ""

    @property
    def holder(self) -> str:
        """Who held the Lease at the last look; "" when nobody did."""
        return self._holder

    def holds(self) -> bool:
        """Whether this process may write now. Once false after it was true, it stays false."""
        if self._until is None or self._lost:
            return False
        if self._clock() >= self._until:
            self._lost = True
        return not self._lost

    def require(self) -> None:
        """For `Kube`'s ``allowed`` and before every PUT. Raises `LeaseLostError` unless `holds`."""
        if not self.holds():
            raise LeaseLostError(
                f"process {self._identity} does not hold Lease {self._namespace}/{self._name} "
                f"(any more); it was last seen with {self._holder or 'nobody'}"
            )

    async def acquire(
        self, on_wait: Callable[[str], None] = lambda why: None, on_error: Callable[[KubeError], None] | None = None
    ) -> None:
        """Return once this process leads.

        Args:
            on_wait: Told at each look who leads.
            on_error: Told what went wrong at a look, instead of ``on_wait``; the next look follows.
        """
        while True:
            try:
                if await self._try():
                    return
                on_wait(f"Lease {self._namespace}/{self._name} is held by {self._holder or 'nobody'}")
            except KubeError as error:
                on_wait(str(error)) if on_error is None else on_error(error)
            await self._sleep(self._times.retry_s * (1 + 0.2 * self._chance()))

    async def keep(self) -> None:
        """Renew for ever. Raises `LeaseLostError` when the right to write ran out or another process has the Lease."""
        pause = self._times.renew_s
        while True:
            await self._sleep(pause)
            self.require()
            try:
                renewed = await self._try()
                self._lost = self._lost or self._holder not in ("", self._identity)
                pause = self._times.renew_s if renewed else self._times.retry_s
            except KubeError:
                pause = self._times.retry_s  # until it works or the right runs out
            self.require()

    async def release(self) -> None:
        """Let the next candidate in at once; afterwards this process may not write. Errors are left to the duration."""
        if not self.holds():
            return
        self._lost = True
        try:
            live = await self._kube.get(LEASES, self._namespace, self._name)
            if (live.get("spec") or {}).get("holderIdentity") == self._identity:
                live["spec"]["holderIdentity"] = ""
                await self._kube.update(LEASES, live)
        except KubeError:
            pass

    async def _try(self) -> bool:
        """Look, and take or renew where allowed; whether this process holds the Lease now."""
        began = self._clock()
        try:
            live = await self._kube.get(LEASES, self._namespace, self._name)
        except NotFound:
            live = None
        spec: Json = (live or {}).get("spec") or {}
        self._holder = str(spec.get("holderIdentity") or "")
        if live is not None and not self._free(live, spec):
            return False
        try:
            if live is None:
                await self._kube.create(LEASES, self._body({}, None))
            else:
                await self._kube.update(LEASES, self._body(live["metadata"], spec))
        except (AlreadyExists, Conflict, NotFound):
            return False  # another was faster or only changed a label; the next look tells
        self._holder = self._identity
        # Anyone who saw this renewal saw it after `began`, so nobody can take over before `began + duration`.
        self._until = began + self._times.duration_s - self._times.margin_s
        return self.holds()

    def _free(self, live: Json, spec: Json) -> bool:
        now = self._clock()
        version = f"{live['metadata'].get('uid')} {live['metadata']['resourceVersion']}"
        if version != self._seen[0]:
            self._seen = (version, now)
        if self._holder in ("", self._identity):
            return True
        # The holder's own duration counts: it may be set up otherwise than we are.
        duration = max(float(spec.get("leaseDurationSeconds") or 0), float(self._times.duration_s))
        return now - self._seen[1] >= duration

    def _body(self, metadata: Json, spec: Json | None) -> Json:
        now = self._wall().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = spec or {}
        stays = old.get("holderIdentity") == self._identity
        body: Json = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {**metadata, "namespace": self._namespace, "name": self._name},
            "spec": {
                **old,
                "holderIdentity": self._identity,
                "leaseDurationSeconds": self._times.duration_s,
                "acquireTime": old.get("acquireTime", now) if stays else now,
                "renewTime": now,
                "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if stays else 1),
            },
        }
        body["metadata"].pop("managedFields", None)
        return body
