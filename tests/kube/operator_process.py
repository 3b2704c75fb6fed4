"""The operator as a process: started with a kubeconfig, read by its log and its HTTP port, ended by signals."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from bed.processes import Process, wait_for
from prometheus_client.parser import text_string_to_metric_families

#: Times of a test: a Lease that is taken over within seconds, and no long waits.
QUICK = {
    "SERVEPIPE_LEASE_DURATION_S": "6",
    "SERVEPIPE_LEASE_MARGIN_S": "2",
    "SERVEPIPE_LEASE_RENEW_S": "1",
    "SERVEPIPE_LEASE_RETRY_S": "0.2",
    "SERVEPIPE_API_TIMEOUT_S": "1.9",
    "SERVEPIPE_STEADY_S": "2",
    "SERVEPIPE_CHANGING_S": "0.3",
    "SERVEPIPE_STOP_S": "5",
    "SERVEPIPE_HTTP_HOST": "127.0.0.1",
    "SERVEPIPE_HTTP_PORT": "0",
}
OPERATOR = (sys.executable, "-m", "servepipe_operator.controller")


class OperatorProcess(Process):
    """One operator.

    Args:
        folder: For its log.
        kubeconfig: As whom it speaks to the API server.
        namespace: Its own, with the Lease.
        namespaces: Those that it watches; empty means all.
        env: Further variables; those of `QUICK` hold otherwise.
        program: What is run, by default the real operator.
        instance: Its pod's name, also that of its log.
        user: As the audit log calls it, where that is known.
    """

    def __init__(
        self,
        folder: Path,
        kubeconfig: Path,
        namespace: str,
        *,
        namespaces: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = OPERATOR,
        instance: str = "operator-0",
        user: str = "",
    ) -> None:
        self.user = user
        settings = {
            **QUICK,
            "KUBECONFIG": str(kubeconfig),
            "SERVEPIPE_NAMESPACE": namespace,
            "SERVEPIPE_INSTANCE": instance,
            "SERVEPIPE_WATCH_NAMESPACES": ",".join(namespaces),
            **(env or {}),
        }
        # `env` becomes the program, so that signals reach it.
        unset = [f"--unset={name}" for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")]
        argv = ["env", *unset, *(f"{name}={value}" for name, value in settings.items()), *program]
        super().__init__(instance, argv, folder / f"{instance}.log")

    # -- what it says

    def logs(self) -> list[dict[str, Any]]:
        """The records of its log, over all starts; what is no record is an AssertionError."""
        records = []
        for line in self.log.read_text().splitlines(keepends=True) if self.log.exists() else []:
            if not line.endswith("\n"):
                break  # it is being written
            try:
                records.append(json.loads(line))
            except ValueError:
                raise AssertionError(f"not a record of a log: {line}\n{self.tail()}") from None
        return records

    def messages(self, pattern: str) -> list[dict[str, Any]]:
        """The records whose message has ``pattern`` (a regular expression) in it."""
        return [record for record in self.logs() if re.search(pattern, record["message"])]

    def wait_for_message(self, pattern: str, count: int = 1, timeout: float = 30.0) -> list[dict[str, Any]]:
        """At least ``count`` such records."""

        def said() -> list[dict[str, Any]]:
            self.must_run()
            found = self.messages(pattern)
            return found if len(found) >= count else []

        return wait_for(f"{self.name} to say {pattern!r} {count} times", said, timeout, self.tail)

    def must_run(self) -> None:
        """Raises RuntimeError when it ended."""
        if not self.running():
            raise RuntimeError(self.tail())

    # -- its HTTP port

    @property
    def url(self) -> str:
        """Known as soon as it listens, which this waits for."""
        pattern = r"HTTP port (\d+)"
        since = getattr(self, "_said_before", 0)
        record = self.wait_for_message(pattern, since + 1)[since]
        found = re.search(pattern, record["message"])
        assert found is not None
        return f"http://127.0.0.1:{found[1]}"

    def ready(self) -> tuple[int, str]:
        """Status and body of /readyz."""
        answer = httpx.get(f"{self.url}/readyz", timeout=10, trust_env=False)
        return answer.status_code, answer.text

    def wait_ready(self, leading: bool = True, timeout: float = 30.0) -> None:
        """Until /readyz says so; with ``leading`` also until it has the Lease and has looked around once."""

        def check() -> bool:
            self.must_run()
            try:
                code, text = self.ready()
            except httpx.TransportError as error:
                raise AssertionError(str(error)) from error
            assert code == 200, text
            assert not leading or "(leader: this process)" in text, text
            return not leading or bool(self._since_start(r"^watching "))

        wait_for(f"{self.name} to be ready", check, timeout, self.tail)

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Samples by name and the values of the labels, which are sorted by label."""
        text = httpx.get(f"{self.url}/metrics", timeout=10, trust_env=False).text
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    # -- its life; `kill`, `freeze` and `thaw` are those of any process

    def start(self) -> None:
        """Starts it (again) without waiting; see `wait_ready`."""
        self._said_before = len(self.messages(r"HTTP port \d+"))
        self._lines_before = len(self.logs())
        super().start()

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM; its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait_exit(timeout)

    def wait_exit(self, timeout: float = 20.0) -> int:
        """Its exit code, once it ends."""
        wait_for(f"{self.name} to end", lambda: not self.running(), timeout, self.tail)
        assert self._popen is not None
        return int(self._popen.returncode)

    def _since_start(self, pattern: str) -> list[dict[str, Any]]:
        return [r for r in self.logs()[self._lines_before :] if re.search(pattern, r["message"])]


StartOperator = Callable[..., OperatorProcess]
