"""Pipelines in the namespace of a test: applied as people do, and watched as they come and go."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bed.control_plane import ControlPlane
from bed.processes import wait_for
from kuberay.control import KubeRay
from operator_process import OperatorProcess

Json = dict[str, Any]
#: What the operator's own pace needs in tests; the dashboards have addresses of their own.
ENV = {"SERVEPIPE_DASHBOARD": "pod-ip"}


class Pipelines:
    """Args:
    namespace: Where they are.
    operator: The process that runs them.
    """

    def __init__(self, plane: ControlPlane, kuberay: KubeRay, namespace: str, operator: OperatorProcess) -> None:
        self.plane, self.kuberay, self.namespace, self.operator = plane, kuberay, namespace, operator

    # -- writing

    def resource(self, name: str, nodes: Mapping[str, Sequence[Any] | Json], **spec: Any) -> Json:
        """A pipeline whose graph calls each node once.

        Args:
            nodes: By name the arguments of its constructor (the first says how it behaves, see `kuberay`), or all.
        """
        full = {
            node: dict(one) if isinstance(one, Mapping) else {"import": "models:Model", "args": list(one)}
            for node, one in nodes.items()
        }
        graph = {
            "steps": [{"name": f"{node}-out", "node": node, "args": [{"$input": []}]} for node in full],
            "output": [{"$step": f"{node}-out"} for node in full],
        }
        return {
            "apiVersion": "servepipe.dev/v1alpha1",
            "kind": "ServePipeline",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"image": "shop/models:1", "graph": graph, "nodes": full, **spec},
        }

    def apply(self, resource: Json, *, server_side: bool = True) -> None:
        """With kubectl."""
        self.apply_text(json.dumps(resource), server_side=server_side)

    def apply_text(self, text: str, *, server_side: bool = True) -> None:
        """As `apply`, of a file's contents."""
        flags = ["--server-side", "--force-conflicts"] if server_side else []
        self.plane.kubectl("apply", *flags, "-f", "-", stdin=text)

    def patch(self, name: str, **spec: Any) -> None:
        """A merge patch of the spec, as ops people do."""
        patch = json.dumps({"spec": spec})
        self.plane.kubectl("-n", self.namespace, "patch", "svp", name, "--type=merge", "-p", patch)

    def delete(self, name: str) -> None:
        """Without waiting for the end."""
        self.plane.api.delete(f"{self.path}/{name}")

    # -- reading

    @property
    def path(self) -> str:
        return f"/apis/servepipe.dev/v1alpha1/namespaces/{self.namespace}/servepipelines"

    def get(self, name: str) -> Json:
        found = self.plane.api.find(f"{self.path}/{name}")
        assert found is not None, f"there is no pipeline {name}"
        return found

    def cluster(self, name: str) -> str:
        """Name of its RayCluster, as status says."""
        return str(self.get(name)["status"]["clusters"][0]["name"])

    def children(self, resource: str, name: str) -> list[Json]:
        """Objects with the pipeline's label; ``resource`` like ``apis/ray.io/v1:rayclusters``."""
        prefix, plural = resource.split(":")
        found = self.plane.api.find(f"/{prefix}/namespaces/{self.namespace}/{plural}")
        items = found["items"] if found else []
        return [one for one in items if (one["metadata"].get("labels") or {}).get("servepipe.dev/pipeline") == name]

    @staticmethod
    def conditions(live: Json) -> dict[str, str]:
        return {one["type"]: one["status"] for one in live.get("status", {}).get("conditions", [])}

    @staticmethod
    def condition(live: Json, kind: str) -> Json:
        found = live.get("status", {}).get("conditions", [])
        return next((one for one in found if one["type"] == kind), {})

    # -- waiting

    def wait_until(self, what: str, name: str, check: Callable[[Json], object], timeout: float = 180.0) -> Json:
        """The pipeline once ``check`` of it is true."""

        def look() -> Json | None:
            self.operator.must_run()
            live = self.get(name)
            return live if check(live) else None

        # Many wait at the same time, and each look costs the API server something.
        found = wait_for(f"{what} of pipeline {name}", look, timeout, lambda: self._tell(name), pause=0.1)
        assert found is not None
        return found

    def wait_for(self, name: str, kind: str, status: str = "True", timeout: float = 180.0, reason: str = "") -> Json:
        """Until a condition of the resource as it stands has this status (and reason)."""

        def check(live: Json) -> bool:
            one = self.condition(live, kind)
            current = one.get("observedGeneration") == live["metadata"]["generation"]
            return current and one.get("status") == status and reason in ("", one.get("reason"))

        return self.wait_until(f"{kind}={status} {reason}", name, check, timeout)

    def wait_settled(self, name: str, timeout: float = 240.0) -> Json:
        """Until it is Ready and nothing is under way any more."""

        def check(live: Json) -> bool:
            ready = self.condition(live, "Ready")
            current = ready.get("observedGeneration") == live["metadata"]["generation"]
            return current and ready.get("status") == "True" and not self.condition(live, "Reconciling")

        return self.wait_until("Ready without Reconciling", name, check, timeout)

    def _tell(self, name: str) -> str:
        live = self.plane.api.find(f"{self.path}/{name}") or {}
        return json.dumps(live.get("status"), indent=1) + "\n" + self.operator.tail()
