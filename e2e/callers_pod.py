"""Callers that never stop, as a program: it runs in a pod beside the pipeline and needs nothing but Python.

    python callers_pod.py '{"url": "http://diamond:8000/", "body": [1, 2, 3], "answers": [8], "clients": 8, "rate": 40}'

Each client keeps its connection and sends at a steady pace, whatever became of the request before. A connection that
was idle may be gone when it is used again; like every HTTP client these then send once more on a new one, and only if
not a byte of an answer has come; ``reopened`` counts that. On standard output there is one JSON object per line: each
second the counts so far, and before them every request that failed; what was before the first right answer does not
count. SIGTERM ends it with the last counts.
"""

from __future__ import annotations

import http.client
import json
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Counts:
    """Since the start; seconds are those of ``time.time``."""

    answered: int = 0
    failed: int = 0
    reopened: int = 0
    slowest: float = 0.0
    latencies: list[float] = field(default_factory=list)


class Callers:
    """Args: what the JSON object on the command line holds.

    url: Where to send.
    body: What is sent, as JSON; or ``documents``: a list of them in base64, sent in turn.
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
        except (OSError, http.client.HTTPException) as error:
            return repr(error)
        if connection is not None:
            connection.close()
        return wrong

    def _tell(self, **more: Any) -> None:
        while not self._lines.empty():
            print(json.dumps(self._lines.get()))
        with self._lock:
            counts, latencies = self.counts, sorted(self.counts.latencies)
            self.counts.latencies = []
        told = {"at": time.time(), "answered": counts.answered, "failed": counts.failed, "reopened": counts.reopened}
        if latencies:
            told |= {"p50": latencies[len(latencies) // 2], "slowest": latencies[-1]}
        print(json.dumps({**told, **more}), flush=True)

    def _client(self, number: int) -> None:
        due = time.monotonic() + self._pause * number / self._clients
        connection: http.client.HTTPConnection | None = None
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._pause, time.monotonic() - self._pause)
            at, begun = time.time(), time.monotonic()
            try:
                connection, wrong = self._ask(connection)
            except (OSError, http.client.HTTPException) as error:
                connection, wrong = None, repr(error)
            seconds = time.monotonic() - begun
            with self._lock:
                if wrong:
                    self.counts.failed += 1
                else:
                    self.counts.answered += 1
                self.counts.latencies.append(seconds)
            if wrong:
                self._lines.put({"failure": wrong, "at": at, "seconds": seconds})
        if connection is not None:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection | None) -> tuple[http.client.HTTPConnection | None, str]:
        """The connection as it can be used again, and what was wrong with the answer ("" when nothing was)."""
        if connection is not None:
            try:
                return self._send(connection)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                connection.close()
                with self._lock:
                    self.counts.reopened += 1
        connection = http.client.HTTPConnection(self._url.hostname or "", self._url.port or 80, timeout=self._timeout)
        try:
            return self._send(connection)
        except BaseException:
            connection.close()
            raise

    def _send(self, connection: http.client.HTTPConnection) -> tuple[http.client.HTTPConnection | None, str]:
        connection.request("POST", self._url.path or "/", self._body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            return connection, f"HTTP {response.status}: {content[:300].decode(errors='replace')}"
        if self._answers and json.loads(content) not in self._answers:
            return connection, f"a wrong answer: {content[:300].decode(errors='replace')}"
        return connection, ""


def main() -> None:
    callers = Callers(**json.loads(sys.argv[1]))
    signal.signal(signal.SIGTERM, callers.stop)
    callers.run()


if __name__ == "__main__":
    main()
