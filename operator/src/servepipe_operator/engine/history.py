"""What the engine remembers: revisions, graphs, accepted specs, and the checkpoint that says which of them count.

Records are immutable and written before anything of them is sent to Ray. The checkpoint with the highest sequence is
the one that counts; promoting a revision is writing a new one. Nothing else is needed to bring a pipeline back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

from servepipe_operator.engine.names import INGRESS, application, node_of, revision_of
from servepipe_operator.engine.reasons import Reason
from servepipe_operator.engine.revisions import SCHEME
from servepipe_operator.engine.state import Json, Record

__all__ = [
    "Checkpoint",
    "Failure",
    "HistoryError",
    "Memory",
    "Unit",
    "decided",
    "graph_record",
    "prunable",
    "read",
    "revision_record",
    "spec_record",
]

_CHECKPOINT = "checkpoint"


class HistoryError(Exception):
    """A record that this version does not understand. Going on without it would take back what serves."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A revision that could not be started.

    Args:
        attempts: How often it was tried.
        at: When it failed last, in epoch seconds.
        token: The node's ``upgrade.retryToken`` then; another one asks for a new attempt at once.
    """

    revision: str
    reason: Reason
    message: str
    attempts: int
    at: float
    token: str = ""


@dataclass(frozen=True, slots=True)
class Unit:
    """What is remembered of a node, or of the ingress.

    Args:
        stable: The revision that answers callers, or None before the first one was promoted.
        attempt: The nonce with which the stable revision runs.
        live: Name of the accepted spec whose live settings belong to the stable revision.
        failed: The last failure of a revision that was to become stable.
        trouble: The last failure of the stable revision itself.
    """

    stable: str | None = None
    attempt: int = 0
    live: str = ""
    failed: Failure | None = None
    trouble: Failure | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The commit point: the accepted spec, the graph that callers get, and the stable revisions.

    ``cluster`` is the RayCluster as it was decided when the first spec was accepted (`engine.cluster`), or None.
    ``at`` is when it was written (epoch seconds): whatever became superfluous by it may drain from then on.
    """

    spec: str
    graph: str
    ingress: Unit = field(default_factory=Unit)
    nodes: Mapping[str, Unit] = field(default_factory=dict)
    cluster: Json | None = None
    at: float = 0.0
    sequence: int = 0

    def unit(self, name: str) -> Unit:
        """What is remembered of a node or of ``ingress``; an empty `Unit` for a new one."""
        return self.ingress if name == INGRESS else self.nodes.get(name, Unit())

    def with_unit(self, name: str, unit: Unit) -> Checkpoint:
        """The same with another `Unit` for a node or for ``ingress``."""
        if name == INGRESS:
            return replace(self, ingress=unit)
        return replace(self, nodes={**self.nodes, name: unit})

    def record(self) -> Record:
        data: Json = {
            "spec": self.spec,
            "graph": self.graph,
            "at": self.at,
            "ingress": _dump(self.ingress),
            "nodes": {name: _dump(unit) for name, unit in sorted(self.nodes.items())},
        }
        if self.cluster is not None:
            data["cluster"] = self.cluster
        return Record("checkpoint", _CHECKPOINT, data, self.sequence)


@dataclass(frozen=True, slots=True)
class Memory:
    """History as read.

    Args:
        checkpoint: None before the first spec was accepted.
        revisions: Identities of nodes and ingress by name of the application.
        graphs: By revision; ``{"graph", "nodes", "edges"}``.
        specs: Accepted specs by name.
        defaults: The API's defaults with which each of them was accepted, by name (`engine.defaults`).
    """

    checkpoint: Checkpoint | None
    revisions: Mapping[str, Json]
    graphs: Mapping[str, Json]
    specs: Mapping[str, Json]
    defaults: Mapping[str, Json]

    def of_node(self, node: str) -> dict[str, Json]:
        """The known identities of a node by revision."""
        return {revision_of(name): data for name, data in self.revisions.items() if node_of(name) == node}


def read(records: Iterable[Record]) -> Memory:
    """Raises `HistoryError`."""
    revisions: dict[str, Json] = {}
    graphs: dict[str, Json] = {}
    specs: dict[str, Json] = {}
    defaults: dict[str, Json] = {}
    checkpoint: Record | None = None
    for record in sorted(records, key=lambda record: (record.sequence, record.name)):
        with _understood(record):
            match record.kind:
                case "node":
                    revisions[record.name] = dict(record.data["identity"])
                case "graph":
                    graphs[record.name] = {**record.data, "graph": record.data["graph"], "nodes": record.data["nodes"]}
                case "spec":
                    # Records of the first versions are the spec itself.
                    specs[record.name] = dict(record.data.get("spec", record.data))
                    if "defaults" in record.data:
                        defaults[record.name] = dict(record.data["defaults"])
                case "checkpoint":
                    checkpoint = record
    found = None
    if checkpoint is not None:
        with _understood(checkpoint):
            found = _load_checkpoint(checkpoint, revisions)
    return Memory(found, revisions, graphs, specs, defaults)


