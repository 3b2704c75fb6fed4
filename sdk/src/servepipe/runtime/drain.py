"""What a worker's pod does before it ends: nothing that callers wait for is lost with it.

    python -m servepipe.runtime.drain --grace 600 [--proxy]

It is the ``preStop`` hook of the pods of workers. Ray's node in this pod is drained: Serve starts other replicas
elsewhere, and only when they run it stops the ones that are here, which finish their requests first. Then Ray is ended:
the SIGTERM that Kubernetes sends does not reach it where a shell is process 1.

It does not wait where there is nothing to wait for: no replica in this pod, or no head that would start others, as when
the whole cluster is deleted. It always ends with 0, because the pod ends in any case, and says on the pod's log why.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, Self

__all__ = ["Gcs", "Head", "Node", "Process", "drain", "main", "processes"]

#: Of Serve's actors, as Ray names their processes.
_REPLICA = "ray::ServeReplica:"
_PROXIES = ("ray::HAProxyManager", "ray::ProxyActor")

#: Seconds before the end of the grace period in which Ray still ends in order.
_MARGIN_S = 15.0
#: What Ray has to end in order.
_END_S = 10
_LOOK_EVERY_S = 0.5
#: How long GCS may take for an answer; longer means that it, or the raylet, hangs.
_ANSWER_S = 10.0
#: A head that restarts with GCS fault tolerance takes longer to be there again; without a head nothing moves anyway.
_LOST_AFTER = 3


@dataclass(frozen=True, slots=True)
class Process:
    """One process; ``command`` is empty for one that ended and for the kernel's."""

    pid: int
    parent: int
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """Ray's node in this pod.

    Args:
        raylet: Its process.
        node_id: In hexadecimal digits.
        gcs: ``host:port`` of GCS, as the raylet was told.
    """

    raylet: Process
    node_id: str
    gcs: str

    @classmethod
    def among(cls, found: Iterable[Process]) -> Self | None:
        """None where no raylet runs."""
        for process in found:
            if process.command and Path(process.command[0]).name == "raylet":
                flags = dict(one.lstrip("-").split("=", 1) for one in process.command[1:] if "=" in one)
                return cls(process, flags.get("node_id", ""), flags.get("gcs-address", ""))
        return None

    def waits_for(self, found: Iterable[Process], *, proxy: bool) -> list[str]:
        """The actors of Serve on this node, by the names of their processes.

        Args:
            proxy: Callers are connected to this node's proxy, so that counts, too.
        """
        wanted = (_REPLICA, *_PROXIES) if proxy else (_REPLICA,)
        names = [one.command[0] for one in found if one.parent == self.raylet.pid and one.command]
        return sorted(name for name in names if name.startswith(wanted))


class Gcs(Protocol):
    """What of Ray's head is needed."""

    def drain(self, node_id: str, deadline: float, message: str) -> str:
        """Ask for it.

        Args:
            deadline: When the node ends at the latest, as ``time.time``.

        Returns:
            Why not, or "".
        """
        ...

    def there(self) -> bool:
        """Whether anybody listens."""
        ...


