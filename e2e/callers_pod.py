"""Callers that never stop, as a program: it runs in a pod beside the pipeline and needs nothing but Python.

    python callers_pod.py '{"url": "http://diamond:8000/", "body": [1, 2, 3], "answers": [8], "clients": 8, "rate": 40}'

Each client keeps its connection and sends at a steady pace, whatever became of the request before. A connection that
was closed while it was idle is replaced before anything is sent; ``reopened`` counts these. One that goes after a
request was sent on it, before a byte of an answer has come, may have been closed just then: such a request is sent once
more on a new one, and ``resent`` counts it, because nobody can tell it from one that the server was working on. What
ends in the middle of an answer has failed.

On standard output there is one JSON object per line: each second the counts so far, with ``since``, the Unix seconds at
which the oldest request that is still under way was sent; and before them every request that failed. What was before
the first right answer does not count. SIGTERM ends it with the last counts.
"""

from __future__ import annotations

import http.client
import json
import queue
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Counts:
    """Since the start; seconds are those of ``time.time``."""

    answered: int = 0
    failed: int = 0
    reopened: int = 0
    resent: int = 0
    slowest: float = 0.0
    latencies: list[float] = field(default_factory=list)


class Callers:
    """Args: what the JSON object on the command line holds.

    url: Where to send.
    body: What is sent, as JSON.
    answers: The right answers; any other is a failure. Empty: every 200 is right.
    clients: Connections.
    rate: Requests per second of all of them together.
    timeout: Seconds after which a request has failed.
    """

    def __init__(self, **given: Any) -> None:
        self._url = urlsplit(given["url"])
        self._body = json.dumps(given["body"]).encode()
        self._answers = given["answers"]
        self._timeout = given.get("timeout", 60)
        self._clients = given["clients"]
        self._pause = self._clients / given["rate"]
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._sent: dict[int, float] = {}
        self.counts = Counts()

    def run(self) -> None:
        """Until SIGTERM. Begins with the first right answer: a network may need a moment until it knows a new pod."""
        while not self._stop.is_set() and self._first():
            self._stop.wait(0.2)
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(self._clients)]
        for thread in threads:
            thread.start()
        while not self._stop.wait(1.0):
            self._tell()
        for thread in threads:
            thread.join()
        self._tell(ended=True)

    def stop(self, *_: int | FrameType | None) -> None:
        self._stop.set()

    def _first(self) -> str:
        try:
            connection, wrong = self._ask(None)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return repr(error)
        if connection is not None:
            connection.close()
        return wrong

    def _tell(self, **more: Any) -> None:
        with self._lock:
            counts, latencies = replace(self.counts), sorted(self.counts.latencies)
            self.counts.latencies = []
            now, since = time.time(), min(self._sent.values(), default=None)
        while not self._lines.empty():  # after the counts, so that none is counted and not told
            print(json.dumps(self._lines.get()))
        told = {"at": now, "since": since, "answered": counts.answered, "failed": counts.failed}
        told |= {"reopened": counts.reopened, "resent": counts.resent}
        if latencies:
            told |= {"p50": latencies[len(latencies) // 2], "slowest": latencies[-1]}
        print(json.dumps({**told, **more}), flush=True)

    def _client(self, number: int) -> None:
        due = time.monotonic() + self._pause * number / self._clients
        connection: http.client.HTTPConnection | None = None
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._pause, time.monotonic() - self._pause)
            at, begun = time.time(), time.monotonic()
            with self._lock:
                self._sent[number] = at
            try:
                connection, wrong = self._ask(connection)
            except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no JSON
                connection, wrong = None, repr(error)
            seconds = time.monotonic() - begun
            with self._lock:
                del self._sent[number]
                self.counts.latencies.append(seconds)
                if wrong:
                    self.counts.failed += 1
                    self._lines.put({"failure": wrong, "at": at, "seconds": seconds})
                else:
                    self.counts.answered += 1
        if connection is not None:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection | None) -> tuple[http.client.HTTPConnection | None, str]:
        """The connection as it can be used again, and what was wrong with the answer ("" when nothing was)."""
        # Without a socket where the server said that it closes it.
        if connection is not None and connection.sock is not None and _is_closed(connection.sock):
            with self._lock:
                self.counts.reopened += 1
            connection.close()
        if connection is not None and connection.sock is not None:
            try:
                response = self._begin(connection)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                connection.close()
                with self._lock:
                    self.counts.resent += 1
            else:
                return self._end(connection, response)
        connection = http.client.HTTPConnection(self._url.hostname or "", self._url.port or 80, timeout=self._timeout)
        try:
            response = self._begin(connection)
        except BaseException:
            connection.close()
            raise
        return self._end(connection, response)

    def _begin(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        """Sends it, and waits until an answer begins."""
        connection.request("POST", self._url.path or "/", self._body, {"Content-Type": "application/json"})
        return connection.getresponse()

    def _end(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> tuple[http.client.HTTPConnection, str]:
        try:
            content = response.read()
        except BaseException:
            connection.close()
            raise
        if response.status != 200:
            return connection, f"HTTP {response.status}: {content[:300].decode(errors='replace')}"
        if self._answers and json.loads(content) not in self._answers:
            return connection, f"a wrong answer: {content[:300].decode(errors='replace')}"
        return connection, ""


def _is_closed(idle: socket.socket) -> bool:
    """Whether the server ended it meanwhile: nothing else can be there to read before something was sent."""
    return bool(select.select([idle], [], [], 0)[0])


def main() -> None:
    callers = Callers(**json.loads(sys.argv[1]))
    signal.signal(signal.SIGTERM, callers.stop)
    callers.run()


if __name__ == "__main__":
    main()
