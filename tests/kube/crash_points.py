"""Operators that are killed at a chosen write and started again, and pipelines that go through it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from bed.client import RefusedError
from bed.control_plane import ControlPlane
from end_objects import CHILDREN, PIPELINE, REVISIONS, differences, end_objects, groups_of, secret_token
from kuberay.control import KubeRay
from operator_process import QUICK
from pipelines import ENV

Json = dict[str, Any]
Kill = tuple[int, str]

NAME = "shop"
SIGKILL = 9
PODS = "/api/v1/namespaces/{}/pods"
#: For one step of one scenario; many go on at the same time.
WAIT_S = 360.0
LOOK_S = 0.7
CALLER_S = 0.2


class Operators:
    """The program `crash_operator`, which makes operators out of forks of itself. Threads may share it."""

    def __init__(self, folder: Path, plane: ControlPlane) -> None:
        self._folder, self._plane = folder, plane
        here = Path(__file__).parent
        paths = [str(here), *(path for path in sys.path if path)]
        inside = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
        env = {name: value for name, value in os.environ.items() if name not in inside}
        # The client reads it when it is imported.
        env |= {"PYTHONPATH": os.pathsep.join(paths), "KUBECONFIG": str(plane.kubeconfig)}
        self._popen = subprocess.Popen(
            [sys.executable, str(here / "crash_operator.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
        self._ended: dict[str, tuple[int, int]] = {}
        self._stopped: set[str] = set()
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="ends of operators", daemon=True)
        self._reader.start()

    def start(
        self,
        name: str,
        namespace: str,
        kill: Kill | None = None,
        program: str = "",
        more: Mapping[str, str] | None = None,
    ) -> None:
        """An operator of one namespace, whose Lease is free by then.

        Args:
            program: A function as ``module:name`` that is called in its process first.
            more: Further settings.
        """
        with contextlib.suppress(RefusedError):
            self._plane.api.delete(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/servepipe-operator")
        # Nobody waits for the Lease of one that was killed. It is so long that a machine that is full does not lose it:
        # that would end the operator at another point than the one at which it is to be killed.
        env = {
            **{key: value for key, value in QUICK.items() if "LEASE" not in key and "TIMEOUT" not in key},
            **ENV,
            "SERVEPIPE_LEASE_DURATION_S": "600",
            "SERVEPIPE_CHANGING_S": "0.5",
            "SERVEPIPE_NAMESPACE": namespace,
            "SERVEPIPE_INSTANCE": "operator-0",
            "SERVEPIPE_WATCH_NAMESPACES": namespace,
            **(more or {}),
        }
        log, writes = str(self._folder / f"{name}.log"), str(self._writes(name))
        self._send({"start": name, "env": env, "log": log, "writes": writes, "kill": kill, "program": program})

    def stop(self, name: str) -> None:
        """SIGKILL, and wait for the end."""
        self._stopped.add(name)
        self._send({"stop": name})
        with self._changed:
            assert self._changed.wait_for(lambda: name in self._ended, 20), f"operator {name} does not end"

    def killed_itself(self, name: str) -> bool:
        """False while it runs; AssertionError where it ended otherwise."""
        with self._changed:
            ended = self._ended.get(name)
        assert ended in (None, (SIGKILL, 0)), f"ended with signal and code {ended}\n{self.tail(name)}"
        return ended is not None

    def must_run(self, *names: str) -> None:
        """Raises RuntimeError where one of those ended otherwise than by `stop`."""
        for name in names:
            with self._changed:
                if name in self._ended and name not in self._stopped:
                    raise RuntimeError(self.tail(name))

    def writes(self, name: str) -> list[str]:
        """What it wrote so far, such as ``create secrets``; the last one did not leave if it was killed before."""
        path = self._writes(name)
        return path.read_text().splitlines() if path.exists() else []

    def tail(self, name: str) -> str:
        """The end of its log."""
        return f"--- the end of {name}.log:\n" + "\n".join(self.log(name).splitlines()[-25:])

    def log(self, name: str) -> str:
        """All of its log."""
        log = self._folder / f"{name}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def close(self) -> None:
        """End it with all operators."""
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._popen.kill()
        self._popen.wait()
        self._reader.join()
        self._popen.stdin.close()
        self._popen.stdout.close()

    def _writes(self, name: str) -> Path:
        return self._folder / f"{name}.writes"

    def _send(self, command: Json) -> None:
        assert self._popen.stdin is not None
        with self._changed:
            if "start" in command:
                self._ended.pop(command["start"], None)
            self._popen.stdin.write(json.dumps(command).encode() + b"\n")
            self._popen.stdin.flush()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            told = json.loads(line)
            with self._changed:
                self._ended[told["ended"]] = (told["signal"], told["code"])
                self._changed.notify_all()


@dataclass(frozen=True)
class Scenario:
    """A change, and when it is over.

    Args:
        spec: What is applied; None deletes.
        settled: Of the pipeline as it is then.
        callers: Somebody sends requests meanwhile.
    """

    name: str
    spec: Json
    settled: Callable[[Json], bool]
    callers: bool = False


@dataclass
class Reference:
    """What an uninterrupted run came to, for those who compare."""

    objects: Future[Json] = field(default_factory=Future)
    writes: Future[list[str]] = field(default_factory=Future)


class Chain:
    """One pipeline in a namespace of its own that goes through scenarios, one after the other.

    Args:
        kill: The operator is killed there in each scenario; None: never.
    """

    def __init__(self, operators: Operators, plane: ControlPlane, kuberay: KubeRay, kill: Kill | None) -> None:
        self._operators, self._plane, self._kuberay, self.kill = operators, plane, kuberay, kill
        name = f"crash-{kill[1]}-{kill[0]}" if kill else "crash-never"
        self.namespace = plane.create_namespace(name)
        self._token = ""
        self.killed: dict[str, str] = {}
        """The write at which it was killed, by scenario; those that had fewer writes are missing."""
        self.whole: dict[str, int] = {}
        """How many writes the others had, which were not killed."""

    def run(self, scenario: Scenario, reference: Reference) -> None:
        """Apply it, start the operator that is killed, start one that is not, and compare what is there in the end."""
        name = f"{self.namespace}-{scenario.name}"
        path = PIPELINE.format(self.namespace, NAME)
        resource = {"apiVersion": "servepipe.dev/v1alpha1", "kind": "ServePipeline", "metadata": {"name": NAME}}
        self._plane.api.apply(path, {**resource, "spec": scenario.spec}, force=True)
        self._callers(scenario.callers)
        self._operators.start(name, self.namespace, self.kill)
        self._wait(f"{scenario.name} to be over", name, lambda: scenario.settled(self._plane.api.get(path)))
        seen: list[Json] = [{}]
        if self.kill is None:
            self._wait("nothing to change any more", name, lambda: self._quiet(seen), lambda: _left(seen))
            reference.writes.set_result(self._operators.writes(name))
            reference.objects.set_result(seen[-1])
        else:
            wanted = reference.objects.result(WAIT_S)
            self._wait(
                "the objects of the uninterrupted run",
                name,
                lambda: self._equal(seen, wanted),
                lambda: "\n".join(differences(seen[-1], wanted)),
            )
        self._callers(False)
        self._check(scenario)
        self._operators.stop(name)
        if scenario.name not in self.killed:
            count = len(self._operators.writes(name))
            # Its k-th write may have come between the comparison and the end.
            self.whole[scenario.name] = min(count, self.kill[0] - 1) if self.kill else count

    def remove(self) -> list[str]:
        """Delete the pipeline and wait until nothing of it is left; what the operator wrote meanwhile."""
        name = f"{self.namespace}-delete"
        self._operators.start(name, self.namespace, self.kill)
        self._wait("the operator to look around", name, lambda: "watching" in self._operators.log(name))
        self._plane.api.delete(PIPELINE.format(self.namespace, NAME))

        def gone() -> bool:
            paths = [path.format(self.namespace) for path in (*CHILDREN.values(), REVISIONS, PODS)]
            left = [one for path in paths for one in self._plane.api.get(path)["items"]]
            return not [one for one in left if one["metadata"].get("ownerReferences")]

        self._wait("nothing to be left", name, gone)
        self._operators.stop(name)
        return self._operators.writes(name)

    def _wait(self, what: str, name: str, check: Callable[[], object], told: Callable[[], str] = lambda: "") -> None:
        end = time.monotonic() + WAIT_S
        while True:
            if self._operators.killed_itself(name):
                scenario = name.removeprefix(f"{self.namespace}-")
                assert scenario not in self.killed, f"{name} was killed twice"
                self.killed[scenario] = self._operators.writes(name)[-1]
                self._operators.start(name, self.namespace)
            with contextlib.suppress(httpx.TransportError):
                if check():
                    return
            if time.monotonic() > end:
                raise AssertionError(
                    f"{name}, killed at {self.killed}: waited {WAIT_S} s for {what}\n{told()}\n"
                    f"{self._statuses()}\n{self._operators.tail(name)}"
                )
            time.sleep(LOOK_S)

    def _quiet(self, seen: list[Json]) -> bool:
        """Whether nothing changed since the last look, and no pod is left over."""
        seen.append(end_objects(self._plane, self._kuberay, self.namespace, NAME))
        clusters = [one for key, one in seen[-1].items() if key.startswith("RayCluster")]
        pods = seen[-1]["pods"]
        emptied = all(
            group["groupName"] in pods or not group["maxReplicas"] or seen[-1]["serve"] is None
            for one in clusters
            for group in groups_of(one)
        )
        return emptied and not seen[-1]["idle pods"] and seen[-1] == seen[-2]

    def _equal(self, seen: list[Json], wanted: Json) -> bool:
        seen[:] = [end_objects(self._plane, self._kuberay, self.namespace, NAME)]
        return seen[0] == wanted

    def _check(self, scenario: Scenario) -> None:
        """What no object shows."""
        token = secret_token(self._plane, self.namespace, NAME)
        assert token and self._token in ("", token), f"{self.namespace}: {scenario.name} made another token"
        self._token = token
        seen = self._kuberay.look(self.namespace, self._cluster())
        assert seen["problems"] == [], f"{self.namespace}, {scenario.name}, killed at {self.killed}: {seen['problems']}"
        assert seen["head"] is None or seen["head"]["token"] == token, f"{self.namespace}: the head has another token"

    def _statuses(self) -> str:
        """Of the pipeline and its RayClusters."""
        live = self._plane.api.find(PIPELINE.format(self.namespace, NAME)) or {}
        clusters = self._plane.api.get(CHILDREN["RayCluster"].format(self.namespace))["items"]
        told = [{"suspend": one["spec"].get("suspend"), "status": one.get("status")} for one in clusters]
        return json.dumps({"pipeline": live.get("status"), "clusters": told}, indent=1)

    def _callers(self, there: bool) -> None:
        if cluster := self._cluster():
            self._kuberay.callers(self.namespace, cluster, CALLER_S if there else 0.0)

    def _cluster(self) -> str:
        live = self._plane.api.get(PIPELINE.format(self.namespace, NAME))
        clusters = live.get("status", {}).get("clusters") or [{"name": ""}]
        return str(clusters[0]["name"])


def _left(seen: list[Json]) -> str:
    """What still changes, and the pods that nobody needs."""
    changed = differences(seen[-2], seen[-1]) if len(seen) > 1 else []
    return "\n".join([*changed, f"idle pods: {seen[-1].get('idle pods')}"])
