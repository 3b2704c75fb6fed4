"""Callers of a pipeline while a test disturbs it: a pod in its namespace that runs `callers_pod`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bed.processes import wait_for
from client import START_S, Object, python_pod
from clusters.cluster import Cluster

PROGRAM = Path(__file__).with_name("callers_pod.py")
NOTHING_YET: Object = {"at": 0.0, "since": None, "answered": 0, "reopened": 0, "resent": 0}


@dataclass(frozen=True)
class Seen:
    """What callers saw.

    Attributes:
        reopened: Connections that had been closed while they were idle.
        resent: Requests that were sent a second time, as their connection went before an answer began.
        failures: Each with ``failure``, ``at`` (Unix seconds when it was sent) and ``seconds``.
        slowest: Seconds of the slowest request that was answered or failed.
        at: When this was so, in Unix seconds of the pod.
        since: When the oldest request that was under way then was sent; None where none was.
    """

    answered: int
    reopened: int
    resent: int
    failures: Sequence[Object]
    slowest: float
    at: float
    since: float | None

    @property
    def unnoticed(self) -> bool:
        """Nobody saw an error, nor would have without sending a request a second time."""
        return not self.failures and not self.resent

    def __str__(self) -> str:
        text = f"{self.answered} answered, {len(self.failures)} failed, slowest {self.slowest:.2f} s"
        if self.reopened:
            text += f", {self.reopened} connections reopened"
        if self.resent:
            text += f", {self.resent} requests sent twice"
        if self.failures:
            first, last = self.failures[0], max(self.failures, key=lambda one: one["at"] + one["seconds"])
            kinds: dict[str, int] = {}
            for one in self.failures:
                kinds[one["failure"][:90]] = kinds.get(one["failure"][:90], 0) + 1
            text += f", within {last['at'] + last['seconds'] - first['at']:.1f} s: {kinds}"
        return text


def seen(log: str) -> Seen:
    """What the lines of `callers_pod` say."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    counts = next((line for line in reversed(lines) if "answered" in line), NOTHING_YET)
    failures = [line for line in lines if "failure" in line]
    slowest = max((line.get("slowest", 0.0) for line in lines), default=0.0)
    return Seen(
        answered=counts["answered"],
        reopened=counts["reopened"],
        resent=counts["resent"],
        failures=failures,
        slowest=slowest,
        at=counts["at"],
        since=counts["since"],
    )


class Callers(contextlib.AbstractContextManager["Callers"]):
    """Callers that are there while the block runs.

    Args:
        image: Any with Python.
        url: Where they send, as a pod of the namespace names it.
        body: What they send, as JSON.
        answers: The right answers; any other is a failure.
        clients: Connections that are kept.
        rate: Requests per second, all together.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        image: str,
        *,
        url: str,
        body: Any,
        answers: Sequence[Any],
        clients: int = 8,
        rate: float = 40,
        name: str = "callers",
    ) -> None:
        self._cluster, self._namespace, self._name = cluster, namespace, name
        asked = {"url": url, "body": body, "answers": list(answers), "clients": clients, "rate": rate}
        self._pod = python_pod(name, namespace, image, PROGRAM.read_text(), json.dumps(asked))

    def __enter__(self) -> Callers:
        self._cluster.apply(self._pod)
        wait_for("callers to be answered", lambda: self.so_far().answered > 0, START_S, self._describe, pause=0.5)
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.kubectl("delete", "-n", self._namespace, f"pod/{self._name}", "--ignore-not-found")

    def so_far(self) -> Seen:
        """What they have seen until now."""
        log = self._cluster.kubectl("logs", "-n", self._namespace, self._name, check=False, timeout=120)
        return seen(log.stdout)

    def wait_for_more(self, count: int, timeout: float = 120.0) -> Seen:
        """Until ``count`` more have been answered, and all that was under way when they last told has ended: a request
        that hangs is not overlooked. What they have seen until then.
        """

        def begun() -> Seen | None:
            now = self.so_far()
            return now if now.at > 0 else None

        before = wait_for("callers to tell", begun, timeout, self._describe)

        def enough() -> Seen | None:
            now = self.so_far()
            ended = now.since is None or now.since > before.at
            return now if ended and now.answered >= before.answered + count else None

        return wait_for(
            f"{count} more answers, and the end of what was under way", enough, timeout, lambda: str(self.so_far()), 0.5
        )

    def _describe(self) -> str:
        return (
            self._cluster.kubectl("describe", "-n", self._namespace, "pod", self._name, check=False).stdout
            + self._cluster.kubectl("logs", "-n", self._namespace, self._name, check=False).stdout
        )
