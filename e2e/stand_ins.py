"""Pods that stand for those of a pipeline and for who calls them: same labels, same ports, no Ray.

The labels are those that the operator's own templates, KubeRay and the chart give.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kuberay import names
from policies import Json, listener

from servepipe_operator.engine.pools import INGRESS_POOL, PodWish
from servepipe_operator.objects.names import Owner
from servepipe_operator.objects.pods import HEAD_PORTS, METRICS_PORT, SERVE_PORT, head_template, worker_template

#: Where gRPC is served; and where Ray's processes talk among themselves, which every pod of a cluster may.
GRPC_PORT = 9000
RAYLET_PORT = 10002
#: Where nobody has any business.
OTHER_PORT = 3128
WORKER_PORTS = (METRICS_PORT, SERVE_PORT, RAYLET_PORT)


@dataclass(frozen=True)
class StandIn:
    """A pod.

    Attributes:
        namespace: One of `Namespaces`, by its role.
        ports: Where it listens.
    """

    namespace: str
    name: str
    labels: Mapping[str, str]
    ports: Sequence[int]

    @property
    def key(self) -> str:
        """As rows call it."""
        return f"{self.namespace}/{self.name}"

    def manifest(self, image: str, where: str) -> Json:
        return listener(image, where, self.name, self.labels, self.ports)


def ray_pods(owner: Owner, cluster: str, namespace: str, prefix: str = "") -> list[StandIn]:
    """Head, worker and ingress pod of a RayCluster that the operator made."""
    head = head_template(owner, {}, "image", [])["metadata"]["labels"]
    pods = [
        StandIn(
            namespace,
            f"{prefix}head",
            names.pod_labels(cluster, "head", names.HEAD_GROUP, head),
            (*HEAD_PORTS.values(), RAYLET_PORT),
        )
    ]
    for name, pool, ports in (
        ("worker", "default", WORKER_PORTS),
        ("ingress", INGRESS_POOL, (*WORKER_PORTS, GRPC_PORT)),
    ):
        wished = worker_template(owner, PodWish(pool, {}), "image", {})["metadata"]["labels"]
        labels = names.pod_labels(cluster, "worker", f"{pool}-abcde", wished)
        pods.append(StandIn(namespace, f"{prefix}{name}", labels, ports))
    return pods


def plain(namespace: str, name: str, labels: Mapping[str, str] | None = None) -> StandIn:
    """Any other pod."""
    return StandIn(namespace, name, labels or {}, (METRICS_PORT, SERVE_PORT, OTHER_PORT))
