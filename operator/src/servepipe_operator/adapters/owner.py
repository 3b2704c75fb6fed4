"""Whose things these are: a pipeline as the owner of other objects."""

from __future__ import annotations

from dataclasses import dataclass

from servepipe_operator.engine.state import Json
from servepipe_operator.objects.names import owner_reference

__all__ = ["Owner"]


@dataclass(frozen=True, slots=True)
class Owner:
    """A ServePipeline as it is named in references.

    Args:
        api_version: Like ``servepipe.dev/v1alpha1``.
        uid: Of this very object, not of a former one with the same name.
    """

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str

    def owner_reference(self) -> Json:
        """For ``metadata.ownerReferences``: deleted with the pipeline, which is its only controller."""
        return owner_reference(self.api_version, self.kind, self.name, self.uid)

    def object_reference(self) -> Json:
        """For ``regarding`` or ``involvedObject``."""
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
        }