class Head:
    """`Gcs` of a real Ray. No call raises, none takes longer than some seconds."""

    def __init__(self, address: str) -> None:
        self.address = address

    def drain(self, node_id: str, deadline: float, message: str) -> str:
        answer: list[str] = []

        def ask() -> None:
            try:
                answer.append(self._ask(node_id, deadline, message))
            except Exception as error:  # Ray's own, of many kinds
                answer.append(f"{type(error).__name__}: {error}")

        # Ray's client tries again and again to reach a GCS that is gone, whatever the timeout of the call.
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        end, lost = time.monotonic() + 2 * _ANSWER_S, 0
        while not answer and lost < _LOST_AFTER and time.monotonic() < end:
            thread.join(_LOOK_EVERY_S)
            lost = 0 if self.there() else lost + 1
        return answer[0] if answer else "no answer"

    def _ask(self, node_id: str, deadline: float, message: str) -> str:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        client: Any = GcsClient(address=self.address)
        accepted, why = client.drain_node(node_id, reason, message, int(deadline * 1000), timeout=_ANSWER_S)
        return "" if accepted else why or "refused"

    def there(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
        except (OSError, ValueError):
            return False
        return True


def drain(
    node: Node,
    gcs: Gcs,
    look: Callable[[], Sequence[Process]],
    *,
    grace_s: float,
    proxy: bool,
    clock: Callable[[], float] = time.time,
    wait: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = print,
) -> str:
    """Drain the node and wait until nothing is left that callers need. Returns why it waits no longer.

    Args:
        look: Lists this pod's processes.
        grace_s: Seconds until the pod is killed.
    """
    deadline = clock() + grace_s - _MARGIN_S
    left = node.waits_for(look(), proxy=proxy)
    if not left:
        return "no replica is here"
    if not gcs.there():
        return "the head is gone"
    refused = gcs.drain(node.node_id, deadline, "the pod is being deleted")
    if refused and not gcs.there():  # it went only now
        return "the head is gone"
    if refused:
        return f"the node could not be drained: {refused}"
    say(f"draining: {len(left)} actors of Serve are here")
    lost = 0
    while clock() < deadline:
        found = look()
        left = node.waits_for(found, proxy=proxy)
        if not left:
            return "all replicas have moved"
        if not any(one.pid == node.raylet.pid and one.command for one in found):
            return "Ray has ended"
        lost = 0 if gcs.there() else lost + 1
        if lost == _LOST_AFTER:
            return "the head is gone"
        wait(_LOOK_EVERY_S)
    return f"the time is over; still here: {', '.join(left)}"


def processes(proc: Path = Path("/proc")) -> list[Process]:
    """All that this one may see; in a pod those of its containers."""
    found = []
    for folder in proc.iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # it ended meanwhile
                command = (folder / "cmdline").read_bytes().decode(errors="replace").rstrip("\0 ")
                # The name in parentheses may hold anything, so count from its end: state, parent.
                parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
                found.append(Process(int(folder.name), int(parent), tuple(command.split("\0")) if command else ()))
    return found


def _keepers(node: Node | None, found: Sequence[Process]) -> list[int]:
    """The processes with which Ray ends here: the raylet, and ``ray start --block``, which may outlive it."""
    starters = [
        one.pid
        for one in found
        if "--block" in one.command
        and any(Path(a).name == "ray" and b == "start" for a, b in pairwise(one.command))
        and (node is None or one.pid == node.raylet.parent)
    ]
    return [node.raylet.pid, *starters] if node else starters


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m servepipe.runtime.drain", description=__doc__)
    parser.add_argument("--grace", type=float, required=True, help="seconds until the pod is killed")
    parser.add_argument("--proxy", action="store_true", help="callers reach this pod's proxy: wait for it, too")
    given = parser.parse_args(arguments)
    begun = time.monotonic()
    found = processes()
    node = Node.among(found)
    keepers = _keepers(node, found)
    say = partial(_say, keepers)
    why = "Ray does not run"
    if node is not None:
        head = Head(os.environ.get("RAY_ADDRESS") or node.gcs)
        why = drain(node, head, processes, grace_s=given.grace, proxy=given.proxy, say=say)
    say(f"ending Ray after {time.monotonic() - begun:.1f} s: {why}")
    _end(keepers)
    return 0


def _end(pids: Sequence[int]) -> None:
    """SIGTERM now, SIGKILL later: without a head Ray may wait for its answer before it ends.

    Not waited for: when process 1 ends, so does whoever waits in this container, and Kubernetes would call that failed.
    """
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    if pids:
        later = f"sleep {_END_S}; kill -KILL {' '.join(map(str, pids))}"
        quiet = subprocess.DEVNULL  # the hook ends when nobody holds its output any more
        subprocess.Popen(["sh", "-c", later], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


def _say(keepers: Sequence[int], text: str) -> None:
    """On the pod's log, where ``ray start`` writes: nobody sees what a hook prints.

    Process 1 is the pod's own where its containers share their processes.
    """
    line = f"servepipe: {text}\n"
    for pid in (*reversed(keepers), 1):  # the raylet, which has a log of its own, is the first
        try:
            Path(f"/proc/{pid}/fd/1").write_text(line, encoding="utf-8")
        except OSError:
            continue
        return
    print(line, end="", flush=True)  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(main())
