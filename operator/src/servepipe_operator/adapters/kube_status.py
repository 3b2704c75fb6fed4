"""The resource's status, written by server-side apply on its ``/status``."""

from __future__ import annotations

from servepipe_operator.adapters.kube import Kube, Resource
from servepipe_operator.adapters.kube_errors import Conflict
from servepipe_operator.adapters.owner import Owner
from servepipe_operator.engine.state import Json

__all__ = ["KubeStatus"]

ATTEMPTS = 4


class KubeStatus:
    """The `StatusWriter` port of one pipeline.

    The whole status is applied each time, so that a field which is no longer said vanishes; conditions are a map by
    type in the schema, so that those of other writers stay. A write that meets another change of the object is made
    again on what is there now, unless that is a new object with the same name.

    Args:
        live: The object as read at the begin of this reconcile; None reads it when asked.
    """

    def __init__(self, kube: Kube, resource: Resource, owner: Owner, live: Json | None = None) -> None:
        self._kube = kube
        self._resource = resource
        self._owner = owner
        self._live = live

    @property
    def latest(self) -> Json | None:
        """The whole object as it was read or answered last."""
        return self._live

    async def read(self) -> Json:
        """See `servepipe_operator.ports.StatusWriter.read`. Raises `kube_errors.KubeError`."""
        if self._live is None:
            self._live = await self._kube.get(self._resource, self._owner.namespace, self._owner.name)
        status = self._live.get("status")
        return status if isinstance(status, dict) else {}

    async def write(self, status: Json) -> None:
        """See `servepipe_operator.ports.StatusWriter.write`.

        Raises:
            kube_errors.NotFound: The pipeline is gone.
            kube_errors.Conflict: It is another object with the same name by now, or it changes all the time.
        """
        for attempts_left in reversed(range(ATTEMPTS)):
            await self.read()
            metadata = (self._live or {})["metadata"]
            if metadata["uid"] != self._owner.uid:
                raise Conflict(f"{self._resource.kind} {self._owner.namespace}/{self._owner.name} was made anew")
            try:
                self._live = await self._kube.apply_status(self._resource, self._body(metadata, status))
                return
            except Conflict:
                self._live = None
                if not attempts_left:
                    raise

    def _body(self, metadata: Json, status: Json) -> Json:
        """With the version that was seen: the API server does not compare uids in a status, and drops the rest."""
        return {
            "apiVersion": self._resource.api_version,
            "kind": self._resource.kind,
            "metadata": {
                "namespace": self._owner.namespace,
                "name": self._owner.name,
                "resourceVersion": metadata["resourceVersion"],
            },
            "status": status,
        }
