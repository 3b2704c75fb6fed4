"""History as ControllerRevisions: one immutable object per record, owned by the pipeline.

``data`` is ``{"record": {kind, name, sequence, data}}``, or, where that is longer than `COMPRESS_ABOVE` bytes,
``{"encoding": "gzip+base64", "record": "<text>"}``. `kubectl get controllerrevisions -o yaml` thus shows small records
as they are, and large ones can be read with ``base64 -d | gunzip``. An object that cannot be read is reported and
skipped: one bad record must not take down what serves.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable
from typing import get_args

from servepipe_operator.adapters.kube import Kube, Resource
from servepipe_operator.adapters.kube_errors import AlreadyExists, NotFound
from servepipe_operator.adapters.owner import Owner
from servepipe_operator.engine.state import Json, Record, RecordKind
from servepipe_operator.ports import ConflictError

__all__ = ["CONTROLLER_REVISIONS", "RecordError", "RevisionHistory"]

CONTROLLER_REVISIONS = Resource("apps/v1", "ControllerRevision", "controllerrevisions")
KINDS = frozenset(get_args(RecordKind))
OWNER_LABEL = "servepipe.dev/pipeline-uid"
KIND_LABEL = "servepipe.dev/record"
COMPRESS_ABOVE = 64 * 1024
# etcd refuses objects above 1.5 MiB, with room for the rest of the object and its managed fields.
MOST_BYTES = 1_000_000
# What a record may grow to when it is unpacked: more than any resource can have, less than what would hurt.
MOST_UNPACKED = 32 * 1024 * 1024
READABLE_CHARS = 200


class RecordError(Exception):
    """A record that is too large to be kept."""


def _ignore(name: str, reason: str) -> None: ...


class RevisionHistory:
    """The `History` port of one pipeline. Methods raise `kube_errors.KubeError` too.

    Args:
        owner: The pipeline; records of a former object with the same name are not its.
        on_corrupt: Called with the object's name and the reason, once per object that cannot be read.
    """

    def __init__(self, kube: Kube, owner: Owner, on_corrupt: Callable[[str, str], None] = _ignore) -> None:
        self._kube = kube
        self._owner = owner
        self._on_corrupt = on_corrupt
        self._reported: set[str] = set()

    async def list(self) -> tuple[Record, ...]:
        """All readable records, oldest sequence first."""
        labels = f"{OWNER_LABEL}={self._owner.uid}"
        items = await self._kube.list(CONTROLLER_REVISIONS, self._owner.namespace, labels)
        found = (self._read(item) for item in items if self._is_ours(item))
        return tuple(sorted((r for r in found if r is not None), key=lambda r: (r.sequence, r.kind, r.name)))

    async def write(self, record: Record) -> None:
        """Durable when it returns; one that exists is left alone.

        Raises:
            ConflictError: Another record has its name.
            RecordError: The record is too large.
        """
        body = self._body(record)
        try:
            await self._kube.create(CONTROLLER_REVISIONS, body)
        except AlreadyExists:
            name = body["metadata"]["name"]
            live = await self._kube.get(CONTROLLER_REVISIONS, self._owner.namespace, name)
            kept = unpack(live) if self._is_ours(live) else None
            if kept != record:
                raise ConflictError(
                    f"ControllerRevision {self._owner.namespace}/{name} exists and holds something other than "
                    f"{record.kind} {record.name!r} of sequence {record.sequence}; records never change. "
                    "If nobody needs it, delete it, and the record is written again."
                ) from None

    async def delete(self, record: Record) -> None:
        """Deleting a record that is gone, or whose name someone else has, does nothing."""
        name = self._name(record)
        try:
            live = await self._kube.get(CONTROLLER_REVISIONS, self._owner.namespace, name)
            if self._is_ours(live):
                uid = live["metadata"]["uid"]
                await self._kube.delete(CONTROLLER_REVISIONS, self._owner.namespace, name, uid=uid)
        except NotFound:
            pass

    def _name(self, record: Record) -> str:
        """The readable part is for people; the digest tells records apart."""
        exact = json.dumps([self._owner.uid, record.kind, record.name, record.sequence])
        digest = hashlib.sha256(exact.encode()).hexdigest()[:16]
        readable = re.sub(r"[^a-z0-9]+", "-", f"{self._owner.name}-{record.kind}-{record.name}".lower())
        return f"{readable[:READABLE_CHARS].strip('-')}-{digest}"

    def _body(self, record: Record) -> Json:
        return {
            "apiVersion": CONTROLLER_REVISIONS.api_version,
            "kind": CONTROLLER_REVISIONS.kind,
            "metadata": {
                "name": self._name(record),
                "namespace": self._owner.namespace,
                "labels": {
                    "app.kubernetes.io/managed-by": "servepipe",
                    OWNER_LABEL: self._owner.uid,
                    KIND_LABEL: record.kind,
                },
                "ownerReferences": [self._owner.owner_reference()],
            },
            "revision": record.sequence,
            "data": pack(record),
        }

    def _is_ours(self, item: Json) -> bool:
        """Labels can be copied by anyone; who owns an object is told by its controller reference."""
        references = item["metadata"].get("ownerReferences") or ()
        return any(r.get("uid") == self._owner.uid and r.get("controller") for r in references)

    def _read(self, item: Json) -> Record | None:
        name = str(item["metadata"]["name"])
        record = unpack(item)
        if record is not None and self._name(record) == name:
            return record
        if name not in self._reported:
            self._reported.add(name)
            reason = "its data cannot be read" if record is None else "its data belongs to another name"
            self._on_corrupt(name, reason)
        return None


def pack(record: Record) -> Json:
    """The ``data`` of a record's ControllerRevision. Raises `RecordError` when it is too large."""
    body = {"kind": record.kind, "name": record.name, "sequence": record.sequence, "data": record.data}
    text = json.dumps(body, sort_keys=True)
    if len(text) <= COMPRESS_ABOVE:
        return {"record": body}
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    if len(packed) > MOST_BYTES or len(text) > MOST_UNPACKED:
        raise RecordError(
            f"{record.kind} {record.name!r} has {len(text)} bytes, {len(packed)} compressed; "
            f"at most {MOST_BYTES} can be kept. Shorten the pipeline's literals or options."
        )
    return {"encoding": "gzip+base64", "record": packed}


def unpack(item: Json) -> Record | None:
    """The record in a ControllerRevision, or None when there is none that can be read."""
    try:
        data = item["data"]
        body = data["record"]
        match data.get("encoding"):
            case None:
                pass
            case "gzip+base64":
                with gzip.GzipFile(fileobj=io.BytesIO(base64.b64decode(body, validate=True))) as file:
                    text = file.read(MOST_UNPACKED + 1)
                if len(text) > MOST_UNPACKED:
                    return None
                body = json.loads(text)
            case _:
                return None
        record = Record(kind=body["kind"], name=body["name"], data=body["data"], sequence=body["sequence"])
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, OSError, binascii.Error, zlib.error):
        return None
    fits = record.kind in KINDS and isinstance(record.name, str) and isinstance(record.data, dict)
    return record if fits and type(record.sequence) is int else None
