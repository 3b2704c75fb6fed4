"""Pods on a node: only in namespaces that name one, for what goes through its kubelet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kuberay.api import Api, ApiError, Object
from kuberay.store import PODS

NODE_LABEL = "kuberay-stand-in/node"


async def bind(api: Api, pod: Object, namespace: Object | None) -> None:
    """Onto the node that the pod's namespace names, if it does."""
    metadata = pod["metadata"]
    node = ((namespace or {}).get("metadata", {}).get("labels") or {}).get(NODE_LABEL)
    if not node or pod["spec"].get("nodeName"):
        return
    body = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": metadata["name"], "uid": metadata["uid"]},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }
    with _unless_it_changed():
        await api.create(PODS.path(metadata["namespace"], metadata["name"], "binding"), body)


async def end(api: Api, pod: Object) -> None:
    """A pod that is being deleted stays until the kubelet of its node says that its containers have ended."""
    metadata = pod["metadata"]
    if "deletionTimestamp" not in metadata or not pod["spec"].get("nodeName"):
        return
    body = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
    with _unless_it_changed():
        await api.request("DELETE", PODS.path(metadata["namespace"], metadata["name"]), body)


@contextmanager
def _unless_it_changed() -> Iterator[None]:
    """The pod may be gone or bound by now; then there is nothing to do."""
    try:
        yield
    except ApiError as error:
        if error.code not in (404, 409):
            raise
