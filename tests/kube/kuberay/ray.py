"""Simulated Ray: for each RayCluster the head, the nodes that joined, and Serve on them."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from simulated_serve import Timing

from kuberay.slots import Node, Resources, SlotServe

Object = dict[str, Any]
Key = tuple[str, str]
Mood = Literal["ok", "slow", "hang", "refuse", "error"]

KEPT_PUTS = 50
#: How long requests of callers take, one after the other.
REQUEST_S = (0.05, 0.9, 0.3)


@dataclass(frozen=True)
class Put:
    """A PUT to a dashboard: when (seconds since the epoch), the answer's code, and what was sent.

    ``caller`` is the User-Agent.
    """

    at: float
    code: int
    digest: str
    caller: str
    config: Object = field(repr=False)


@dataclass
class PutLog:
    """``count`` is of all, ``last`` holds the most recent ones."""

    count: int = 0
    last: deque[Put] = field(default_factory=lambda: deque(maxlen=KEPT_PUTS))

    def add(self, code: int, config: Object, caller: str) -> None:
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
        self.count += 1
        self.last.append(Put(time.time(), code, digest, caller, config))


@dataclass
class Behaviour:
    """How a port answers: ``slow`` and ``hang`` wait, ``refuse`` does not listen, ``error`` answers 500."""

    mood: Mood = "ok"
    seconds: float = 0.0


@dataclass
class Head:
    """A head that runs. ``ports`` are those that its dashboard and proxy listen on."""

    uid: str
    pod: str
    ip: str
    token: str
    version: str


class RayCluster:
    """What is behind the pods of one RayCluster.

    Args:
        changed: Told after anything may have become different.
    """

    def __init__(self, key: Key, timing: Timing, changed: Callable[[RayCluster], None]) -> None:
        self.key, self._timing, self._changed = key, timing, changed
        self.head: Head | None = None
        self.serve = SlotServe(timing)
        self.puts = PutLog()
        self.gets = 0
        self.behaviour = {"dashboard": Behaviour(), "serve": Behaviour()}
        self.version = ""
        """Overrides the version that the dashboard tells."""
        self._timer: asyncio.TimerHandle | None = None
        self._caller: asyncio.TimerHandle | None = None
        self._durations = itertools.cycle(REQUEST_S)

    def head_is(self, head: Head | None, *, keep: bool) -> None:
        """A head started, or there is none any more.

        Args:
            keep: With fault tolerance of GCS, Serve and its replicas outlive the head.
        """
        before, self.head = self.head, head
        if before is not None and (head is None or before.uid != head.uid) and not keep:
            # Also the workers end: their head is unknown to the new one.
            self.serve = SlotServe(self._timing)
        self.touch()

    def join(self, node: Node) -> None:
        self.serve.join(node)
        self.touch()

    def leave(self, pod: str) -> None:
        self.serve.leave(pod)
        self.touch()

    def put(self, config: Object, caller: str) -> None:
        """Raises what `SlotServe.put` raises, after noting it."""
        try:
            self.serve.put(config)
        except Exception:
            self.puts.add(400, config, caller)
            raise
        self.puts.add(200, config, caller)
        self.touch()

    def touch(self) -> None:
        """Let time catch up, tell, and wait for what is due next."""
        self.serve.settle()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.serve.next_due()
        if due is not None:
            pause = max(0.01, due - time.time() + 0.005)
            self._timer = asyncio.get_running_loop().call_later(pause, self.touch)
        self._changed(self)

    def call_every(self, seconds: float) -> None:
        """Send a request that often; 0: no more."""
        if self._caller is not None:
            self._caller.cancel()
            self._caller = None
        if seconds:
            self.serve.request(next(self._durations))
            self._caller = asyncio.get_running_loop().call_later(seconds, self.call_every, seconds)

    def close(self) -> None:
        self.call_every(0.0)
        if self._timer is not None:
            self._timer.cancel()

    def demand(self) -> list[Resources]:
        return self.serve.waiting()
