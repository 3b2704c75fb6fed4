"""Callers that never stop: keep-alive connections which send document after document and look at every answer."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from samples import differences

Answers = Mapping[str, dict[str, Any]]
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Sent:
    """One request: when it was sent (`time.monotonic`), and what was wrong with its answer ("" when nothing was)."""

    at: float
    document: str
    problem: str


class Client:
    """One keep-alive connection.

    A proxy may close an idle connection at the very moment in which the next request is sent on it; every HTTP client
    then sends it again on a new one. `reconnected` counts those.
    """

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self._connection: http.client.HTTPConnection | None = None
        self.reconnected = 0

    def send(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer. Raises `OSError` or `http.client.HTTPException` when there is none."""
        if self._connection is not None:
            try:
                return self._send(self._connection, body)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                self.reconnected += 1
                self.close()
        connection = http.client.HTTPConnection(
            self._address.hostname or "", self._address.port or 80, timeout=TIMEOUT_S
        )
        try:
            answer = self._send(connection, body)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return answer

    def _send(self, connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bytes]:
        connection.request(
            "POST", self._address.path or "/", body, headers={"Content-Type": "application/octet-stream"}
        )
        response = connection.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class NoAnswerError(Exception):
    """The pipeline gave no answer, or not one of the kind that it gives; the message says what happened instead."""


def ask(client: Client, document: bytes) -> dict[str, Any]:
    """The pipeline's answer to a document. Raises `NoAnswerError`."""
    try:
        status, content = client.send(document)
    except (OSError, http.client.HTTPException) as error:
        client.close()
        raise NoAnswerError(f"no answer: {error!r}") from error
    if status != 200:
        raise NoAnswerError(f"HTTP {status}: {content[:300].decode(errors='replace')}")
    answer: dict[str, Any] = json.loads(content)
    return answer


class Load(contextlib.AbstractContextManager["Load"]):
    """Requests without a break while the block runs.

    Args:
        url: Where the pipeline answers.
        documents: What is sent, by name; each client sends them all, in an order of its own, again and again.
        wanted: What must be in the answers; see `allow`.
        seldom: Documents that take long: a client sends them once while it sends the others three times.
        clients: How many at a time.
    """

    def __init__(
        self,
        url: str,
        documents: Mapping[str, bytes],
        wanted: Answers,
        seldom: Collection[str] = (),
        clients: int = 4,
    ) -> None:
        self._documents = documents
        self._round = [name for name in documents for _ in range(1 if name in seldom else 3)]
        self._wanted: tuple[Answers, ...] = (wanted,)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._sent: list[Sent] = []
        self._clients = [Client(url) for _ in range(clients)]
        self._threads = [
            threading.Thread(target=self._run, args=(client, random.Random(number)), daemon=True)
            for number, client in enumerate(self._clients)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def allow(self, *wanted: Answers) -> None:
        """From now on an answer is right if it is as in one of these; requests under way may also be as before."""
        self._wanted = wanted

    @property
    def reconnected(self) -> int:
        return sum(client.reconnected for client in self._clients)

    def sent(self, since: float = 0.0, until: float = float("inf")) -> list[Sent]:
        """The requests that were sent in that time and have been answered, or have failed."""
        with self._lock:
            return [one for one in self._sent if since <= one.at <= until]

    def _run(self, client: Client, order: random.Random) -> None:
        names = order.sample(self._round, len(self._round))
        for name in itertools.cycle(names):
            if self._stop.is_set():
                break
            at, allowed_then = time.monotonic(), self._wanted
            try:
                answer = ask(client, self._documents[name])
                allowed = (*allowed_then, *self._wanted)
                problem = "; ".join(min((differences(wanted[name], answer) for wanted in allowed), key=len))
            except NoAnswerError as error:
                problem = str(error)
            with self._lock:
                self._sent.append(Sent(at, name, problem))
        client.close()
