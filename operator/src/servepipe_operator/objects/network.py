"""Who may reach the pods. Whoever reaches Ray's dashboard or GCS runs code in the cluster."""

from __future__ import annotations

from collections.abc import Sequence

from servepipe.api.v1alpha1 import Ingress, Spec
from servepipe_operator.engine.state import Json
from servepipe_operator.objects.names import ROLE_LABEL, Owner, ingress_policy_name, metadata
from servepipe_operator.objects.pods import DASHBOARD_PORT, METRICS_PORT, SERVE_PORT

__all__ = ["PEERS", "network_policies", "operator_peer", "policy_of"]

#: Where `policy_of` has its peers.
PEERS = "spec.ingress[0].from"

#: KubeRay's label on every pod of a RayCluster.
_CLUSTER_LABEL = "ray.io/cluster"
#: Every pod of the policy's own namespace.
_SAME_NAMESPACE: Json = {"podSelector": {}}


def operator_peer(namespace: str, pod_labels: dict[str, str]) -> Json:
    """The operator's pods, as the peer of a NetworkPolicy."""
    return {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "podSelector": {"matchLabels": pod_labels},
    }


def network_policies(owner: Owner, cluster: str, spec: Spec, operator: Sequence[Json]) -> list[Json]:
    """Two policies, of ingress only: for every pod of the RayCluster, and for the callers of its ingress pods.

    Args:
        cluster: Name of the RayCluster.
        operator: Peers from which the operator comes: its pods, or the API server's addresses (``ipBlock``) where it
            comes through that one's proxy.
    """
    ingress = spec.ingress or Ingress()
    everywhere: list[Json] = [{"from": [{"podSelector": {"matchLabels": {_CLUSTER_LABEL: cluster}}}]}]
    # An empty list of peers means everybody: no peer is no rule.
    if operator:
        everywhere.append(_rule(operator, DASHBOARD_PORT, METRICS_PORT, SERVE_PORT))
    if spec.monitoring and spec.monitoring.from_:
        everywhere.append(_rule(spec.monitoring.from_, METRICS_PORT))
    callers = [_SAME_NAMESPACE] if ingress.from_ is None else ingress.from_
    ports = [SERVE_PORT, *([ingress.grpc.port] if ingress.grpc else [])]
    return [
        _policy(owner, cluster, {_CLUSTER_LABEL: cluster}, everywhere),
        _policy(
            owner,
            ingress_policy_name(cluster),
            {_CLUSTER_LABEL: cluster, ROLE_LABEL: "ingress"},
            [_rule(callers, *ports)] if callers else [],
        ),
    ]


def policy_of(owner: Owner, peers: Sequence[Json]) -> Json:
    """A policy for a dry run, so that the API server says what it has against peers."""
    return _policy(owner, f"{owner.name}-peers", {_CLUSTER_LABEL: owner.name}, [_rule(peers, SERVE_PORT)])


def _rule(peers: Sequence[Json], *ports: int) -> Json:
    return {"from": list(peers), "ports": [{"protocol": "TCP", "port": port} for port in ports]}


def _policy(owner: Owner, name: str, selector: dict[str, str], rules: list[Json]) -> Json:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(owner, name),
        "spec": {"podSelector": {"matchLabels": selector}, "policyTypes": ["Ingress"], "ingress": rules},
    }
