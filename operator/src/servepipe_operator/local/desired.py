"""What a local run is asked to be: the file as applied last, and what was scaled by hand since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from servepipe import api
from servepipe.errors import RunError, ServePipeError
from servepipe_operator.engine.state import Json
from servepipe_operator.local.flags import Flags, flags_of
from servepipe_operator.local.resources import declared_replicas, scaled
from servepipe_operator.local.sources import Compiled

__all__ = ["Desired"]


class Desired:
    """The resource to run. A change is taken as a whole, or raises and changes nothing.

    Args:
        compiled: What `up` was started with.
        file: Where the resource is written for people at each change.
        replicas_at_most: Cap on the replicas of any one node, or None.

    Attributes:
        compiled: The file as applied last, `resource` its content.
        pipeline: What the engine is to reach; its generation counts the changes, 0 before `start`.
        code_paths: Folder with the sources, by digest, of everything that may still run.
    """

    def __init__(self, compiled: Compiled, file: Path, *, replicas_at_most: int | None) -> None:
        self.compiled = compiled
        self.resource: Json = api.load_yaml(compiled.document)
        self.pipeline = api.read(compiled.document)
        self.code_paths = dict(compiled.code_paths)
        self.generation = 0
        self._file = file
        self._at_most = replicas_at_most
        self._sizes: dict[str, int] = {}

    @property
    def grpc(self) -> bool:
        """Whether the pipeline is to answer gRPC."""
        return _answers_grpc(self.resource)

    @property
    def route(self) -> str:
        """The path at which the pipeline is to answer."""
        return str((self.resource["spec"].get("ingress") or {}).get("route", "/"))

    @property
    def flags(self) -> Flags:
        """What the file says about the environment of Ray. Raises `ServePipeError`."""
        return flags_of(self.resource)

    def start(self) -> None:
        """Ask for what the file says. Raises `ServePipeError`."""
        self._take(self.resource)

    def know_code(self, code_paths: Mapping[str, str]) -> None:
        """Add copies of sources that earlier runs left."""
        self.code_paths = {**code_paths, **self.code_paths}

    def apply(self, compiled: Compiled) -> None:
        """Ask for another file of the same pipeline. Raises `ServePipeError`."""
        if compiled.pipeline != self.compiled.pipeline:
            raise RunError(
                f"The file is the pipeline {compiled.pipeline!r}, what runs here is {self.compiled.pipeline!r}",
                where="metadata.name",
                fix=f"Start it beside this one: `servepipe up FILE`, or rename it to {self.compiled.pipeline!r}.",
            )
        resource: Json = api.load_yaml(compiled.document)
        if _answers_grpc(resource) != self.grpc:
            raise RunError(
                "Whether the pipeline answers gRPC is settled when its Ray starts",
                where="spec.ingress.grpc",
                fix="Stop it with `servepipe down`, and start the changed file with `servepipe up FILE`.",
            )
        if flags_of(resource).values != self.flags.values:
            raise RunError(
                "The environment of Ray is settled when it starts",
                where="spec.cluster.head.template",
                fix="Stop it with `servepipe down`, and start the changed file with `servepipe up FILE`.",
            )
        before, now = declared_replicas(self.resource), declared_replicas(resource)
        # What was scaled by hand stays, unless the file itself has changed its mind about that node.
        sizes = {node: n for node, n in self._sizes.items() if node in now and now[node] == before.get(node)}
        previous, self.code_paths = self.code_paths, {**self.code_paths, **compiled.code_paths}
        try:
            self._take(scaled(resource, sizes, at_most=self._at_most))
        except ServePipeError:
            self.code_paths = previous
            raise
        self.resource, self._sizes, self.compiled = resource, sizes, compiled

    def scale(self, node: str, replicas: int) -> None:
        """Ask for another number of replicas of one node, or of the ingress. Raises `ServePipeError`."""
        sizes = {**self._sizes, node: replicas}
        self._take(scaled(self.resource, sizes, at_most=self._at_most))
        self._sizes = sizes

    def _take(self, resource: Json) -> None:
        pipeline = api.validate(resource)
        if problems := api.problems(pipeline):
            raise api.InvalidResourceError(problems)
        try:
            self._file.write_text(api.write(pipeline), encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"The resource cannot be written: {error.strerror}",
                where=str(self._file),
                fix="Make room or set the permissions right, then try again; what runs stays as it was.",
            ) from error
        self.generation += 1
        metadata = pipeline.metadata.model_copy(update={"generation": self.generation})
        self.pipeline = pipeline.model_copy(update={"metadata": metadata})


def _answers_grpc(resource: Json) -> bool:
    return (resource["spec"].get("ingress") or {}).get("grpc") is not None
