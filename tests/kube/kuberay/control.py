"""How tests speak to a stand-in: one small API for a thread in this process and for a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import httpx
from bed.processes import Process, wait_for

from kuberay.pod_status import Outcome
from kuberay.ray import Mood, Put
from kuberay.standin import PARTS, Pace, StandIn

Object = dict[str, Any]
Part = Literal["controller", "kubelet", "autoscaler"]
Port = Literal["dashboard", "serve"]

CALL_TIMEOUT_S = 30.0
START_TIMEOUT_S = 30.0


class KubeRay:
    """What tests may do to a stand-in. ``namespace`` and ``cluster`` name a RayCluster, which need not exist yet."""

    def __init__(self, call: Callable[..., Any], stop: Callable[[], None], pid: int | None = None) -> None:
        self._call, self._stop = call, stop
        self.pid = pid
        """Of its process, or None where it is a thread here."""

    def stop(self) -> None:
        """End it; the objects stay in the API server."""
        self._stop()

    # -- pods

    def pods(self, namespace: str, cluster: str, outcome: Outcome, group: str | None = None) -> None:
        """How pods go from now on, those that are there included.

        Args:
            outcome: "ok", "unschedulable" (stays Pending), "crash" (the containers end; with restartPolicy Never the
                pod fails and KubeRay makes another one, else CrashLoopBackOff), "Failed", or a reason to wait:
                "ImagePullBackOff", "ErrImagePull", "CrashLoopBackOff", "CreateContainerConfigError".
            group: A worker group, "headgroup" for the head, None for all.
        """
        self._call("pods", namespace=namespace, cluster=cluster, outcome=outcome, group=group)

    # -- Ray and Serve

    def behave(self, namespace: str, cluster: str, mood: Mood, seconds: float = 0.0, port: Port = "dashboard") -> None:
        """How the dashboard (or Serve's port, of all pods) answers from now on.

        Args:
            mood: "ok", "slow" and "hang" (after ``seconds``; "hang" without: never), "refuse" (nobody listens),
                "error" (500).
        """
        self._call("behave", namespace=namespace, cluster=cluster, port=port, mood=mood, seconds=seconds)

    def ray_version(self, namespace: str, cluster: str, version: str) -> None:
        """What ``/api/ray/version`` answers; "" for ``spec.rayVersion``."""
        self._call("ray_version", namespace=namespace, cluster=cluster, version=version)

    def puts(self, namespace: str, cluster: str) -> int:
        """How many PUTs all heads of this RayCluster got, refused ones included; stays after the RayCluster is gone."""
        count: int = self._call("puts", namespace=namespace, cluster=cluster)["count"]
        return count

    def last_puts(self, namespace: str, cluster: str) -> list[Put]:
        """The latest 50 PUTs, oldest first."""
        return [Put(**put) for put in self._call("puts", namespace=namespace, cluster=cluster)["last"]]

    def put_counts(self) -> dict[str, int]:
        """`puts` of every RayCluster, by ``namespace/name``."""
        counts: dict[str, int] = self._call("put_counts")
        return counts

    def look(self, namespace: str, cluster: str) -> Object:
        """Inside of Ray: ``head`` (with its ``ip``) or None, ``nodes`` that joined, ``waiting`` demands, ``gets``,
        ``applications`` (replicas, nodes, config), and ``problems``: what Serve should never have been asked."""
        found: Object = self._call("look", namespace=namespace, cluster=cluster)
        return found

    def head_ip(self, namespace: str, cluster: str, timeout: float = 30.0) -> str:
        """Of the head, once it runs."""
        head = wait_for(f"a head of {cluster}", lambda: self.look(namespace, cluster)["head"], timeout)
        ip: str = head["ip"]
        return ip

    def change_serve(
        self,
        namespace: str,
        cluster: str,
        what: Literal["delete", "edit", "kill-replica", "stick", "unstick"],
        application: str,
    ) -> None:
        """What somebody else does to one application: deletes or edits it, kills a replica; or its replicas stay
        in STARTING from now on ("stick")."""
        self._call("change_serve", namespace=namespace, cluster=cluster, what=what, application=application)

    def callers(self, namespace: str, cluster: str, every_s: float) -> None:
        """Somebody sends the ingress a request every so many seconds, from now on; 0: no more.

        They take up to a second, and draw revisions as real ones do. What one of them needs and does not find is told
        in ``problems`` of `look`.
        """
        self._call("callers", namespace=namespace, cluster=cluster, every_s=every_s)

    # -- the stand-in itself

    def pause(self, *parts: Part) -> None:
        """Stop working (all parts by default); dashboards go on."""
        self._call("pause", parts=parts or PARTS)

    def resume(self, *parts: Part) -> None:
        self._call("resume", parts=parts or PARTS)


def in_thread(kubeconfig: Path, pace: Pace | None = None) -> KubeRay:
    """A stand-in in a thread of this process, working when this returns."""
    loop = asyncio.new_event_loop()
    made: Future[StandIn] = Future()
    stopping = asyncio.Event()

    async def main() -> None:
        standin = StandIn(kubeconfig, pace or Pace())
        task = asyncio.create_task(standin.run())
        ready = asyncio.create_task(standin.ready.wait())
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if not standin.ready.is_set():
            made.set_exception(task.exception() or RuntimeError("the stand-in ended"))
            return
        made.set_result(standin)
        await stopping.wait()
        await standin.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        rest = asyncio.all_tasks() - {asyncio.current_task()}  # answers that hang on purpose
        for one in rest:
            one.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        # Connections end in later rounds of the loop.
        await asyncio.sleep(0.1)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), name="kuberay", daemon=True)
    thread.start()
    standin = made.result(START_TIMEOUT_S)

    def call(method: str, **arguments: Any) -> Any:
        done = asyncio.run_coroutine_threadsafe(getattr(standin, method)(**arguments), loop)
        return done.result(CALL_TIMEOUT_S)

    def stop() -> None:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(CALL_TIMEOUT_S)
        loop.close()

    return KubeRay(call, stop)


def in_process(
    kubeconfig: Path,
    folder: Path,
    pace: Pace | None = None,
    *,
    real_pods: bool = False,
    make: Callable[[str, list[str], Path], Process] = Process,
) -> KubeRay:
    """A stand-in in a process of its own, working when this returns.

    Args:
        folder: For its log, ``kuberay.log``, and the file with its port.
        real_pods: The cluster has nodes, see the package; only `KubeRay.pause` and `KubeRay.resume` are left then.
        make: Of its name, command line and log: a process that is not yet started.
    """
    pace = pace or Pace(faster=1.0 if real_pods else Pace.faster)
    port_file = folder / "kuberay.port"
    port_file.unlink(missing_ok=True)
    here = Path(__file__).parent
    paths = [here.parent, here.parents[1] / "fakes", *(Path(path) for path in sys.path if path)]
    argv = [sys.executable, "-m", "kuberay", str(kubeconfig), "--port-file", str(port_file)]
    argv += ["--faster", str(pace.faster), "--pod-start", str(pace.pod_start_s), "--workers", str(pace.workers)]
    argv += [] if pace.events else ["--warnings-only"]
    argv += ["--real-pods", "--verbose"] if real_pods else []
    argv = ["env", f"PYTHONPATH={os.pathsep.join(map(str, paths))}", *argv]
    process = make("kuberay", argv, folder / "kuberay.log")
    process.start()

    def port() -> int:
        if not process.running():
            raise RuntimeError(process.tail())
        return int(port_file.read_text()) if port_file.exists() else 0

    http = httpx.Client(
        base_url=f"http://127.0.0.1:{wait_for('the stand-in', port, START_TIMEOUT_S, process.tail)}",
        trust_env=False,
        timeout=CALL_TIMEOUT_S,
    )

    def call(method: str, **arguments: Any) -> Any:
        answer = http.post("/", content=json.dumps({"method": method, "arguments": arguments}))
        if answer.is_error:
            raise ValueError(answer.text)
        return answer.json()

    def stop() -> None:
        http.close()
        process.kill()

    return KubeRay(call, stop, process.pid)