@contextmanager
def _understood(record: Record) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HistoryError(
            f"the record {record.kind} {record.name!r} of sequence {record.sequence} is written in a way that this "
            f"version does not understand ({type(error).__name__}: {error}); what serves is left as it is. Run the "
            "version that wrote it, or delete that record"
        ) from error


def decided(records: Iterable[Record]) -> Json:
    """The checkpoint that counts, as it is written; {} before the first one."""
    checkpoints = [record for record in records if record.kind == "checkpoint"]
    return max(checkpoints, key=lambda record: record.sequence).data if checkpoints else {}


def revision_record(name: str, identity: Json, sequence: int) -> Record:
    """The record of a revision; ``name`` is its application's. ``sequence`` tells age, for `prunable`."""
    return Record("node", name, {"scheme": SCHEME, "identity": identity}, sequence)


def graph_record(revision: str, data: Json, sequence: int) -> Record:
    return Record("graph", revision, data, sequence)


def spec_record(name: str, spec: Json, defaults: Json, sequence: int) -> Record:
    return Record("spec", name, {"spec": spec, "defaults": defaults}, sequence)


def prunable(records: Iterable[Record], checkpoint: Checkpoint, used: Iterable[str], limit: int) -> tuple[Record, ...]:
    """The records that history can do without.

    Args:
        used: Applications that run or are to run; their revisions are kept whatever the limit.
        limit: How many records of one kind (of one node) to keep beyond those in use.
    """
    keep = {("spec", checkpoint.spec), ("graph", checkpoint.graph)}
    for name, unit in ((INGRESS, checkpoint.ingress), *checkpoint.nodes.items()):
        keep.add(("spec", unit.live))
        keep.add(("node", application(name, unit.stable or "")))
        keep.add(("node", application(name, unit.failed.revision if unit.failed else "")))
    keep.update(("node", name) for name in used)
    groups: dict[tuple[str, str], list[Record]] = {}
    pruned: list[Record] = []
    for record in records:
        if record.kind == "checkpoint":
            # The one before the newest stays: a store that lost its last write still has a whole truth.
            if record.sequence < checkpoint.sequence - 1:
                pruned.append(record)
        elif (record.kind, record.name) not in keep:
            groups.setdefault((record.kind, node_of(record.name) if record.kind == "node" else ""), []).append(record)
    for group in groups.values():
        group.sort(key=lambda record: (record.sequence, record.name))
        pruned.extend(group[: max(0, len(group) - limit)])
    return tuple(pruned)


def _dump(unit: Unit) -> Json:
    data: Json = {"stable": unit.stable, "attempt": unit.attempt, "live": unit.live}
    for key, failure in (("failed", unit.failed), ("trouble", unit.trouble)):
        if failure is not None:
            data[key] = {
                "revision": failure.revision,
                "reason": failure.reason,
                "message": failure.message,
                "attempts": failure.attempts,
                "at": failure.at,
                "token": failure.token,
            }
    return data


def _load_checkpoint(record: Record, revisions: Mapping[str, Json]) -> Checkpoint:
    data = record.data
    return Checkpoint(
        spec=data["spec"],
        graph=data["graph"],
        at=data["at"],
        ingress=_load(INGRESS, data["ingress"], revisions),
        nodes={name: _load(name, unit, revisions) for name, unit in data["nodes"].items()},
        cluster=data.get("cluster"),
        sequence=record.sequence,
    )


def _load(name: str, data: Mapping[str, Any], revisions: Mapping[str, Json]) -> Unit:
    failures = {key: _load_failure(data[key]) for key in ("failed", "trouble") if key in data}
    # A revision whose record is gone cannot be started again; its successor is started as if it were the first.
    known = application(name, data["stable"] or "") in revisions
    return Unit(data["stable"] if known else None, data["attempt"], data["live"], **failures)


def _load_failure(data: Mapping[str, Any]) -> Failure:
    # A newer version may have written more than this one knows.
    return Failure(**{field.name: data[field.name] for field in fields(Failure) if field.name in data})
